#include "core/data/token_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/bad_input.h"
#include "core/data/corpus.h"
#include "tests/support/temporary_folder.h"
#include "tests/unit/data/plays.h"
#include "tests/unit/data/token_files.h"

namespace flashmorph {
namespace {

using test::IndexBytes;
using testing::ElementsAre;
using testing::HasSubstr;

const TokenOrigin& origin() {
  static const TokenOrigin made{test::tokenizer().sha256(), test::tokenizer().vocab_size(), std::nullopt};
  return made;
}

class TokenFilesOf : public testing::Test {
 protected:
  void SetUp() override {
    write(bytes_of(std::vector<int32_t>{5, 6, 7, 8, 9, 10, 11, 12, 13}), test::worked_example(), origin().to_json());
  }
  void write(const std::string& bin, const IndexBytes& idx, const std::string& json) {
    const TokenFiles files = TokenFiles::of(prefix_);
    test::write_file(files.bin, bin);
    test::write_file(files.idx, idx.content());
    test::write_file(files.json, json);
  }
  template <class Number>
  static std::string bytes_of(const std::vector<Number>& numbers) {
    return test::bytes_of(numbers);
  }
  std::string fault() const {
    try {
      MappedTokens(prefix_, test::tokenizer()).all().tokens();
    } catch (const BadInput& fault) {
      return fault.what();
    }
    return "no fault";
  }

  test::TemporaryFolder folder_;
  const std::string prefix_ = (folder_.path() / "corpus").string();
};

TEST_F(TokenFilesOf, GiveTheTokensAndTheirDocuments) {
  const MappedTokens tokens(prefix_, test::tokenizer());
  EXPECT_THAT(tokens.all().tokens(), ElementsAre(5, 6, 7, 8, 9, 10, 11, 12, 13));
  EXPECT_THAT(tokens.all().document_starts(), ElementsAre(5));
  EXPECT_THAT(tokens.all().subspan(4, 3).document_starts(), ElementsAre(1));
  EXPECT_THAT(tokens.all().subspan(5, 3).document_starts(), ElementsAre());
  EXPECT_THAT(tokens.all().subspan(1, 4).document_starts(), ElementsAre());
}

TEST_F(TokenFilesOf, OfNarrowTokensGiveThemToo) {
  write(bytes_of(std::vector<uint16_t>{1, 1000, 3}),
        {.element = 8, .lengths = {1, 0, 2}, .offsets = {0, 2, 2}, .documents = {0, 1, 2, 3}}, origin().to_json());
  const MappedTokens tokens(prefix_, test::tokenizer());
  EXPECT_THAT(tokens.all().tokens(), ElementsAre(1, 1000, 3));
  EXPECT_THAT(tokens.all().document_starts(), ElementsAre(1)) << "an empty document starts where the next does";
}

TEST_F(TokenFilesOf, AreACorpus) {
  const Corpus corpus = Corpus::open({.tokens = prefix_, .shuffle = 0, .held_out = 0.5}, test::tokenizer(), 4);
  EXPECT_THAT(test::training(corpus).tokens(), ElementsAre(5, 6, 7, 8, 9));
  EXPECT_THAT(test::held_out(corpus).tokens(), ElementsAre(10, 11, 12, 13));
  EXPECT_THROW(Corpus::open({.tokens = prefix_}, test::tokenizer(), 4), BadInput);
}

TEST_F(TokenFilesOf, WithIdsOutsideOfTheVocabularyAreRefusedWhereTheyAre) {
  write(bytes_of(std::vector<int32_t>{5, 1024, 7, 8, 9, 10, 11, 12, 13}), test::worked_example(), origin().to_json());
  EXPECT_THAT(fault(), HasSubstr("corpus.bin: holds the id 1024 at token 1, expected ids below 1024"));
  write(bytes_of(std::vector<int32_t>{5, 6, -7, 8, 9, 10, 11, 12, 13}), test::worked_example(), origin().to_json());
  EXPECT_THAT(fault(), HasSubstr("holds the id -7 at token 2"));
}

TEST_F(TokenFilesOf, OfAnotherTokenizerAreRefused) {
  const auto with_json = [&](const std::string& json) {
    test::write_file(TokenFiles::of(prefix_).json, json);
    return fault();
  };
  EXPECT_EQ(fault(), "no fault");
  TokenOrigin other = origin();
  other.tokenizer_sha256 = std::string(64, 'a');
  EXPECT_THAT(with_json(other.to_json()), HasSubstr("corpus.json: tokenizer_sha256: is \"aaaa"));
  other = origin();
  other.vocab_size = 1000;
  EXPECT_THAT(with_json(other.to_json()), HasSubstr("vocab_size: is 1000, the model's tokenizer has 1024"));
  other = origin();
  other.end_of_document = 1024;
  EXPECT_THAT(with_json(other.to_json()), HasSubstr("end_of_document: is 1024"));
  other.end_of_document = 1021;
  EXPECT_EQ(with_json(other.to_json()), "no fault");
  EXPECT_THAT(with_json("{}"), HasSubstr("tokenizer_sha256: is null"));
  EXPECT_THAT(with_json("x"), HasSubstr("not valid JSON"));
}

TEST_F(TokenFilesOf, UnknownOriginSaysWhatWouldMakeItKnown) {
  std::filesystem::remove(TokenFiles::of(prefix_).json);
  const std::string message = fault();
  EXPECT_THAT(message, HasSubstr("corpus.json: is missing"));
  test::write_file(TokenFiles::of(prefix_).json, message.substr(message.find('{')));
  EXPECT_EQ(fault(), "no fault");
}

TEST_F(TokenFilesOf, MissingOrCutShortAreNamed) {
  test::write_file(TokenFiles::of(prefix_).bin, "1234");
  EXPECT_THAT(fault(), HasSubstr("corpus.idx: describes 36 bytes of tokens, the .bin has 4"));
  std::filesystem::remove(TokenFiles::of(prefix_).bin);
  EXPECT_THAT(fault(), HasSubstr("corpus.bin: cannot be opened"));
}

}  // namespace
}  // namespace flashmorph
