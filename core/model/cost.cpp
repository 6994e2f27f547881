#include "core/model/cost.h"

namespace flashmorph {

double layer_cost(const ModelSpec& spec, int64_t layer, int64_t length) {
  const auto hidden = static_cast<double>(spec.hidden), queries = static_cast<double>(spec.heads * spec.head_dim),
             keys = static_cast<double>(spec.kv_heads * spec.head_dim);
  const double projections = hidden * (2.0 * queries + 2.0 * keys), scores = queries * static_cast<double>(length);
  const int64_t intermediate =
      spec.is_sparse(layer) ? spec.experts.per_token * spec.experts.intermediate : spec.intermediate;
  return projections + scores + 3.0 * hidden * static_cast<double>(intermediate);
}

double embedding_cost(const ModelSpec& spec) { return static_cast<double>(spec.hidden); }

double head_cost(const ModelSpec& spec) { return static_cast<double>(spec.hidden * spec.vocabulary); }

}  // namespace flashmorph
