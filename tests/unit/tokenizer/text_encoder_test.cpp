#include "core/tokenizer/text_encoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/support/temporary_folder.h"

namespace flashmorph {
namespace {

using testing::ElementsAre;

nlohmann::json stories() { return nlohmann::json::parse(std::ifstream("tests/data/stories260k/tokenizer.json")); }

Tokenizer opened(const nlohmann::json& content) {
  const test::TemporaryFolder folder;
  std::ofstream(folder.path() / "tokenizer.json") << content;
  return Tokenizer::open(folder.path() / "tokenizer.json");
}

nlohmann::json added(int id, const char* content, const char* flag) {
  return {{"id", id}, {"content", content}, {flag, true}};
}

std::vector<int32_t> in_parts(const Tokenizer& tokenizer, std::string_view text, size_t part) {
  TextEncoder encoder(tokenizer, part);
  std::vector<int32_t> tokens;
  for (size_t at = 0; at < text.size(); at += 5) encoder.write(text.substr(at, 5), tokens);
  encoder.finish(tokens);
  return tokens;
}

// The ids are those of tokenizers 0.23.3.
TEST(TextEncoder, SentencePieceWithAddedTokensThatTakeSpaces) {
  nlohmann::json content = stories();
  content["added_tokens"].push_back(added(512, "foo", "normalized"));
  content["added_tokens"].push_back(added(513, "bar", "lstrip"));
  content["added_tokens"].push_back(added(514, "qux", "rstrip"));
  const Tokenizer tokenizer = opened(content);
  EXPECT_THAT(tokenizer.encode("a foo"), ElementsAre(261, 512));
  EXPECT_THAT(tokenizer.encode("afoo"), ElementsAre(261, 431, 347));
  EXPECT_THAT(tokenizer.encode("a  qux  bar c"), ElementsAre(261, 410, 410, 514, 513, 410, 280));
  EXPECT_THAT(tokenizer.encode("</s>a</s>b"), ElementsAre(2, 261, 2, 268));
  EXPECT_EQ(tokenizer.decode({261, 410, 410, 514, 513, 410, 280}), "a  quxbar  c");
  EXPECT_EQ(tokenizer.decode({2, 261, 2, 268}), "</s> a</s> b");
  EXPECT_EQ(tokenizer.decode({207, 132, 207}),
            std::string(3, '?').replace(0, 3, "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"));
}

TEST(TextEncoder, BytesStandInForCharactersWithoutAToken) {
  EXPECT_THAT(opened(stories()).encode("\xCC\x81"), ElementsAre(410, 207, 132));
  EXPECT_EQ(opened(stories()).decode({410, 207, 132}), "\xCC\x81");
}

TEST(TextEncoder, TheRestOfATextHasNothingPutInFront) {
  const Tokenizer tokenizer = opened(stories());
  EXPECT_THAT(tokenizer.encode("a"), ElementsAre(261));
  EXPECT_THAT(tokenizer.encode_rest("a"), ElementsAre(412));
  EXPECT_THAT(tokenizer.encode_rest("\n"), ElementsAre(13));
}

TEST(TextEncoder, PartsOfAnySizeGiveTheTokensOfTheWhole) {
  nlohmann::json content = stories();
  content["added_tokens"].push_back(added(512, "foo", "normalized"));
  content["added_tokens"].push_back(added(513, "x y", "lstrip"));
  const Tokenizer tokenizer = opened(content);
  const std::string text = "foo a  foo\n\nb x y  c</s> d\xC3\xA9 foofoo \xE3\x80\x80 x y \xF0\x9F\x98\x80\xFF end";
  for (size_t part = 1; part < 70; ++part) EXPECT_EQ(in_parts(tokenizer, text, part), tokenizer.encode(text)) << part;
}

TEST(TextEncoder, ALongTextKeepsLittle) {
  const Tokenizer tokenizer = opened(stories());
  TextEncoder encoder(tokenizer, 1 << 10);
  std::vector<int32_t> tokens;
  size_t most_held = 0;
  for (int i = 0; i < 2'000; ++i) {
    encoder.write("Once upon a time there was a text without an end. ", tokens);
    most_held = std::max(most_held, encoder.state().held.size());
  }
  EXPECT_LT(most_held, 64u);
  EXPECT_GT(encoder.taken(), 2'000u * 50 - 2'048);
}

TEST(TextEncoder, DocumentsFollowEachOtherFresh) {
  const Tokenizer tokenizer = opened(stories());
  TextEncoder encoder(tokenizer);
  std::vector<int32_t> tokens;
  for (int document = 0; document < 2; ++document) {
    encoder.write("a", tokens);
    encoder.finish(tokens);
  }
  EXPECT_THAT(tokens, ElementsAre(261, 261));
}

}  // namespace
}  // namespace flashmorph
