#include "core/tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <future>
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

TEST(Tokenizer, IsSharedByThreads) {  // samples are made ahead on one; seen by tests/sanitize.sh tsan where it is not
  const Tokenizer tokenizer = Tokenizer::open(kTeacher);
  const auto encoded = [&] {
    std::vector<std::vector<int32_t>> all;
    for (int i = 0; i < 500; ++i)
      all.push_back(tokenizer.encode("Speak, speak. " + std::to_string(i % 7) + "\n\tRome"));
    return all;
  };
  std::future<std::vector<std::vector<int32_t>>> beside = std::async(std::launch::async, encoded);
  const std::vector<std::vector<int32_t>> here = encoded();
  EXPECT_EQ(beside.get(), here);
  EXPECT_EQ(tokenizer.decode(here[3]), "Speak, speak. 3\n\tRome");
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
    EXPECT_EQ(tokenizer.decode(item["ids"].get<std::vector<int32_t>>()), item["decoded"].get<std::string>())
        << item["ids"];
  EXPECT_EQ(tokenizer.decode({-1, 1 << 30, 32}), "A");  // ids without a token are passed over
}

TEST(Tokenizer, BrokenTextIsReadAsReplacementCharacters) {
  const Tokenizer tokenizer = Tokenizer::open(kTeacher);
  EXPECT_EQ(tokenizer.encode("a\xff"), tokenizer.encode("a\xEF\xBF\xBD"));
  EXPECT_EQ(tokenizer.encode("\xE4\xBD"), tokenizer.encode("\xEF\xBF\xBD"));                              // cut short
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
        Refusal{R"({"normalizer": {"type": "Precompiled"}})", "Precompiled"},
        Refusal{R"({"decoder": {"type": "WordPiece"}})", "WordPiece"},
        Refusal{R"({"pre_tokenizer": {"type": "UnicodeScripts", "pretokenizers": null}})", "UnicodeScripts"},
        Refusal{R"({"pre_tokenizer": null})", "no fault"},
        Refusal{R"({"pre_tokenizer": null, "model": {"unk_token": "<none>"}})", "lacks the unk_token"},
        Refusal{R"({"pre_tokenizer": {"type": "Metaspace", "pretokenizers": null, "replacement": "__"}})", "Metaspace"},
        Refusal{
            R"({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "behavior": "Removed"}]}})",
            "Removed"},
        Refusal{
            R"({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, {"type": "Metaspace"}]}})",
            "Metaspace"},
        Refusal{R"({"pre_tokenizer": {"type": "Punctuation", "pretokenizers": null, "behavior": "Scattered"}})",
                "Scattered"},
        Refusal{R"({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "behavior": "Isolated",
                    "pattern": {"Regex": "x"}}, {"type": "ByteLevel", "add_prefix_space": true}]}})",
                "add_prefix_space"},
        Refusal{R"({"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": ""}})", "Replace"},
        Refusal{R"({"normalizer": {"type": "Replace", "pattern": {"Regex": "^x"}, "content": ""}})", "with ^"},
        Refusal{R"({"model": {"type": "Unigram"}})", "Unigram"},
        Refusal{R"({"model": {"dropout": 0.1}})", "model.dropout"},
        Refusal{R"({"model": {"continuing_subword_prefix": "##"}})", "model.continuing_subword_prefix"},
        Refusal{R"({"model": {"dropout": 0.0, "type": null}})", "no fault"},
        Refusal{R"({"model": {"vocab": {"a": null, "\u4f60": 64}}})", "which is not in the vocab"},
        Refusal{R"({"model": {"vocab": {"a": -1}}})", "has the id -1"},
        Refusal{R"({"model": {"vocab": {"a": 99999999999}}})", "has the id 99999999999"},
        Refusal{R"({"model": {"vocab": {"a": 0}}})", "of another token"},
        Refusal{R"({"model": {"vocab": {"": 1021}}})", "is empty"},
        Refusal{R"({"model": {"merges": ["no such"]}})", "which is not in the vocab"},
        Refusal{R"({"model": {"merges": ["alone"]}})", "is not a pair"},
        Refusal{R"({"added_tokens": [{"id": 1021, "content": "<x>", "single_word": true}]})", "single_word"},
        Refusal{R"({"normalizer": {"type": "Replace", "pattern": {"String": "x"}, "content": ""},
                    "added_tokens": [{"id": 1021, "content": "xx", "normalized": true}]})",
                "is empty when normalized"},
        Refusal{R"({"added_tokens": [{"id": 1021, "content": "a"}]})", "expected the vocab's, 64"},
        Refusal{R"({"added_tokens": [{"id": 1022, "content": "<x>"}]})", "expected the next after the others, 1021"},
        Refusal{R"({"added_tokens": [{"id": 1021, "content": "<x>"}, {"id": 1021, "content": "<x>"}]})",
                "given twice"}));

struct BadPattern {
  const char* regex;
  const char* expected;
};

class RefusedPattern : public testing::TestWithParam<BadPattern> {};

TEST_P(RefusedPattern, ByName) {
  nlohmann::json root = teacher();
  root["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = GetParam().regex;
  EXPECT_THAT(fault_of(root.dump()), testing::HasSubstr(GetParam().expected)) << GetParam().regex;
}

INSTANTIATE_TEST_SUITE_P(
    Table, RefusedPattern,
    testing::Values(BadPattern{"[a-c]+|(?>x)|\\r\\[", "no fault"}, BadPattern{"(", "does not compile"},
                    BadPattern{"\\w+", "with \\w"}, BadPattern{"\\", "with \\"}, BadPattern{"\\p{Han}", "\\p{Han}"},
                    BadPattern{"\\p", "with \\p"}, BadPattern{"[\\P{L}]", "\\P{L} in a class"},
                    BadPattern{"^a", "with ^"}, BadPattern{"a$", "with $"}, BadPattern{"(?<=a)b", "(?<="},
                    BadPattern{"(?m:.)", "(?m:"}, BadPattern{"[a[b]]", "a class in a class"},
                    BadPattern{"[]a]", "an empty class"}, BadPattern{"[a&&b]", "&&"}, BadPattern{"a{,3}", "{,"},
                    BadPattern{"a{1,3}+", "}+"}, BadPattern{"\\bx", "with \\b"}));

// Which token ends a document: what the folder says before any name.
TEST(Tokenizer, TheFolderSaysWhatEndsADocument) {
  const auto end_in = [](const std::vector<std::pair<std::string, std::string>>& files) {
    const test::TemporaryFolder folder;
    std::filesystem::copy_file(kTeacher, folder.path() / "tokenizer.json");
    for (const auto& [name, content] : files) std::ofstream(folder.path() / name) << content;
    return Tokenizer::of_model(folder.path(), 1024).end_of_text();
  };
  const std::pair<std::string, std::string> chat = {"tokenizer_config.json", R"({"eos_token": "<|im_end|>"})"},
                                            object = {"tokenizer_config.json",
                                                      R"({"eos_token": {"content": "<|im_start|>"}})"},
                                            none = {"tokenizer_config.json", R"({"eos_token": null})"},
                                            other = {"tokenizer_config.json", R"({"eos_token": "<nowhere>"})"},
                                            generation = {"generation_config.json", R"({"eos_token_id": [7, 8]})"},
                                            config = {"config.json", R"({"eos_token_id": 9})"},
                                            beyond = {"config.json", R"({"eos_token_id": 1024})"};
  EXPECT_EQ(end_in({}), 1021) << "<|endoftext|>, by its name";
  EXPECT_EQ(end_in({chat, generation, config}), 1023);
  EXPECT_EQ(end_in({object}), 1022);
  EXPECT_EQ(end_in({none, generation, config}), 7);
  EXPECT_EQ(end_in({config}), 9);
  EXPECT_THROW(end_in({other}), BadInput);
  EXPECT_THROW(end_in({beyond}), BadInput);
}

TEST(Tokenizer, TokensBeyondTheModelsVocabularyAreRefusedWhereATextUsesThem) {
  const Tokenizer all = Tokenizer::open("tests/data/passkey-teacher/tokenizer.json");
  const std::string text = "Remember this sequence of words";
  const std::vector<int32_t> expected = all.encode(text);
  const int32_t highest = *std::ranges::max_element(expected);
  const auto of_model = [](int64_t vocabulary) {
    return Tokenizer::of_model("tests/data/passkey-teacher", vocabulary);
  };
  EXPECT_EQ(of_model(highest + 1).encode(text), expected);
  EXPECT_EQ(of_model(100'000).id_limit(), all.vocab_size());
  try {
    of_model(highest).encode(text);
    ADD_FAILURE() << "was encoded";
  } catch (const BadInput& bad) {
    EXPECT_THAT(bad.what(), testing::AllOf(testing::HasSubstr("whose id is " + std::to_string(highest)),
                                           testing::HasSubstr("ends at " + std::to_string(highest - 1))));
  }
}

TEST(Tokenizer, FilesThatAreNotJson) {
  EXPECT_THAT(fault_of(""), testing::HasSubstr("not valid JSON"));
  EXPECT_THAT(fault_of("{\"model\": {}, \"model\": {}}"), testing::HasSubstr("\"model\" twice"));
  EXPECT_THAT(fault_of("{\"normalizer\": " + std::string(1'000'000, '[')), testing::HasSubstr("nested deeper"));
  EXPECT_THROW(Tokenizer::open("tests/data"), BadInput);
  EXPECT_THROW(Tokenizer::open("tests/data/none.json"), BadInput);
}

}  // namespace
}  // namespace flashmorph
