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
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::StartsWith;

std::string fault_of(const DataSection& data, int64_t least_tokens = 1) {
  try {
    Corpus::open(data, test::tokenizer(), least_tokens);
  } catch (const BadInput& fault) {
    return fault.what();
  }
  return "no fault";
}

class CorpusFile : public testing::Test {
 protected:
  DataSection text(const std::string& content) { return {.text = holding("text.txt", content)}; }
  DataSection lines(const std::string& content) { return {.jsonl = holding("lines.jsonl", content)}; }
  std::string holding(const std::string& name, const std::string& content) {
    std::ofstream(folder_.path() / name, std::ios::binary) << content;
    return (folder_.path() / name).string();
  }
  test::TemporaryFolder folder_;
};

TEST(Corpus, ItsTwoPartsAreTheTextOnce) {
  std::vector<int32_t> all = test::plays().training().tokens();
  const std::vector<int32_t> held_out = test::plays().held_out().tokens();
  all.insert(all.end(), held_out.begin(), held_out.end());
  EXPECT_EQ(all.size(), 472001U);
  EXPECT_EQ(held_out.size(), 47200U);
  std::stringstream text;
  text << std::ifstream(test::kPlays).rdbuf();
  EXPECT_EQ(test::tokenizer().decode(all), text.str());
  EXPECT_THAT(test::plays().training().document_starts(), IsEmpty());
}

TEST_F(CorpusFile, ReadingCanBeBrokenOffBeforeEachPart) {
  const auto parts_of = [](const DataSection& data) {
    int parts = 0;
    Corpus::open(data, test::tokenizer(), 0, [&] { ++parts; });
    return parts;
  };
  EXPECT_EQ(parts_of(lines("{\"text\": \"one\"}\n{\"text\": \"two\"}\n{\"text\": \"three\"}\n")), 3);
  EXPECT_EQ(parts_of(text(std::string((1 << 20) + 1, '\n'))), 2) << "a MiB each";
  EXPECT_THROW(Corpus::open(text("one"), test::tokenizer(), 1, [] { throw std::domain_error("enough"); }),
               std::domain_error);
}

TEST_F(CorpusFile, HoldsOutTheAskedShareOfItsEnd) {
  DataSection data = text("\n\n\n\n\n\n\n\n a");
  data.held_out = 0.25;
  const Corpus corpus = Corpus::open(data, test::tokenizer(), 2);
  EXPECT_EQ(corpus.training().size(), 7U);
  EXPECT_EQ(corpus.held_out().size(), 2U);
  EXPECT_EQ(corpus.held_out()[1], test::tokenizer().encode(" a").at(0));
}

TEST_F(CorpusFile, OneThatCannotBeReadIsNamed) {
  EXPECT_THAT(fault_of({.text = (folder_.path() / "none.txt").string()}),
              AllOf(HasSubstr("none.txt"), HasSubstr("opened")));
  EXPECT_THAT(fault_of({.text = folder_.path().string()}), HasSubstr("is not a regular file"));
}

TEST_F(CorpusFile, AnEmptyOneIsRefused) {
  EXPECT_THAT(fault_of(text("")), HasSubstr("is empty"));
  EXPECT_THAT(fault_of(lines("\n")), HasSubstr("is empty"));
  EXPECT_THAT(fault_of(lines("{\"text\": \"\"}\n")), HasSubstr("is empty"));
}

TEST_F(CorpusFile, OneThatIsNotUtf8IsRefused) {
  const std::string sound(200, 'a');
  EXPECT_EQ(fault_of(text(sound + "\xC3\xA9\n")), "no fault");
  for (const char* broken :
       {"\xff", "\xC3", "\xC0\x80", "\xED\xA0\x80"})  // no lead byte, cut short, overlong, surrogate
    EXPECT_THAT(fault_of(text(sound + broken)), HasSubstr("is not UTF-8 text: see byte 200"));
}

TEST_F(CorpusFile, OneWithAPartTooShortSaysWhichAndByHowMuch) {
  const DataSection data = text(std::string(100, '\n'));
  EXPECT_EQ(fault_of(data, 10), "no fault");
  EXPECT_THAT(fault_of(data, 11), AllOf(HasSubstr("held-out part has 10 tokens"), HasSubstr("needs 11")));
  EXPECT_THAT(fault_of(data, 91), AllOf(HasSubstr("training part has 90 tokens"), HasSubstr("needs 91")));
}

TEST_F(CorpusFile, JsonLinesAreDocumentsApart) {
  DataSection data =
      lines("{\"text\": \"\\n\\n\"}\r\n\n{\"id\": 3, \"text\": \"\"}\n{\"text\": \"\\n a\"}\n{\"text\": \" a\"}");
  data.held_out = 0.001;
  const Corpus corpus = Corpus::open(data, test::tokenizer(), 0);
  const int32_t newline = test::task().newline(), a = test::tokenizer().encode(" a").at(0);
  const TokenView training = corpus.training();
  EXPECT_THAT(training.tokens(), ElementsAre(newline, newline, newline, a, a));
  EXPECT_THAT(training.document_starts(), ElementsAre(2, 4));
  EXPECT_THAT(training.subspan(2, 3).document_starts(), ElementsAre(2));
  EXPECT_THAT(training.subspan(1, 3).document_starts(), ElementsAre(1));
  EXPECT_THAT(training.subspan(2, 2).document_starts(), IsEmpty());
}

TEST_F(CorpusFile, JsonLinesAreReadAtTheirField) {
  DataSection data = lines("{\"text\": 5, \"body\": \"\\n\\n\\n\\n\"}");
  EXPECT_THAT(fault_of(data),
              AllOf(StartsWith("data.jsonl: "), HasSubstr("lines.jsonl: line 1: has no text at \"text\"")));
  data.field = "body";
  data.held_out = 0.5;
  EXPECT_EQ(fault_of(data), "no fault");
}

TEST_F(CorpusFile, ALineThatIsNotJsonIsNamed) {
  EXPECT_THAT(fault_of(lines("{\"text\": \"a\"}\n\n{\"text\": \"a\"\n")), HasSubstr("line 3: is not valid JSON"));
  EXPECT_THAT(fault_of(lines("[]\n")), HasSubstr("line 1: is not a JSON object"));
  EXPECT_THAT(fault_of(lines("{\"text\": \"\xff\"}\n")), HasSubstr("line 1: is not UTF-8 text at"));
}

}  // namespace
}  // namespace flashmorph
