#include "core/data/json_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

TEST(JsonLine, OnlyTheAskedFieldIsRead) {
  const auto text = [](const std::string& line) { return text_at(line, "text", "here"); };
  EXPECT_EQ(text(R"({"text":"ok"})"), "ok");
  EXPECT_EQ(text(R"( { "a" : [1, {"text": "inner"}] , "text" : "a\"\\\/\n\t\u00e9" } )"), "a\"\\/\n\t\xC3\xA9");
  EXPECT_EQ(text(R"({"score":NaN,"text":"x"})"), "x");
  EXPECT_EQ(text(R"({"meta":"\ud83d","text":"good one"})"), "good one");
  EXPECT_EQ(text("{\"meta\":\"\xFF\",\"text\":\"x\"}"), "x");
  EXPECT_EQ(text("{\"meta\":" + std::string(100'000, '[') + std::string(100'000, ']') + ",\"text\":\"deep\"}"), "deep");
}

TEST(JsonLine, SurrogatesArePairsOrReplaced) {
  const auto text = [](const std::string& value) { return text_at("{\"t\":\"" + value + "\"}", "t", "here"); };
  EXPECT_EQ(text(R"(pair \ud83d\ude00)"), "pair \xF0\x9F\x98\x80");
  EXPECT_EQ(text(R"(bad \ud83d tail)"), "bad \xEF\xBF\xBD tail");
  EXPECT_EQ(text(R"(\ude00\ud83d\u0041)"),
            "\xEF\xBF\xBD\xEF\xBF\xBD"
            "A");
}

TEST(JsonLine, WhatIsWrongIsNamed) {
  const auto fault_of = [](const std::string& line) -> std::string {
    try {
      text_at(line, "text", "here");
    } catch (const BadInput& fault) {
      return fault.what();
    }
    return "no fault";
  };
  for (const auto& [line, expected] : {std::pair(R"({"text":"cut of)", "a string does not end"),
                                       {R"({"text":"a")", "the object does not end"},
                                       {R"({"meta":[1)", "the object does not end"},
                                       {R"({"meta":[1}})", "a bracket too many"},
                                       {R"({"text":"a"} x)", "more follows"},
                                       {R"(["text"])", "is not a JSON object"},
                                       {R"({"a":"b"})", "has no text at \"text\""},
                                       {R"({"text":5})", "has no text at \"text\""},
                                       {R"({"text":"a","text":"b"})", "twice"},
                                       {R"({"text":"\x"})", "an unknown escape"},
                                       {R"({"text":"\u12"})", "four hexadecimal digits"},
                                       {"{\"text\":\"\xFF\"}", "is not UTF-8"}})
    EXPECT_THAT(fault_of(line), testing::HasSubstr(expected)) << line;
}

}  // namespace
}  // namespace flashmorph
