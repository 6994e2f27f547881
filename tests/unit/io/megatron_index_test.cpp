#include "core/io/megatron_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/bad_input.h"
#include "tests/unit/data/token_files.h"

namespace flashmorph {
namespace {

using test::IndexBytes;
using test::worked_example;

std::string fault_of_index(const std::string& content, uint64_t bin_bytes = 36) {
  try {
    MegatronIndex(content, bin_bytes, "x.idx");
  } catch (const BadInput& fault) {
    return fault.what();
  }
  return "no fault";
}

TEST(MegatronIndex, ReadsTheWorkedExample) {
  const std::string content = worked_example().content();
  EXPECT_EQ(content.substr(0, 34), std::string("MMIDIDX\0\0"
                                               "\x01\0\0\0\0\0\0\0"
                                               "\x04"
                                               "\x03\0\0\0\0\0\0\0"
                                               "\x03\0\0\0\0\0\0\0",
                                               34));
  EXPECT_EQ(content.size(), 94u);
  const MegatronIndex index(content, 36, "x.idx");
  EXPECT_EQ(index.token_bytes(), 4);
  EXPECT_EQ(index.tokens(), 9u);
  EXPECT_EQ(index.documents(), 2u);
  EXPECT_EQ(index.document_start(0), 0u);
  EXPECT_EQ(index.document_start(1), 5u);
  EXPECT_EQ(index.document_start(2), 9u);
}

TEST(MegatronIndex, ReadsEmptySequencesAndDocumentsOfNarrowTokens) {
  const IndexBytes bytes{.element = 8, .lengths = {0, 2, 0}, .offsets = {0, 0, 4}, .documents = {0, 1, 1, 3}};
  const std::string content = bytes.content();
  const MegatronIndex index(content, 4, "x.idx");
  EXPECT_EQ(index.tokens(), 2u);
  EXPECT_EQ(index.documents(), 3u);
  EXPECT_EQ(index.document_start(1), 0u);
  EXPECT_EQ(index.document_start(3), 2u);
}

TEST(MegatronIndex, WritesWhatTheFormatSays) {
  std::string written;
  write_megatron_index(test::bytes_of(std::vector<int32_t>{3, 2, 4}), 4,
                       [&](std::string_view piece) { written += piece; });
  IndexBytes expected = worked_example();
  expected.documents = {0, 1, 2, 3};  // a document each
  EXPECT_EQ(written, expected.content());
}

TEST(MegatronIndex, RefusesEveryFaultByName) {
  const std::string good = worked_example().content();
  EXPECT_EQ(fault_of_index(good), "no fault");
  for (size_t size = 0; size < good.size(); ++size) EXPECT_NE(fault_of_index(good.substr(0, size)), "no fault") << size;

  EXPECT_THAT(fault_of_index("MMIDIDY" + good.substr(7)), testing::HasSubstr("does not start with MMIDIDX"));
  EXPECT_THAT(fault_of_index(good.substr(0, 20)), testing::HasSubstr("too short for a header"));
  EXPECT_THAT(fault_of_index(good + "x"), testing::HasSubstr("is 95 bytes long, its header needs 94"));
  EXPECT_THAT(fault_of_index(good + "xyz"), testing::HasSubstr("multimodal"));
  EXPECT_THAT(fault_of_index(good, 32), testing::HasSubstr("describes 36 bytes of tokens, the .bin has 32"));
  const auto with = [](auto change) {
    IndexBytes bytes = worked_example();
    change(bytes);
    return fault_of_index(bytes.content());
  };
  EXPECT_THAT(with([](IndexBytes& x) { x.version = 2; }), testing::HasSubstr("version 2, expected 1"));
  EXPECT_THAT(with([](IndexBytes& x) { x.element = 7; }), testing::HasSubstr("elements of float32"));
  EXPECT_THAT(with([](IndexBytes& x) { x.element = 99; }), testing::HasSubstr("elements of code 99"));
  EXPECT_THAT(with([](IndexBytes& x) { x.lengths[1] = -2; }), testing::HasSubstr("sequence 1 the length -2"));
  EXPECT_THAT(with([](IndexBytes& x) { x.offsets[2] = -20; }),
              testing::HasSubstr("sequence 2 at byte -20 of the .bin, expected 20"));
  EXPECT_THAT(with([](IndexBytes& x) { x.offsets[1] = 16; }), testing::HasSubstr("expected 12"));
  EXPECT_THAT(with([](IndexBytes& x) {
                x.documents = {0, 2, 2};
              }),
              testing::HasSubstr("ends its documents at sequence 2"));
  EXPECT_THAT(with([](IndexBytes& x) {
                x.documents = {0, 2, 1};
              }),
              testing::HasSubstr("document entry 2 at sequence 1"));
  EXPECT_THAT(with([](IndexBytes& x) {
                x.documents = {1, 2, 3};
              }),
              testing::HasSubstr("document entry 0 at sequence 1, expected 0"));
  EXPECT_THAT(with([](IndexBytes& x) {
                x.documents = {0, 4, 3};
              }),
              testing::HasSubstr("document entry 1 at sequence 4"));

  std::string many = good;
  many.replace(18, 8, "\xff\xff\xff\xff\xff\xff\xff\x7f", 8);
  EXPECT_THAT(fault_of_index(many), testing::HasSubstr("declares 9223372036854775807 sequences"));
  many = good;
  many.replace(26, 8, std::string(8, '\0'));
  EXPECT_THAT(fault_of_index(many), testing::HasSubstr("0 document entries"));
}

}  // namespace
}  // namespace flashmorph
