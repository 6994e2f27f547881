#include "core/tokenizer/byte_pairs.h"

#include <queue>
#include <tuple>

namespace flashmorph {
void BytePairs::add(int32_t left, int32_t right, int32_t merged) {
  merges_.insert_or_assign(pair_key(left, right), Merge{next_rank_++, merged});
}

const BytePairs::Merge* BytePairs::find(int32_t left, int32_t right) const {
  return merges_.find(pair_key(left, right));
}

void BytePairs::merge(std::vector<int32_t>& ids) const {
  constexpr int32_t kGone = -1;
  const auto size = static_cast<int32_t>(ids.size());
  std::vector<int32_t> next(ids.size()), previous(ids.size());  // among the ids that are left
  for (int32_t i = 0; i < size; ++i) {
    next[i] = i + 1;
    previous[i] = i - 1;
  }
  using Candidate = std::tuple<int32_t, int32_t, int32_t>;  // rank, place of the left id, merged id
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
  const auto consider = [&](int32_t left) {
    if (left < 0 || next[left] >= size) return;
    if (const Merge* merge = find(ids[left], ids[next[left]])) candidates.emplace(merge->rank, left, merge->merged);
  };
  for (int32_t i = 0; i < size; ++i) consider(i);

  while (!candidates.empty()) {
    const auto [rank, left, merged] = candidates.top();
    candidates.pop();
    if (ids[left] == kGone || next[left] >= size) continue;
    const int32_t right = next[left];
    const Merge* merge = find(ids[left], ids[right]);
    if (merge == nullptr || merge->merged != merged) continue;  // an earlier merge changed one of the two
    ids[left] = merged;
    ids[right] = kGone;
    next[left] = next[right];
    if (next[left] < size) previous[next[left]] = left;
    consider(previous[left]);
    consider(left);
  }
  std::erase(ids, kGone);
}

}  // namespace flashmorph
