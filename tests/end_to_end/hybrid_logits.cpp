// hybrid_logits TEACHER EXPORT OUTPUT: this program's own logits of an exported hybrid on held-out tokens, and the
// tokens it would write next, for test_export.py to compare with transformers.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "core/io/checkpoint.h"
#include "core/morph/morphable_model.h"
#include "core/ops/vocabulary_loss.h"

using namespace flashmorph;

int main(int argc, char** argv) {
  TORCH_CHECK(argc == 4, "usage: hybrid_logits TEACHER EXPORT OUTPUT");
  const c10::NoGradGuard no_gradient;
  const std::filesystem::path teacher = argv[1], exported = argv[2];
  const auto config = nlohmann::json::parse(std::ifstream(exported / "config.json"));
  Routes routes;
  for (const auto& type : config["layer_types"])
    routes.push_back(type == "full_attention" ? Route::full() : Route::linear());

  Shard whole;
  MorphableModel model =
      MorphableModel::load(Checkpoint::open(teacher), ModelSpec::open(teacher), Placement{}, whole);
  model.add_branches(MixerSection{}, 1);
  const MorphableModel hybrid = model.hybrid(routes);
  read_into(hybrid.all_parameters(), Checkpoint::open(exported), Placement{});

  constexpr int64_t kTokens = 300, kGreedy = 32;
  const at::Tensor tokens = at::arange(kTokens, at::kLong) * 37 % 1021;
  std::vector<LayerCache> caches(static_cast<size_t>(model.layer_count()));
  at::Tensor hidden = hybrid.forward(tokens.unsqueeze(0), routes, hybrid.positions(0, kTokens), &caches).squeeze(0);
  const at::Tensor logits = at::mm(hidden, hybrid.head().t());
  std::vector<at::Tensor> greedy;
  for (int64_t t = 0; t < kGreedy; ++t) {
    greedy.push_back(greedy_tokens(hidden.narrow(0, hidden.size(0) - 1, 1), hybrid.head(), whole));
    hidden = hybrid.forward(greedy.back().unsqueeze(0), routes, hybrid.positions(kTokens + t, 1), &caches).squeeze(0);
  }
  write_safetensors(argv[3], {{"tokens", tokens}, {"logits", logits}, {"greedy", at::cat(greedy)}});
}
