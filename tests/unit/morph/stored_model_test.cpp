// What a folder stores, however it names, joins and declares it: the same model, or a refusal that names it.
#include "core/model/stored_model.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "core/base/bad_input.h"
#include "core/morph/morphable_model.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/tensors.h"

namespace flashmorph {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// A family's golden model, changed and written again.
struct GoldenFolder {
  explicit GoldenFolder(const std::string& family) : golden("tests/golden/families/" + family) {
    config = json::parse(std::ifstream(golden / "config.json"));
    const ModelFiles files = ModelFiles::open(golden);
    for (const std::string& name : files.names()) tensors[name] = files.read(name);
  }

  // Calls change(name) for each tensor's new name.
  template <class Change>
  void rename(Change change) {
    std::map<std::string, at::Tensor> renamed;
    for (const auto& [name, tensor] : tensors) renamed[change(name)] = tensor;
    tensors = std::move(renamed);
  }

  StoredModel open() const {
    std::ofstream(folder.path() / "config.json") << config;
    if (!tensors.empty()) write_safetensors(folder.path() / "model.safetensors", {tensors.begin(), tensors.end()});
    return StoredModel::open(folder.path());
  }

  std::string complaint() const {
    try {
      open();
    } catch (const BadInput& bad) {
      return bad.what();
    }
    return "";
  }

  // How far its logits are from those of transformers for the golden model.
  double error(const StoredModel& model) const {
    const auto file = SafetensorsFile::open(golden / "logits.safetensors");
    Shard alone;
    const MorphableModel decoder = MorphableModel::load(model.weights, model.spec, {.dtype = at::kDouble}, alone);
    const at::Tensor tokens = file->tensor("tokens").unsqueeze(0);
    const at::Tensor hidden = decoder.forward(tokens, Routes(static_cast<size_t>(model.spec.layers), Route::full()),
                                              decoder.positions(0, tokens.size(1)));
    const at::Tensor logits = at::linear(hidden, decoder.head())[0].index_select(0, file->tensor("positions"));
    return test::max_abs_error(file->tensor("logits"), logits);
  }

  std::filesystem::path golden;
  json config;
  std::map<std::string, at::Tensor> tensors;
  test::TemporaryFolder folder;
};

constexpr double kTolerance = 2e-4;  // transformers' are in float32

TEST(StoredModel, IsFoundWithoutThePrefix) {
  GoldenFolder llama("llama3");
  llama.rename([](const std::string& name) { return name.starts_with("model.") ? name.substr(6) : name; });
  const StoredModel model = llama.open();
  EXPECT_LE(llama.error(model), kTolerance);
  EXPECT_THAT(model.notes, IsEmpty());
}

TEST(StoredModel, ExpertsMayBeOneTensor) {
  GoldenFolder sparse("qwen3-moe");
  for (const std::string layer : {"model.layers.0.mlp.experts", "model.layers.2.mlp.experts"}) {
    std::vector<at::Tensor> gate_up, down;
    for (int64_t expert = 0; expert < 8; ++expert) {
      const auto take = [&](const char* projection) {
        return sparse.tensors.extract(layer + "." + std::to_string(expert) + "." + projection + "_proj.weight")
            .mapped();
      };
      const at::Tensor gate = take("gate");
      gate_up.push_back(at::cat({gate, take("up")}));
      down.push_back(take("down"));
    }
    sparse.tensors[layer + ".gate_up_proj"] = at::stack(gate_up);
    sparse.tensors[layer + ".down_proj"] = at::stack(down);
  }
  const StoredModel model = sparse.open();
  EXPECT_LE(sparse.error(model), kTolerance);
  EXPECT_THAT(model.notes, IsEmpty());
  sparse.tensors["model.layers.2.mlp.experts.down_proj"] = at::zeros({8, 16, 32});
  EXPECT_THAT(sparse.complaint(), AllOf(HasSubstr("[8, 16, 32]"), HasSubstr("[8, 32, 16]")));
}

TEST(StoredModel, ASliceOfAJoinedTensorIsItsPart) {
  const GoldenFolder phi("phi3");
  const ModelFiles files = phi.open().weights;
  const std::string layer = "model.layers.1.self_attn.";
  const at::Tensor joined = phi.tensors.at(layer + "qkv_proj.weight");  // 64 rows of queries, 32 of keys, 32 of values
  EXPECT_TRUE(at::equal(files.read_slice(layer + "v_proj.weight", {32, 64}, at::kFloat, 0, 16, 16),
                        joined.slice(0, 112, 128).to(at::kFloat)));
}

TEST(StoredModel, AStoredHeadCountsThoughItShouldBeTied) {
  GoldenFolder llama("llama3");
  llama.config["tie_word_embeddings"] = true;
  const StoredModel model = llama.open();
  EXPECT_FALSE(model.spec.tied_embeddings);
  EXPECT_LE(llama.error(model), kTolerance);
  EXPECT_THAT(model.notes, ElementsAre(HasSubstr("lm_head.weight is stored and differs")));
  EXPECT_FALSE(StoredModel::spec_of(llama.folder.path()).tied_embeddings);
}

TEST(StoredModel, AnEqualHeadIsTied) {
  GoldenFolder llama("llama-linear");
  llama.tensors["lm_head.weight"] = llama.tensors["model.embed_tokens.weight"].clone();
  StoredModel model = llama.open();
  EXPECT_TRUE(model.spec.tied_embeddings);
  EXPECT_THAT(model.notes, IsEmpty());
  llama.tensors.erase("model.embed_tokens.weight");
  model = llama.open();
  EXPECT_LE(llama.error(model), kTolerance) << "the head alone is stored";
  EXPECT_THAT(model.notes, IsEmpty());
}

TEST(StoredModel, WhatNothingUsesIsNamed) {
  GoldenFolder llama("llama3");
  llama.tensors["model.layers.1.self_attn.q_proj.bias"] = at::ones({64});
  llama.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = at::ones({8});
  StoredModel model = llama.open();
  EXPECT_LE(llama.error(model), kTolerance);
  EXPECT_THAT(model.notes, ElementsAre(HasSubstr("nothing uses the stored model.layers.1.self_attn.q_proj.bias")));

  llama.config["num_hidden_layers"] = 1;
  model = llama.open();
  EXPECT_THAT(model.notes, ElementsAre(HasSubstr("model.layers.1.")));
}

TEST(StoredModel, WhatIsMissingIsNamed) {
  GoldenFolder llama("llama3");
  llama.tensors.erase("model.layers.1.mlp.up_proj.weight");
  EXPECT_THAT(llama.complaint(), HasSubstr("has no tensor model.layers.1.mlp.up_proj.weight"));
}

class Quantized : public testing::TestWithParam<const char*> {};

TEST_P(Quantized, IsRefusedByName) {
  GoldenFolder llama("llama3");
  const std::string name = std::string("model.layers.0.mlp.down_proj.") + GetParam();
  llama.tensors[name] = at::ones({});
  EXPECT_THAT(llama.complaint(), AllOf(HasSubstr(name), HasSubstr("quantized")));
}

INSTANTIATE_TEST_SUITE_P(StoredModel, Quantized,
                         testing::Values("weight_scale", "weight_scale_inv", "input_scale", "qweight", "qzeros",
                                         "scales", "weight.absmax", "weight.quant_map",
                                         "weight.quant_state.bitsandbytes__nf4", "SCB", "weight_packed",
                                         "lora_A.weight"));

TEST(StoredModel, FilesThatDeclareAQuantizationAreNamed) {
  GoldenFolder llama("llama3");
  std::ofstream(llama.folder.path() / "hf_quant_config.json") << "{}";
  EXPECT_THAT(llama.complaint(), HasSubstr("hf_quant_config.json: says that the weights are quantized"));
}

TEST(StoredModel, OtherWeightsAreNamed) {
  GoldenFolder llama("llama3");
  llama.tensors.clear();
  EXPECT_THAT(llama.complaint(), HasSubstr("has neither model.safetensors nor"));
  std::ofstream(llama.folder.path() / "pytorch_model.bin") << "x";
  EXPECT_THAT(llama.complaint(), HasSubstr("there is pytorch_model.bin: load it in transformers"));
  std::ofstream(llama.folder.path() / "small.Q4_1.gguf") << "x";
  EXPECT_THAT(llama.complaint(), HasSubstr("small.Q4_1.gguf can be made one by deploy/gguf_to_hf.py"));
}

TEST(StoredModel, GitLfsPointersAreNamed) {
  const std::string pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:a1\nsize 2471645608\n";
  GoldenFolder llama("llama3");
  llama.tensors.clear();
  std::ofstream(llama.folder.path() / "model.safetensors") << pointer;
  EXPECT_THAT(llama.complaint(),
              AllOf(HasSubstr("model.safetensors: is a Git LFS pointer"), HasSubstr("git lfs pull")));
  std::ofstream(llama.folder.path() / "config.json") << pointer;
  EXPECT_THROW(ConfigJson::open(llama.folder.path()), BadInput);
}

// An index counts for which files there are; all their tensors are read.
TEST(StoredModel, AnIndexMayNameATensorThatIsNotThere) {
  GoldenFolder llama("llama3");
  std::vector<std::pair<std::string, at::Tensor>> one, two;
  for (const auto& entry : llama.tensors) (one.size() < two.size() ? one : two).push_back(entry);
  write_safetensors(llama.folder.path() / "one.safetensors", one);
  write_safetensors(llama.folder.path() / "two.safetensors", two);
  const json index = {{"weight_map",
                       {{one[0].first, "one.safetensors"},
                        {two[0].first, "two.safetensors"},
                        {"model.layers.0.self_attn.rotary_emb.inv_freq", "one.safetensors"}}}};
  std::ofstream(llama.folder.path() / "model.safetensors.index.json") << index;
  llama.tensors.clear();
  const StoredModel model = llama.open();
  EXPECT_LE(llama.error(model), kTolerance);
  EXPECT_THAT(model.notes, IsEmpty());
}

}  // namespace
}  // namespace flashmorph
