#include "core/io/safetensors.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <fstream>
#include <limits>

#include "core/base/bad_input.h"
#include "core/io/atomic_file.h"
#include "core/io/model_files.h"
#include "tests/support/temporary_folder.h"

namespace flashmorph {
namespace {

using testing::HasSubstr;

std::string file_with_header(const std::string& header, size_t data_bytes, uint64_t declared) {
  std::string content;
  for (int i = 0; i < 8; ++i) content += static_cast<char>(declared >> (8 * i) & 255);
  return content + header + std::string(data_bytes, '\0');
}

std::string fault_of_file(const std::string& content) {
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
  EXPECT_THAT(fault_of_file(file_with_header(header, bytes, std::string(header).size())), HasSubstr(expected));
}

INSTANTIATE_TEST_SUITE_P(
    Table, BadHeaders,
    testing::Values(
        BadHeader{"{oops", 0, "header: is not valid JSON"}, BadHeader{"[1]", 0, "not a JSON object"},
        BadHeader{"", 0, "not valid JSON"}, BadHeader{R"({"a": 1e999})", 0, "beyond any range"},
        BadHeader{R"({"__metadata__": {"k": 1}})", 0, "__metadata__.k: is not a string"},
        BadHeader{R"({"__metadata__": 1})", 0, "not a JSON object"},
        BadHeader{"{}", 4, "has 4 data bytes, its tensors fill 0"},
        BadHeader{R"({"a": 5})", 0, "tensor a: is not described"},
        BadHeader{R"({"a": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}})", 4,
                  "tensor a: has the unknown dtype"},
        BadHeader{R"({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}})", 4, "no shape"},
        BadHeader{R"({"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}})", 4, "no shape"},
        BadHeader{R"({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}})", 4, "no data_offsets"},
        BadHeader{R"({"a": {"dtype": "F32", "shape": [1]}})", 4, "no data_offsets"},
        BadHeader{R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}})", 4,
                  "takes 4 bytes, its shape and dtype need 8"},
        BadHeader{R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})", 4, "lies at bytes 0 to 8 of 4"},
        BadHeader{R"({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}})", 4, "lies at bytes 4 to 0"},
        BadHeader{R"({"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 4]}})", 4,
                  "too large"},
        BadHeader{
            R"({"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}, "b": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]}})",
            4, "tensor b: overlaps the tensor before it"},
        BadHeader{
            R"({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "b": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]}})",
            4, "tensor b: leaves a gap"},
        BadHeader{
            R"({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}})",
            2, "leaves a gap before it"},
        BadHeader{R"({"a": {"dtype": "F32", "shape": [1], "data_offsets": [18446744073709551612, 0]}})", 4,
                  "lies at bytes 18446744073709551612"},
        BadHeader{
            R"({"a": {"dtype": "F32", "shape": [0, 4611686018427387904, 4611686018427387904], "data_offsets": [0, 0]}})",
            0, "too large"},
        BadHeader{R"({"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}})", 4, "no shape"}));

// Some tools write an alias's description twice; for the safetensors package the last one counts.
TEST(Safetensors, ATensorMayBeDescribedTwiceAlike) {
  const char* one = R"("a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]})";
  const std::string header = std::string("{") + one + ", " + one + "}";
  EXPECT_EQ(fault_of_file(file_with_header(header, 1, header.size())), "no fault");
}

TEST(Safetensors, LengthsBeyondTheFile) {
  EXPECT_THAT(fault_of_file(""), HasSubstr("too short"));
  EXPECT_THAT(fault_of_file("short"), HasSubstr("too short"));
  EXPECT_THAT(fault_of_file(file_with_header("{}", 0, 3)),
              HasSubstr("declares a header of 3 bytes, expected at most 2"));
  EXPECT_THAT(fault_of_file(file_with_header(R"({"a": )" + std::string(1'000'000, '['), 0, 1'000'006)),
              HasSubstr("nested deeper"));
  EXPECT_THAT(fault_of_file(file_with_header("{}", 0, 100)), HasSubstr("declares a header of 100 bytes"));
  EXPECT_THAT(fault_of_file(file_with_header("{}", 0, ~uint64_t{0})), HasSubstr("declares a header"));
}

TEST(Safetensors, FilesThatCannotBeRead) {
  const test::TemporaryFolder folder;
  EXPECT_THROW(SafetensorsFile::open(folder.path()), BadInput);
  EXPECT_THROW(SafetensorsFile::open(folder.path() / "none"), BadInput);
  const auto huge = folder.path() / "huge";  // sparse: a header over the limit that the file could hold
  std::ofstream(huge, std::ios::binary) << file_with_header("{}", 0, 100'000'001);
  std::filesystem::resize_file(huge, 200'000'000);
  EXPECT_THROW(SafetensorsFile::open(huge), BadInput);
}

TEST(Safetensors, WhatIsWrittenReadsBack) {
  const test::TemporaryFolder folder;
  const auto file = folder.path() / "x.safetensors";
  const at::Tensor base = at::arange(24).reshape({4, 6});
  std::vector<std::pair<std::string, at::Tensor>> tensors = {
      {"transposed", base.t()}, {"empty", at::empty({0, 2})}, {"scalar", at::scalar_tensor(7.0)}};
  for (const at::ScalarType type : {at::kBool, at::kByte, at::kChar, at::kShort, at::kInt, at::kLong, at::kHalf,
                                    at::kBFloat16, at::kFloat, at::kDouble})
    tensors.emplace_back(c10::toString(type), base.to(type));
  write_safetensors(file, tensors, {{"key", "value"}});
  const auto read = SafetensorsFile::open(file);
  EXPECT_EQ(read->entries().size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    EXPECT_EQ(read->tensor(name).scalar_type(), tensor.scalar_type()) << name;
    EXPECT_TRUE(read->tensor(name).equal(tensor)) << name;
  }
  EXPECT_EQ(read->metadata().at("key"), "value");
  EXPECT_THROW(read->tensor("none"), BadInput);
}

TEST(Safetensors, ATensorOutlivesItsFile) {
  const test::TemporaryFolder folder;
  const auto file = folder.path() / "x.safetensors";
  const at::Tensor written = at::arange(1000);
  write_safetensors(file, {{"a", written}});
  const at::Tensor read = SafetensorsFile::open(file)->tensor("a");
  std::filesystem::remove(file);
  EXPECT_TRUE(read.equal(written));
}

TEST(Safetensors, DataThatIsNotAlignedIsRead) {
  const test::TemporaryFolder folder;
  const std::string header =
      R"({"b": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "f": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]}})";
  const float values[] = {1.5f, -2.0f};
  const auto file = folder.path() / "x.safetensors";
  std::ofstream(file, std::ios::binary) << file_with_header(header, 1, header.size())
                                        << std::string(reinterpret_cast<const char*>(values), sizeof(values));
  const at::Tensor read = SafetensorsFile::open(file)->tensor("f");
  EXPECT_EQ(read[0].item<float>(), 1.5f);
  EXPECT_EQ(read[1].item<float>(), -2.0f);
}

TEST(ModelFiles, SlicesOfShardsAndFaults) {
  const test::TemporaryFolder folder;
  const at::Tensor a = at::randn({4, 6});
  at::Tensor bad = at::ones({2});
  bad[1] = std::numeric_limits<float>::quiet_NaN();
  write_safetensors(folder.path() / "one.safetensors", {{"a", a.to(at::kHalf)}});
  write_safetensors(folder.path() / "two.safetensors", {{"bad", bad}});
  std::ofstream(folder.path() / "model.safetensors.index.json")
      << R"({"weight_map": {"a": "one.safetensors", "bad": "two.safetensors"}})";
  const ModelFiles files = ModelFiles::open(folder.path());
  const at::Tensor whole = a.to(at::kHalf).to(at::kFloat);
  EXPECT_TRUE(files.read("a", {4, 6}, at::kFloat).equal(whole));
  for (const int64_t dim : {0, 1})
    for (int64_t start = 0; start < whole.size(dim); ++start) {
      const at::Tensor slice = files.read_slice("a", {4, 6}, at::kFloat, dim, start, whole.size(dim) - start);
      EXPECT_TRUE(slice.equal(whole.narrow(dim, start, whole.size(dim) - start))) << dim << " from " << start;
      EXPECT_TRUE(slice.is_contiguous());
    }
  EXPECT_EQ(files.names(), (std::vector<std::string>{"a", "bad"}));
  EXPECT_EQ(files.files(), (std::vector{folder.path() / "one.safetensors", folder.path() / "two.safetensors"}));
  const auto fault = [&](const std::string& name, at::IntArrayRef shape) {
    try {
      files.read(name, shape, at::kFloat);
    } catch (const BadInput& found) {
      return std::string(found.what());
    }
    return std::string("no fault");
  };
  EXPECT_THAT(fault("a", {6, 4}), HasSubstr("tensor a: has shape [4, 6], expected [6, 4]"));
  EXPECT_THAT(fault("bad", {2}), HasSubstr("tensor bad: holds values that are not finite"));
  EXPECT_THAT(fault("none", {2}), HasSubstr("has no tensor none"));
}

TEST(ModelFiles, ReadingCanBeBrokenOffBeforeEachTensor) {
  const test::TemporaryFolder folder;
  write_safetensors(folder.path() / "model.safetensors", {{"a", at::ones({2, 2})}, {"b", at::ones({2})}});
  ModelFiles files = ModelFiles::open(folder.path());
  int reads = 0;
  files.before_each_read([&] {
    if (++reads == 3) throw std::runtime_error("enough");
  });
  const ModelFiles copy = files;
  copy.read("a", {2, 2}, at::kFloat);
  copy.read_slice("a", {2, 2}, at::kFloat, 0, 1, 1);
  EXPECT_THROW(copy.read("b", {2}, at::kFloat), std::runtime_error);
}

TEST(ModelFiles, OnlyTheSliceReadMustBeFinite) {
  const test::TemporaryFolder folder;
  at::Tensor a = at::ones({2, 3});
  a[0][0] = std::numeric_limits<float>::infinity();
  write_safetensors(folder.path() / "model.safetensors",
                    {{"a", a}, {"whole", at::arange(3)}, {"big", at::full({1}, 1e6)}});
  const ModelFiles files = ModelFiles::open(folder.path());
  EXPECT_TRUE(files.read_slice("a", {2, 3}, at::kFloat, 1, 1, 2).equal(at::ones({2, 2})));
  EXPECT_THROW(files.read_slice("a", {2, 3}, at::kFloat, 0, 0, 1), BadInput);
  EXPECT_THROW(files.read("whole", {3}, at::kFloat), BadInput);  // integers are no weights
  EXPECT_THROW(files.read("big", {1}, at::kHalf), BadInput);     // beyond half precision
  EXPECT_THROW(files.read("a", {}, at::kFloat), BadInput);
}

// Every 16-bit pattern against the formats' definitions: sign, exponent, fraction.
TEST(ModelFiles, SixteenBitFloatsConvertExactly) {
  const auto value_of = [](int bits, int fraction_bits) {
    const int exponent_bits = 15 - fraction_bits, bias = (1 << (exponent_bits - 1)) - 1;
    const int exponent = bits >> fraction_bits & ((1 << exponent_bits) - 1),
              fraction = bits & ((1 << fraction_bits) - 1);
    const double significand = exponent == 0 ? fraction : fraction + (1 << fraction_bits);
    return std::ldexp(bits >> 15 ? -significand : significand, std::max(exponent, 1) - bias - fraction_bits);
  };
  for (const auto& [type, fraction_bits] : {std::pair(at::kHalf, 10), std::pair(at::kBFloat16, 7)}) {
    const int beyond = ((1 << (15 - fraction_bits)) - 1) << fraction_bits;  // the first infinity
    std::vector<int16_t> bits;
    std::vector<float> expected;
    for (int i = 0; i < 2 * beyond; ++i) {
      const int pattern = i < beyond ? i : (i - beyond) | 0x8000;
      bits.push_back(static_cast<int16_t>(pattern));
      expected.push_back(static_cast<float>(value_of(pattern, fraction_bits)));
    }
    const test::TemporaryFolder folder;
    const at::Tensor stored = at::from_blob(bits.data(), {2 * beyond}, type);
    write_safetensors(folder.path() / "model.safetensors", {{"a", stored}});
    const at::Tensor read = ModelFiles::open(folder.path()).read("a", {2 * beyond}, at::kFloat);
    EXPECT_TRUE(read.equal(at::from_blob(expected.data(), {2 * beyond}, at::kFloat))) << c10::toString(type);
  }
}

TEST(ModelFiles, IndexesThatCannotBeFollowed) {
  const test::TemporaryFolder folder;
  write_safetensors(folder.path() / "one.safetensors", {{"a", at::ones({2})}});
  const auto fault = [&](const std::string& index) {
    std::ofstream(folder.path() / "model.safetensors.index.json") << index;
    try {
      ModelFiles::open(folder.path());
    } catch (const BadInput& found) {
      return std::string(found.what());
    }
    return std::string("no fault");
  };
  EXPECT_EQ(fault(R"({"weight_map": {"a": "one.safetensors"}})"), "no fault");
  EXPECT_THAT(fault("{"), HasSubstr("index.json"));
  EXPECT_THAT(fault("[]"), HasSubstr("no weight_map"));
  EXPECT_THAT(fault(R"({"weight_map": {"a": 3}})"), HasSubstr("index.json: a: is not mapped"));
  EXPECT_THAT(fault(R"({"weight_map": {"a": "../one.safetensors"}})"),
              HasSubstr("is not mapped to a file of this folder"));
  EXPECT_EQ(fault(R"({"weight_map": {"b": "one.safetensors"}})"), "no fault") << "which tensors count the files say";
  EXPECT_THAT(fault(R"({"weight_map": {"a": "none"}})"), HasSubstr("none: cannot be opened"));
  EXPECT_THROW(ModelFiles::open(folder.path() / "none"), BadInput);
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

TEST(AtomicFile, AWriteThatFailsLeavesTheOldFileAndNoPart) {
  const test::TemporaryFolder folder;
  const auto file = folder.path() / "state", taken = folder.path() / "taken";
  write_file_atomically(file, "old");
  std::filesystem::create_directories(taken / "inside");
  EXPECT_THROW(write_file_atomically(taken, "x"), std::system_error);  // the rename fails

  rlimit limit{};
  getrlimit(RLIMIT_FSIZE, &limit);
  const rlimit small{1000, limit.rlim_max};
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &small);
  EXPECT_THROW(write_file_atomically(file, std::string(5000, 'x')), std::system_error);  // like a full disk
  setrlimit(RLIMIT_FSIZE, &limit);
  std::signal(SIGXFSZ, handler);

  std::string content;
  std::ifstream(file) >> content;
  EXPECT_EQ(content, "old");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 2);
}

}  // namespace
}  // namespace flashmorph
