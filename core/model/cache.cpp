#include "core/model/cache.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace flashmorph {
namespace {

void make_room(at::Tensor& kept_BPGK, const at::Tensor& like_BTGK, int64_t tokens) {
  if (kept_BPGK.defined() && kept_BPGK.size(1) >= tokens) return;
  const int64_t before = kept_BPGK.defined() ? kept_BPGK.size(1) : 0;
  at::Tensor larger = at::zeros({like_BTGK.size(0), std::max(tokens, 2 * before), like_BTGK.size(2), like_BTGK.size(3)},
                                like_BTGK.options());
  if (before > 0) larger.narrow(1, 0, before).copy_(kept_BPGK);
  kept_BPGK = larger;
}

}  // namespace

void LayerCache::append(const at::Tensor& k_BTGK, const at::Tensor& v_BTGK, const Positions& positions) {
  const int64_t tokens = k_BTGK.size(1), last = positions.start + tokens;
  for (const auto& [kept, now] : {std::pair{&keys_BPGK, &k_BTGK}, {&values_BPGK, &v_BTGK}}) {
    make_room(*kept, *now, last);
    if (positions.rows)
      kept->index_put_({positions.rows->row_B, positions.rows->start_B}, now->select(1, 0));
    else
      kept->narrow(1, positions.start, tokens).copy_(*now);
  }
}

}  // namespace flashmorph
