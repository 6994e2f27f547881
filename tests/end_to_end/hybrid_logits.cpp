// hybrid_logits TEACHER EXPORT OUTPUT [GREEDY [DTYPE]]: this program's own logits of an exported hybrid on some tokens,
// and the GREEDY tokens (32) that it would write next, computed in DTYPE (float32, or float64), for test_export.py to
// compare with transformers.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "core/export/export_format.h"
#include "core/model/stored_model.h"
#include "core/morph/morphable_model.h"
#include "core/ops/vocabulary_loss.h"

using namespace flashmorph;

int main(int argc, char** argv) {
  TORCH_CHECK(argc >= 4 && argc <= 6, "usage: hybrid_logits TEACHER EXPORT OUTPUT [GREEDY [DTYPE]]");
  const c10::NoGradGuard no_gradient;
  const std::filesystem::path teacher = argv[1], exported = argv[2];
  const int64_t to_write = argc > 4 ? std::stoll(argv[4]) : 32;
  const Placement placement{.dtype = argc > 5 && std::string(argv[5]) == "float64" ? at::kDouble : at::kFloat};
  const ConfigJson config = ConfigJson::open(exported);
  const ExportFormat* format = format_of(config);
  TORCH_CHECK(format != nullptr, argv[2], " is no export");
  const HybridSpec spec = format->hybrid_of(config);
  Routes routes;
  for (const bool full : spec.full) routes.push_back(full ? Route::full() : Route::linear());

  Shard whole;
  const StoredModel stored = StoredModel::open(teacher);
  MorphableModel model = MorphableModel::load(stored.weights, stored.spec, placement, whole);
  model.add_branches(spec.mixer, 1);
  const MorphableModel hybrid = model.hybrid(routes);
  read_into(hybrid.all_parameters(), format->own_tensors(ModelFiles::open(exported), spec), placement);

  constexpr int64_t kTokens = 300;
  const at::Tensor tokens = at::arange(kTokens, at::kLong) * 37 % (spec.model.vocabulary - 3);
  std::vector<LayerCache> caches(static_cast<size_t>(model.layer_count()));
  at::Tensor hidden = hybrid.forward(tokens.unsqueeze(0), routes, hybrid.positions(0, kTokens), &caches).squeeze(0);
  const at::Tensor logits = at::mm(hidden, hybrid.head().t());
  std::vector<at::Tensor> greedy;
  for (int64_t t = 0; t < to_write; ++t) {
    greedy.push_back(greedy_tokens(hidden.narrow(0, hidden.size(0) - 1, 1), hybrid.head(), whole));
    hidden = hybrid.forward(greedy.back().unsqueeze(0), routes, hybrid.positions(kTokens + t, 1), &caches).squeeze(0);
  }
  write_safetensors(argv[3], {{"tokens", tokens}, {"logits", logits}, {"greedy", at::cat(greedy)}});
}
