#include "core/data/corpus.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "core/base/bad_input.h"
#include "tests/support/temporary_folder.h"
#include "tests/unit/data/plays.h"

namespace flashmorph {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string fault_of(const std::filesystem::path& file, int64_t least_tokens = 1) {
  try {
    Corpus::from_text(file, test::tokenizer(), 0.1, least_tokens);
  } catch (const BadInput& fault) {
    return fault.what();
  }
  return "no fault";
}

class CorpusFile : public testing::Test {
 protected:
  std::filesystem::path holding(const std::string& text) {
    std::ofstream(folder_.path() / "text.txt", std::ios::binary) << text;
    return folder_.path() / "text.txt";
  }
  test::TemporaryFolder folder_;
};

TEST(Corpus, ItsTwoPartsAreTheTextOnce) {
  const auto training = test::plays().training(), held_out = test::plays().held_out();
  std::vector<int32_t> all(training.begin(), training.end());
  all.insert(all.end(), held_out.begin(), held_out.end());
  EXPECT_EQ(all.size(), 472001U);
  EXPECT_EQ(held_out.size(), 47200U);
  std::stringstream text;
  text << std::ifstream(test::kPlays).rdbuf();
  EXPECT_EQ(test::tokenizer().decode(all), text.str());
}

TEST_F(CorpusFile, HoldsOutTheAskedShareOfItsEnd) {
  const Corpus corpus = Corpus::from_text(holding("\n\n\n\n\n\n\n\n a"), test::tokenizer(), 0.25, 2);
  EXPECT_EQ(corpus.training().size(), 7U);
  EXPECT_EQ(corpus.held_out().size(), 2U);
  EXPECT_EQ(corpus.held_out().back(), test::tokenizer().encode(" a").at(0));
}

TEST_F(CorpusFile, OneThatCannotBeReadIsNamed) {
  EXPECT_THAT(fault_of(folder_.path() / "none.txt"), AllOf(HasSubstr("none.txt"), HasSubstr("cannot be read")));
  EXPECT_THAT(fault_of(folder_.path()), HasSubstr("cannot be read"));
}

TEST_F(CorpusFile, AnEmptyOneIsRefused) { EXPECT_THAT(fault_of(holding("")), HasSubstr("is empty")); }

TEST_F(CorpusFile, OneThatIsNotUtf8IsRefused) {
  const std::string sound(200, 'a');
  EXPECT_EQ(fault_of(holding(sound + "\xC3\xA9\n")), "no fault");
  for (const char* broken :
       {"\xff", "\xC3", "\xC0\x80", "\xED\xA0\x80"})  // no lead byte, cut short, overlong, surrogate
    EXPECT_THAT(fault_of(holding(sound + broken)), HasSubstr("is not UTF-8 text"));
}

TEST_F(CorpusFile, OneWithAPartTooShortSaysWhichAndByHowMuch) {
  const std::filesystem::path file = holding(std::string(100, '\n'));
  EXPECT_EQ(fault_of(file, 10), "no fault");
  EXPECT_THAT(fault_of(file, 11), AllOf(HasSubstr("held-out part has 10 tokens"), HasSubstr("needs 11")));
  EXPECT_THAT(fault_of(file, 91), AllOf(HasSubstr("training part has 90 tokens"), HasSubstr("needs 91")));
}

}  // namespace
}  // namespace flashmorph
