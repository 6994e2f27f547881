#include "core/io/safetensors.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "core/base/bad_input.h"
#include "core/io/atomic_file.h"
#include "core/io/checkpoint.h"
#include "tests/support/temporary_folder.h"

namespace flashmorph {
namespace {

using testing::HasSubstr;

std::string file_with_header(const std::string& header, size_t data_bytes, uint64_t declared) {
  std::string content;
  for (int i = 0; i < 8; ++i) content += static_cast<char>(declared >> (8 * i) & 255);
  return content + header + std::string(data_bytes, '\0');
}

std::string fault_of(const std::string& content) {
  const test::TemporaryFolder folder;
  const auto file = folder.path() / "x.safetensors";
  std::ofstream(file, std::ios::binary) << content;
  try {
    SafetensorsFile::open(file);
  } catch (const BadInput& fault) {
    return fault.what();
  }
  return "no fault";
}

struct BadHeader {
  const char* header;
  size_t data_bytes;
  const char* expected;
};

class BadHeaders : public testing::TestWithParam<BadHeader> {};

TEST_P(BadHeaders, AreNamed) {
  const auto& [header, bytes, expected] = GetParam();
  EXPECT_THAT(fault_of(file_with_header(header, bytes, std::string(header).size())), HasSubstr(expected));
}

INSTANTIATE_TEST_SUITE_P(
    Table, BadHeaders,
    testing::Values(
        BadHeader{"{oops", 0, "not a JSON object"}, BadHeader{"[1]", 0, "not a JSON object"},
        BadHeader{R"({"a": 5})", 0, "tensor a: is not described"},
        BadHeader{R"({"a": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}})", 4, "tensor a: has the unknown dtype"},
        BadHeader{R"({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}})", 4, "no shape"},
        BadHeader{R"({"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}})", 4, "no shape"},
        BadHeader{R"({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}})", 4, "no data_offsets"},
        BadHeader{R"({"a": {"dtype": "F32", "shape": [1]}})", 4, "no data_offsets"},
        BadHeader{R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}})", 4, "takes 4 bytes, its shape and dtype need 8"},
        BadHeader{R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})", 4, "lies at bytes 0 to 8 of 4"},
        BadHeader{R"({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}})", 4, "lies at bytes 4 to 0"},
        BadHeader{R"({"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 4]}})", 4, "too large"},
        BadHeader{R"({"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}, "b": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]}})",
                  4, "tensor b: overlaps tensor a"}));

TEST(Safetensors, LengthsBeyondTheFile) {
  EXPECT_THAT(fault_of("short"), HasSubstr("too short"));
  EXPECT_THAT(fault_of(file_with_header("{}", 0, 100)), HasSubstr("declares a header of 100 bytes"));
  EXPECT_THAT(fault_of(file_with_header("{}", 0, ~uint64_t{0})), HasSubstr("declares a header"));
}

TEST(Safetensors, WhatIsWrittenReadsBack) {
  const test::TemporaryFolder folder;
  const auto file = folder.path() / "x.safetensors";
  const at::Tensor a = at::randn({3, 4}), b = at::randn({5}).to(at::kBFloat16), empty = at::empty({0, 2});
  write_safetensors(file, {{"b", b}, {"a", a}, {"empty", empty}}, {{"key", "value"}});
  const auto read = SafetensorsFile::open(file);
  EXPECT_TRUE(read->tensor("a").equal(a));
  EXPECT_TRUE(read->tensor("b").equal(b));
  EXPECT_EQ(read->tensor("empty").sizes(), empty.sizes());
  EXPECT_EQ(read->metadata().at("key"), "value");
}

TEST(Checkpoint, SlicesOfShardsAndFaults) {
  const test::TemporaryFolder folder;
  const at::Tensor a = at::randn({4, 6});
  at::Tensor bad = at::ones({2});
  bad[1] = std::numeric_limits<float>::quiet_NaN();
  write_safetensors(folder.path() / "one.safetensors", {{"a", a.to(at::kHalf)}});
  write_safetensors(folder.path() / "two.safetensors", {{"bad", bad}});
  std::ofstream(folder.path() / "model.safetensors.index.json")
      << R"({"weight_map": {"a": "one.safetensors", "bad": "two.safetensors"}})";
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  const at::Tensor whole = a.to(at::kHalf).to(at::kFloat);
  EXPECT_TRUE(checkpoint.read("a", {4, 6}, at::kFloat).equal(whole));
  EXPECT_TRUE(checkpoint.read_slice("a", {4, 6}, at::kFloat, 1, 2, 3).equal(whole.narrow(1, 2, 3)));
  const auto fault = [&](const std::string& name, at::IntArrayRef shape) {
    try {
      checkpoint.read(name, shape, at::kFloat);
    } catch (const BadInput& found) {
      return std::string(found.what());
    }
    return std::string("no fault");
  };
  EXPECT_THAT(fault("a", {6, 4}), HasSubstr("tensor a: has shape [4, 6], expected [6, 4]"));
  EXPECT_THAT(fault("bad", {2}), HasSubstr("tensor bad: holds values that are not finite"));
  EXPECT_THAT(fault("none", {2}), HasSubstr("has no tensor none"));
}

TEST(AtomicFile, ReplacesWholeAndLeavesNothingBeside) {
  const test::TemporaryFolder folder;
  const auto file = folder.path() / "state";
  write_file_atomically(file, "first");
  write_file_atomically(file, "second");
  std::string content;
  std::ifstream(file) >> content;
  EXPECT_EQ(content, "second");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
  EXPECT_THROW(write_file_atomically(folder.path() / "none" / "x", "y"), std::system_error);
}

}  // namespace
}  // namespace flashmorph
