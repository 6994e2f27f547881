// The pieces put together are the model: against transformers, against themselves in two slices, and step by step.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "core/base/bad_input.h"
#include "core/model/attention.h"
#include "core/model/blocks.h"
#include "core/model/stored_model.h"
#include "tests/support/small_model.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/tensors.h"

namespace flashmorph {
namespace {

using test::max_abs_error;
using test::TemporaryFolder;
using test::write_small_model;

struct Decoder {
  ModelSpec spec;
  Placement placement;
  std::vector<AttentionWeights> attention;
  std::vector<BlockWeights> blocks;
  EmbeddingWeights embedding;
  HeadWeights head;

  static Decoder open(const std::filesystem::path& folder, const Placement& placement = {}) {
    const auto [spec, files, notes] = StoredModel::open(folder);
    Decoder decoder;
    decoder.spec = spec;
    decoder.placement = placement;
    for (int64_t layer = 0; layer < decoder.spec.layers; ++layer) {
      decoder.attention.push_back(load_attention(files, decoder.spec, layer, placement));
      decoder.blocks.push_back(load_block(files, decoder.spec, layer, placement));
    }
    decoder.embedding = load_embedding(files, decoder.spec, placement);
    decoder.head =
        load_head(files, decoder.spec, placement, decoder.spec.tied_embeddings ? &decoder.embedding : nullptr);
    return decoder;
  }

  at::Tensor logits(const at::Tensor& tokens_BT, int64_t start = 0, std::vector<LayerCache>* caches = nullptr) const {
    Shard alone;
    const Positions positions = positions_of(spec, start, tokens_BT.size(1), placement);
    at::Tensor x = embed(tokens_BT, embedding, alone);
    for (int64_t l = 0; l < spec.layers; ++l) {
      const at::Tensor input = read_by_sublayer(x, blocks[l].input_norm, spec);
      const at::Tensor attended =
          full_attention(input, attention[l], spec, positions, caches == nullptr ? nullptr : &(*caches)[l]);
      x = with_sublayer(x, attended, blocks[l].input_norm, spec);
      const at::Tensor fed = feed_forward(read_by_sublayer(x, blocks[l].post_norm, spec), blocks[l], spec);
      x = with_sublayer(x, fed, blocks[l].post_norm, spec);
    }
    return at::linear(read_by_head(x, head, spec), head.output);
  }
};

void expect_golden(const Decoder& decoder, const std::filesystem::path& file, double tolerance) {
  const auto golden = SafetensorsFile::open(file);
  const at::Tensor logits = decoder.logits(golden->tensor("tokens").unsqueeze(0))[0];
  const at::Tensor expected = golden->tensor("logits");
  ASSERT_GT(expected.abs().max().item<double>(), 1.0) << "a golden of noise proves nothing";
  EXPECT_LE(max_abs_error(expected, logits.index_select(0, golden->tensor("positions"))), tolerance);
}

TEST(Forward, TeacherMatchesTransformers) {
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble})
    expect_golden(Decoder::open("tests/data/passkey-teacher", {.dtype = dtype}),
                  "tests/golden/logits_teacher.safetensors", 2e-4);
}

TEST(Forward, StoryModelMatchesTransformers) {
  expect_golden(Decoder::open("tests/data/stories260k"), "tests/golden/logits_stories260k.safetensors", 2e-4);
}

class Family : public testing::TestWithParam<const char*> {};

TEST_P(Family, MatchesTransformers) {
  const std::filesystem::path folder = std::filesystem::path("tests/golden/families") / GetParam();
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble})
    expect_golden(Decoder::open(folder, {.dtype = dtype}), folder / "logits.safetensors", 2e-4);
}

INSTANTIATE_TEST_SUITE_P(Forward, Family,
                         testing::Values("llama3", "llama-linear", "llama-bias", "mistral", "mixtral", "qwen2",
                                         "qwen2-yarn", "qwen3", "qwen3-moe", "qwen3-moe-plain", "smollm3", "olmo2",
                                         "granite", "phi3"));

class Cached : public testing::TestWithParam<std::vector<int64_t>> {};

TEST_P(Cached, BlocksEqualTheWholeForward) {
  const TemporaryFolder folder;
  write_small_model(folder.path());
  const Decoder decoder = Decoder::open(folder.path());
  const int64_t tokens = std::accumulate(GetParam().begin(), GetParam().end(), int64_t{0});
  const at::Tensor tokens_BT =
      at::randint(decoder.spec.vocabulary, {2, tokens}, at::detail::createCPUGenerator(5), at::kLong);

  std::vector<LayerCache> caches(decoder.spec.layers);
  std::vector<at::Tensor> parts;
  int64_t start = 0;
  for (const int64_t length : GetParam()) {
    parts.push_back(decoder.logits(tokens_BT.narrow(1, start, length), start, &caches));
    start += length;
  }
  EXPECT_LE(max_abs_error(decoder.logits(tokens_BT), at::cat(parts, 1)), 1e-5);
  EXPECT_GE(caches[0].keys_BPGK.size(1), tokens);
  EXPECT_LE(caches[0].keys_BPGK.size(1), 2 * tokens);
}

INSTANTIATE_TEST_SUITE_P(Forward, Cached,
                         testing::Values(std::vector<int64_t>{9, 1, 1, 1}, std::vector<int64_t>{1, 1, 1, 1},
                                         std::vector<int64_t>{7, 5, 1, 3}));

// Rank `rank` of two whose reduction adds what the other rank brings, given beforehand.
class FakeShard : public Shard {
 public:
  FakeShard(int rank, at::Tensor other) : rank_(rank), other_(std::move(other)) {}
  int rank() const override { return rank_; }
  int size() const override { return 2; }
  void all_reduce_sum(at::Tensor& values) override {
    mine = values.clone();
    values.add_(other_);
  }

  at::Tensor mine;

 private:
  int rank_;
  at::Tensor other_;
};

struct Slices : testing::Test {
  Slices() { write_small_model(folder.path(), {.tied = false}); }
  Decoder slice(int64_t rank) const { return Decoder::open(folder.path(), {.shard_rank = rank, .shard_size = 2}); }

  TemporaryFolder folder;
};

TEST_F(Slices, PartialOutputsAddUpToTheWhole) {
  const Decoder whole = Decoder::open(folder.path()), low = slice(0), high = slice(1);
  const at::Tensor x = at::randn({2, 11, whole.spec.hidden}, at::detail::createCPUGenerator(3));
  const Positions positions = positions_of(whole.spec, 0, 11, {});
  const auto attend = [&](const Decoder& decoder) {
    return full_attention(x, decoder.attention[1], whole.spec, positions);
  };
  EXPECT_LE(max_abs_error(attend(whole), attend(low) + attend(high)), 1e-5);
  const auto feed = [&](const Decoder& decoder) { return mlp(x, decoder.blocks[1].mlp); };
  EXPECT_LE(max_abs_error(feed(whole), feed(low) + feed(high)), 1e-5);
  const auto project = [&](const Decoder& decoder) { return at::linear(x, decoder.head.output); };
  EXPECT_LE(max_abs_error(project(whole), at::cat({project(low), project(high)}, -1)), 1e-5);
}

TEST_F(Slices, EmbeddingIsWholeOnEveryRank) {
  const Decoder whole = Decoder::open(folder.path());
  const at::Tensor tokens = at::arange(whole.spec.vocabulary).view({2, -1});
  Shard alone;
  const at::Tensor expected = embed(tokens, whole.embedding, alone);
  FakeShard probe(1, at::zeros_like(expected));
  embed(tokens, slice(1).embedding, probe);
  FakeShard first(0, probe.mine);
  EXPECT_TRUE(at::equal(embed(tokens, slice(0).embedding, first), expected));
  FakeShard second(1, first.mine);
  EXPECT_TRUE(at::equal(embed(tokens, slice(1).embedding, second), expected));
}

TEST_F(Slices, ParametersKnowTheirNamesAndSplits) {
  const Decoder low = slice(0);
  const ModelFiles files = ModelFiles::open(folder.path());
  Parameters all = parameters_of(low.embedding);
  for (int64_t layer = 0; layer < low.spec.layers; ++layer) {
    for (const Parameter& parameter : parameters_of(low.attention[layer], layer)) all.push_back(parameter);
    for (const Parameter& parameter : parameters_of(low.blocks[layer], layer)) all.push_back(parameter);
  }
  for (const Parameter& parameter : parameters_of(low.head, /*tied=*/false)) all.push_back(parameter);

  std::vector<std::string> names;
  for (const Parameter& parameter : all) {
    names.push_back(parameter.name);
    std::vector<int64_t> global = parameter.value.sizes().vec();
    if (parameter.split != Split::none) global[parameter.split == Split::rows ? 0 : 1] *= 2;
    EXPECT_EQ(global, files.shape(parameter.name)) << parameter.name;
    const bool per_head =
        parameter.name.find("q_norm") != std::string::npos || parameter.name.find("k_norm") != std::string::npos;
    EXPECT_EQ(parameter.partial_gradient, per_head) << parameter.name;
  }
  EXPECT_THAT(names, testing::UnorderedElementsAreArray(files.names()));

  const at::Tensor before = low.attention[1].o.clone();
  for (const Parameter& parameter : all) parameter.value.zero_();
  read_into(all, files, low.placement);
  EXPECT_TRUE(at::equal(low.attention[1].o, before)) << "the value shares its layer's storage";
}

TEST(Positions, RotaryAnglesMatchTheDefinition) {
  ModelSpec spec;
  spec.head_dim = 8;
  spec.rope.theta = 500.0;
  const Positions positions = positions_of(spec, 1000, 3, {.dtype = at::kDouble});
  for (int64_t t = 0; t < 3; ++t)
    for (int64_t i = 0; i < 8; ++i) {
      const double angle = static_cast<double>(1000 + t) * std::pow(500.0, -2.0 * static_cast<double>(i % 4) / 8.0);
      EXPECT_NEAR(positions.cos_TK[t][i].item<double>(), std::cos(angle), 1e-11);
      EXPECT_NEAR(positions.sin_TK[t][i].item<double>(), std::sin(angle), 1e-11);
    }
}

// Loads a small model whose tensor `name` was replaced (or, when undefined, left out); the complaint or "".
std::string complaint_with(const std::string& name, const at::Tensor& replacement) {
  const TemporaryFolder folder;
  write_small_model(folder.path());
  std::vector<std::pair<std::string, at::Tensor>> kept;
  for (auto& [key, value] : test::tensors_of({})) {
    const at::Tensor written = key == name ? replacement : value;
    if (written.defined()) kept.emplace_back(key, written);
  }
  write_safetensors(folder.path() / "model.safetensors", kept);
  try {
    Decoder::open(folder.path());
  } catch (const BadInput& error) {
    return error.what();
  }
  return "";
}

TEST(BadTensors, AreNamed) {
  const std::string q = "model.layers.1.self_attn.q_proj.weight", norm = "model.norm.weight";
  EXPECT_EQ(complaint_with("none", {}), "");
  EXPECT_THAT(complaint_with(q, {}), testing::HasSubstr(q));
  EXPECT_THAT(complaint_with(q, at::zeros({32, 31})),
              testing::AllOf(testing::HasSubstr(q), testing::HasSubstr("[32, 31]"), testing::HasSubstr("[32, 32]")));
  at::Tensor broken = at::ones({32});
  broken[7] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(complaint_with(norm, broken), testing::AllOf(testing::HasSubstr(norm), testing::HasSubstr("not finite")));
}

}  // namespace
}  // namespace flashmorph
