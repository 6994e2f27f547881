#include "core/io/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/base/bad_input.h"
#include "core/base/sha256.h"
#include "tests/support/temporary_folder.h"

namespace flashmorph {
namespace {

constexpr const char* kTeacher = "tests/data/passkey-teacher/tokenizer.json";

nlohmann::json golden() { return nlohmann::json::parse(std::ifstream("tests/golden/tokenizer.json")); }

nlohmann::json teacher() { return nlohmann::json::parse(std::ifstream(kTeacher)); }

Tokenizer opened(const std::string& content) {
  const test::TemporaryFolder folder;
  std::ofstream(folder.path() / "tokenizer.json") << content;
  return Tokenizer::open(folder.path() / "tokenizer.json");
}

// Null in an RFC 7396 patch removes the key, which a tokenizer.json reads like null.
Tokenizer patched(const nlohmann::json& patch) {
  nlohmann::json root = teacher();
  root.merge_patch(patch);
  return opened(root.dump());
}

TEST(Tokenizer, ABookIsTokenForTokenThatOfTokenizers) {
  std::stringstream book;
  book << std::ifstream("tests/data/text/tinyshakespeare.txt").rdbuf();
  const Tokenizer tokenizer = Tokenizer::open(kTeacher);
  const std::vector<int32_t> ids = tokenizer.encode(book.str());
  const nlohmann::json expected = golden()["book"];
  ASSERT_EQ(ids.size(), expected["count"].get<size_t>());
  EXPECT_EQ(std::vector<int32_t>(ids.begin(), ids.begin() + 200), expected["first"].get<std::vector<int32_t>>());
  EXPECT_EQ(sha256_of_bytes(ids.data(), ids.size() * sizeof(int32_t)), expected["sha256"].get<std::string>());
  EXPECT_EQ(tokenizer.decode(ids), book.str());
}

TEST(Tokenizer, NastyStringsAreThoseOfTokenizersInEveryVariant) {
  const nlohmann::json variants = golden()["variants"];
  ASSERT_EQ(variants.size(), 5u);
  for (const auto& variant : variants) {
    const Tokenizer tokenizer = patched(variant["patch"]);
    for (const auto& item : variant["nasty"]) {
      const auto text = item["text"].get<std::string>();
      const auto ids = item["ids"].get<std::vector<int32_t>>();
      EXPECT_EQ(tokenizer.encode(text), ids) << variant["name"] << ": " << item["text"].dump(-1, ' ', true);
      EXPECT_EQ(tokenizer.decode(ids), item["decoded"].get<std::string>()) << variant["name"] << ": " << text;
    }
  }
}

TEST(Tokenizer, BrokenBytesDecodeAsThoseOfTokenizers) {
  const Tokenizer tokenizer = Tokenizer::open(kTeacher);
  const nlohmann::json broken = golden()["broken"];
  ASSERT_GE(broken.size(), 50u);
  for (const auto& item : broken)
    EXPECT_EQ(tokenizer.decode(item["ids"].get<std::vector<int32_t>>()), item["decoded"].get<std::string>()) << item["ids"];
  EXPECT_EQ(tokenizer.decode({-1, 1 << 30, 32}), "A");  // ids without a token are passed over
}

TEST(Tokenizer, BrokenTextIsReadAsReplacementCharacters) {
  const Tokenizer tokenizer = Tokenizer::open(kTeacher);
  EXPECT_EQ(tokenizer.encode("a\xff"), tokenizer.encode("a\xEF\xBF\xBD"));
  EXPECT_EQ(tokenizer.encode("\xE4\xBD"), tokenizer.encode("\xEF\xBF\xBD"));                            // cut short
  EXPECT_EQ(tokenizer.encode("\xED\xA0\x80"), tokenizer.encode("\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"));  // surrogate
}

TEST(Tokenizer, LongRunsEndSoon) {
  const Tokenizer tokenizer = Tokenizer::open(kTeacher);
  for (const char* unit : {" ", "\n", "x", "the", "!", "\xE4\xBD\xA0"}) {
    std::string run;
    for (int i = 0; i < 200'000; ++i) run += unit;
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(run)), run);
  }
}

TEST(Tokenizer, KnowsItsSizeAndAddedTokens) {
  const Tokenizer tokenizer = Tokenizer::open(kTeacher);
  EXPECT_EQ(tokenizer.vocab_size(), 1024);
  EXPECT_EQ(tokenizer.id_of("<|im_end|>"), 1023);
  EXPECT_EQ(tokenizer.id_of("the"), -1);
}

struct Refusal {
  const char* patch;  // of the teacher's file
  const char* expected;
};

class Refused : public testing::TestWithParam<Refusal> {};

std::string fault_of(const std::string& content) {
  try {
    opened(content);
  } catch (const BadInput& found) {
    return found.what();
  }
  return "no fault";
}

TEST_P(Refused, ByName) {
  nlohmann::json root = teacher();
  root.merge_patch(nlohmann::json::parse(GetParam().patch));
  EXPECT_THAT(fault_of(root.dump()), testing::HasSubstr(GetParam().expected));
}

INSTANTIATE_TEST_SUITE_P(
    Table, Refused,
    testing::Values(
        Refusal{"{}", "no fault"}, Refusal{"5", "model.type"},
        Refusal{R"({"normalizer": {"type": "Lowercase"}})", "Lowercase"},
        Refusal{R"({"decoder": {"type": "WordPiece"}})", "WordPiece"},
        Refusal{R"({"pre_tokenizer": {"type": "Metaspace", "pretokenizers": null}})", "Metaspace"},
        Refusal{R"({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": true}})", "add_prefix_space"},
        Refusal{R"({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "behavior": "Removed"}]}})", "Removed"},
        Refusal{R"({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "behavior": "Isolated",
                    "pattern": {"Regex": "("}}, {"type": "ByteLevel", "add_prefix_space": false}]}})", "does not compile"},
        Refusal{R"({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "behavior": "Isolated",
                    "pattern": {"Regex": "\\w+"}}, {"type": "ByteLevel", "add_prefix_space": false}]}})", "\\w"},
        Refusal{R"({"model": {"type": "Unigram"}})", "Unigram"},
        Refusal{R"({"model": {"byte_fallback": true}})", "model.byte_fallback"},
        Refusal{R"({"model": {"unk_token": "<unk>"}})", "model.unk_token"},
        Refusal{R"({"model": {"vocab": {"a": null}}})", "has no token for byte 97"},
        Refusal{R"({"model": {"vocab": {"a": -1}}})", "has the id -1"},
        Refusal{R"({"model": {"vocab": {"a": 99999999999}}})", "has the id 99999999999"},
        Refusal{R"({"model": {"vocab": {"a": 0}}})", "of another token"},
        Refusal{R"({"model": {"merges": ["no such"]}})", "which is not in the vocab"},
        Refusal{R"({"model": {"merges": ["alone"]}})", "is not a pair"},
        Refusal{R"({"added_tokens": [{"id": 1021, "content": "x", "lstrip": true}]})", "lstrip"},
        Refusal{R"({"added_tokens": [{"id": 1021, "content": "a"}]})", "has two ids"},
        Refusal{R"({"added_tokens": [{"id": 3, "content": "<x>"}]})", "of another token"}));

TEST(Tokenizer, FilesThatAreNotJson) {
  EXPECT_THAT(fault_of(""), testing::HasSubstr("not valid JSON"));
  EXPECT_THAT(fault_of("{\"model\": {}, \"model\": {}}"), testing::HasSubstr("\"model\" twice"));
  EXPECT_THAT(fault_of("{\"normalizer\": " + std::string(1'000'000, '[')), testing::HasSubstr("nested deeper"));
  EXPECT_THROW(Tokenizer::open("tests/data"), BadInput);
  EXPECT_THROW(Tokenizer::open("tests/data/none.json"), BadInput);
}

}  // namespace
}  // namespace flashmorph
