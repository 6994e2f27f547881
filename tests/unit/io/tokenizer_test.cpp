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

TEST(Tokenizer, ABookIsTokenForTokenThatOfTokenizers) {
  std::stringstream book;
  book << std::ifstream("tests/data/text/tinyshakespeare.txt").rdbuf();
  const std::vector<int32_t> ids = Tokenizer::open(kTeacher).encode(book.str());
  EXPECT_EQ(ids.size(), golden()["book"]["count"].get<size_t>());
  EXPECT_EQ(sha256_of_bytes(ids.data(), ids.size() * sizeof(int32_t)), golden()["book"]["sha256"].get<std::string>());
  EXPECT_EQ(Tokenizer::open(kTeacher).decode(ids), book.str());
}

TEST(Tokenizer, NastyStringsAreThoseOfTokenizers) {
  const Tokenizer tokenizer = Tokenizer::open(kTeacher);
  for (const auto& item : golden()["nasty"]) {
    const auto text = item["text"].get<std::string>();
    EXPECT_EQ(tokenizer.encode(text), item["ids"].get<std::vector<int32_t>>()) << text;
    EXPECT_EQ(tokenizer.decode(item["ids"].get<std::vector<int32_t>>()), item["decoded"].get<std::string>()) << text;
  }
}

TEST(Tokenizer, BrokenTextIsReadAsReplacementCharacters) {
  const Tokenizer tokenizer = Tokenizer::open(kTeacher);
  EXPECT_EQ(tokenizer.encode("a\xff"), tokenizer.encode("a\xEF\xBF\xBD"));
}

TEST(Tokenizer, WhatItDoesNotDoIsRefusedByName) {
  auto root = nlohmann::json::parse(std::ifstream(kTeacher));
  const auto fault = [](const nlohmann::json& changed) {
    const test::TemporaryFolder folder;
    std::ofstream(folder.path() / "tokenizer.json") << changed.dump();
    try {
      Tokenizer::open(folder.path() / "tokenizer.json");
    } catch (const BadInput& found) {
      return std::string(found.what());
    }
    return std::string("no fault");
  };
  EXPECT_EQ(fault(root), "no fault");
  auto changed = root;
  changed["normalizer"] = {{"type", "Lowercase"}};
  EXPECT_THAT(fault(changed), testing::HasSubstr("normalizer"));
  changed = root;
  changed["model"]["byte_fallback"] = true;
  EXPECT_THAT(fault(changed), testing::HasSubstr("model.byte_fallback"));
  changed = root;
  changed["pre_tokenizer"] = {{"type", "Whitespace"}};
  EXPECT_THAT(fault(changed), testing::HasSubstr("pre_tokenizer"));
  changed = root;
  changed["model"]["merges"].push_back("no such");
  EXPECT_THAT(fault(changed), testing::HasSubstr("model.merges"));
  EXPECT_THAT(fault(5), testing::HasSubstr("not a byte-level BPE"));
}

}  // namespace
}  // namespace flashmorph
