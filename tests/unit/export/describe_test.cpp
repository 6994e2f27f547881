#include "core/export/describe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/bad_input.h"
#include "core/export/model_folder.h"
#include "core/export/round_trip.h"
#include "tests/support/temporary_folder.h"
#include "tests/unit/export/small_hybrid.h"

namespace flashmorph {
namespace {

using test::TemporaryFolder;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;

TEST(Describe, ACheckpoint) {
  const ModelDescription model = describe("tests/golden/families/qwen3-moe");
  EXPECT_EQ(model.format, "checkpoint");
  EXPECT_EQ(model.hybrid.model.model_type, "qwen3_moe");
  EXPECT_THAT(model.hybrid.full, ElementsAre(true, true, true));
  EXPECT_THAT(model.parameters_as, ElementsAre(Pair("BFloat16", model.parameters)));
  EXPECT_EQ(model.bytes, 2 * model.parameters);
  EXPECT_EQ(model.kv_bytes_per_token, 3 * 2 * 2 * 16 * 2);  // layers, keys and values, kv heads, head size, bytes
  EXPECT_EQ(model.state_bytes, 0);
}

TEST(Describe, AnExport) {
  const TemporaryFolder teacher, target;
  const ExportContent content = test::small_hybrid(teacher.path());
  export_hugging_face(target.path() / "export", export_format("auto", content.hybrid.model, content.hybrid.mixer),
                      content);
  const ModelDescription model = describe(target.path() / "export");
  EXPECT_EQ(model.format, "flashmorph");
  EXPECT_EQ(model.hybrid.model.model_type, "qwen3");
  EXPECT_EQ(model.hybrid.mixer.kind, "lightning");
  EXPECT_THAT(model.hybrid.full, ElementsAre(false, true, false));
  EXPECT_EQ(model.kv_bytes_per_token, 2 * 2 * 8 * 4);
  EXPECT_EQ(model.full_kv_bytes_per_token, 3 * 2 * 2 * 8 * 4);
  EXPECT_EQ(model.state_bytes, 2 * 4 * 8 * 8 * 4);  // layers, heads, head size squared, bytes
  EXPECT_EQ(model.cache_bytes(1000), 1000 * model.kv_bytes_per_token + model.state_bytes);
}

// The complaint about an export whose config.json is changed by `change`, or "".
template <class Change>
std::string complaint_about_export(Change change) {
  const TemporaryFolder teacher, target;
  const ExportContent content = test::small_hybrid(teacher.path());
  const std::filesystem::path folder = target.path() / "export";
  export_hugging_face(folder, export_format("flashmorph", content.hybrid.model, content.hybrid.mixer), content);
  nlohmann::json config = nlohmann::json::parse(std::ifstream(folder / "config.json"));
  change(config);
  std::ofstream(folder / "config.json") << config.dump();
  try {
    describe(folder);
  } catch (const BadInput& refused) {
    return refused.what();
  }
  return "";
}

TEST(Describe, RefusesABrokenExport) {
  using nlohmann::json;
  EXPECT_EQ(complaint_about_export([](json&) {}), "");
  EXPECT_THAT(complaint_about_export([](json& c) { c["layer_types"].erase(0); }), HasSubstr("lists 2 layers of 3"));
  EXPECT_THAT(complaint_about_export([](json& c) { c["layer_types"][0] = "mamba"; }), HasSubstr("holds 'mamba'"));
  EXPECT_THAT(complaint_about_export([](json& c) { c["layer_types"] = 3; }), HasSubstr("a list of strings"));
  EXPECT_THAT(complaint_about_export([](json& c) { c.erase("flashmorph"); }), HasSubstr("model_type"));
  EXPECT_THAT(complaint_about_export([](json& c) { c["flashmorph"] = "lightning"; }), HasSubstr("flashmorph"));
  EXPECT_THAT(complaint_about_export([](json& c) { c["flashmorph"]["teacher"] = "flashmorph"; }),
              HasSubstr("model_type"));
  EXPECT_THAT(complaint_about_export([](json& c) { c["flashmorph"]["chunk"] = -1; }), HasSubstr("flashmorph.chunk"));
  EXPECT_THAT(complaint_about_export([](json& c) { c["hidden_size"] = nullptr; }), HasSubstr("hidden_size"));
}

// What runs of a folder is what was exported, in every format; a checkpoint is a model whose layers are all full.
TEST(ModelFolder, RunsAsWhatWasExported) {
  const c10::NoGradGuard no_gradient;
  Shard whole;
  const auto logits = [&](const std::filesystem::path& folder, const at::Tensor& tokens_T) {
    const ModelFolder opened = ModelFolder::open(folder);
    const MorphableModel model = opened.load({}, whole, {0, opened.hybrid.model.layers}, PipelinePeers::none());
    return at::matmul(model.forward(tokens_T.unsqueeze(0), opened.routes(), model.positions(0, tokens_T.size(0)))[0],
                      model.head().t());
  };
  for (const auto& [mixer, format] : {std::pair{"lightning", "flashmorph"},
                                      {"gla", "flashmorph"},
                                      {"gated_delta_net", "flashmorph"},
                                      {"gated_delta_net", "qwen3_5_text"}}) {
    const TemporaryFolder teacher, target;
    MixerSection section;
    section.kind = mixer;
    const ExportContent content = test::small_hybrid(teacher.path(), section);
    export_hugging_face(target.path() / "export", export_format(format, content.hybrid.model, section), content);
    EXPECT_EQ(ModelFolder::open(target.path() / "export").format, format);
    const at::Tensor tokens_T = at::arange(37, at::kLong) * 11 % content.hybrid.model.vocabulary;
    const auto error = [&](const std::filesystem::path& folder, const HybridSpec& hybrid, const ModelFiles& own) {
      return (logits(folder, tokens_T) - hybrid_logits(hybrid, own, tokens_T, at::kFloat)).abs().max().item<double>();
    };
    EXPECT_LE(error(target.path() / "export", content.hybrid, ModelFiles::of(teacher.path(), content.tensors)), 1e-4)
        << mixer << " as " << format;
    const HybridSpec all_full{.model = content.hybrid.model, .mixer = {}, .full = {true, true, true}};
    EXPECT_LE(error(teacher.path(), all_full, ModelFiles::open(teacher.path())), 1e-5);
  }
}

TEST(Describe, RefusesAFolderThatIsNoModel) {
  const TemporaryFolder empty;
  EXPECT_THROW(describe(empty.path()), BadInput);
  EXPECT_THROW(describe(empty.path() / "none"), BadInput);
  EXPECT_THROW(describe("tests/data/text/tinyshakespeare.txt"), BadInput);
}

}  // namespace
}  // namespace flashmorph
