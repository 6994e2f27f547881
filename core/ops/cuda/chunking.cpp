#include "core/ops/cuda/chunking.h"

#include <algorithm>
#include <deque>
#include <mutex>
#include <vector>

#include "core/ops/copied_to.h"
#include "core/ops/cuda/tensors.h"

namespace flashmorph::cuda {
namespace {

// First token of each sequence, and the end of the last.
std::vector<int64_t> sequence_starts(int64_t batch, int64_t tokens, const std::optional<at::Tensor>& documents) {
  std::vector<int64_t> starts;
  if (documents) {
    const at::Tensor offsets = documents->contiguous();
    starts.assign(offsets.const_data_ptr<int64_t>(), offsets.const_data_ptr<int64_t>() + offsets.numel());
  } else {
    for (int64_t row = 0; row <= batch; ++row) starts.push_back(row * tokens);
  }
  return starts;
}

int64_t longest_of(const std::vector<int64_t>& starts) {
  int64_t longest = 0;
  for (size_t s = 0; s + 1 < starts.size(); ++s) longest = std::max(longest, starts[s + 1] - starts[s]);
  return longest;
}

// What a table is made from. A stream's calls run one after the other: what one of them copied is there for the next.
struct Asked {
  c10::cuda::CUDAStream stream;
  int64_t size;
  std::vector<int64_t> sequences;
  bool operator==(const Asked&) const = default;
};

std::shared_ptr<const Runs> made(const Asked& asked) {
  std::vector<int64_t> starts, lengths, first_runs;
  for (size_t s = 0; s + 1 < asked.sequences.size(); ++s) {
    first_runs.push_back(static_cast<int64_t>(starts.size()));
    for (int64_t at = asked.sequences[s]; at < asked.sequences[s + 1]; at += asked.size) {
      starts.push_back(at);
      lengths.push_back(std::min(asked.size, asked.sequences[s + 1] - at));
    }
  }
  const auto runs = static_cast<int64_t>(starts.size()), count = static_cast<int64_t>(first_runs.size());
  first_runs.push_back(runs);
  std::vector<int64_t> all = starts;
  all.insert(all.end(), lengths.begin(), lengths.end());
  all.insert(all.end(), first_runs.begin(), first_runs.end());
  const at::Tensor numbers = copied_to(asked.stream.device(), at::tensor(all, at::kLong));
  const int64_t* const first = numbers.const_data_ptr<int64_t>();
  return std::make_shared<Runs>(
      Runs{numbers, {first, first + runs, first + 2 * runs, runs, asked.size, count}, std::move(first_runs)});
}

// The layers of a batch ask for the same few tables, forwards and backwards: the latest are kept.
std::shared_ptr<const Runs> runs_of(std::vector<int64_t> sequences, int64_t size, at::Device device) {
  constexpr size_t kKept = 8;
  struct Latest {
    std::mutex mutex;
    std::deque<std::pair<Asked, std::shared_ptr<const Runs>>> tables;
  };
  static Latest& latest = *new Latest;  // not destroyed: at the process's end the device is gone before it
  const Asked asked{c10::cuda::getCurrentCUDAStream(device.index()), size, std::move(sequences)};
  const std::lock_guard lock(latest.mutex);
  for (const auto& [known, runs] : latest.tables)
    if (known == asked) return runs;
  latest.tables.emplace_front(asked, made(asked));
  if (latest.tables.size() > kKept) latest.tables.pop_back();
  return latest.tables.front().second;
}

}  // namespace

int64_t longest_sequence(const at::Tensor& like_BTHD, const std::optional<at::Tensor>& documents_S1) {
  return longest_of(sequence_starts(like_BTHD.size(0), like_BTHD.size(1), documents_S1));
}

Chunking::Chunking(const at::Tensor& like_BTHD, int64_t chunk, const std::optional<at::Tensor>& documents_S1, bool fit)
    : batch_(like_BTHD.size(0)), tokens_(like_BTHD.size(1)) {
  std::vector<int64_t> sequences = sequence_starts(batch_, tokens_, documents_S1);
  const int64_t size = fit ? std::min(chunk, (longest_of(sequences) + kTile - 1) / kTile * kTile) : chunk;
  runs_ = runs_of(std::move(sequences), size, like_BTHD.device());
}

Segments::Segments(const Chunking& chunks, int64_t most, at::Device device)
    : runs_(runs_of(chunks.first_chunks(), most, device)) {}

void Chunking::pack_into(const at::Tensor& x_BTHD, const double* log_decay_H, Decay decay, at::Tensor* plain,
                         at::Tensor* scaled) const {
  const int64_t heads = x_BTHD.size(2), width = x_BTHD.size(3);
  const bool one_row = x_BTHD.stride(3) == 1 && (batch_ == 1 || x_BTHD.stride(0) == tokens_ * x_BTHD.stride(1));
  const at::Tensor x = one_row ? x_BTHD : x_BTHD.contiguous();
  for (at::Tensor* out : {plain, scaled})
    if (out != nullptr) *out = at::empty({table().chunks, heads, table().size, width}, x.options());
  pack(element_of(x), x.const_data_ptr(), x.stride(1), x.stride(2), heads, width, table(), log_decay_H, decay,
       plain != nullptr ? plain->data_ptr() : nullptr, scaled != nullptr ? scaled->data_ptr() : nullptr, stream_of(x));
}

at::Tensor Chunking::packed(const at::Tensor& x_BTHD) const {
  at::Tensor plain;
  pack_into(x_BTHD, nullptr, Decay::none, &plain, nullptr);
  return plain;
}

std::pair<at::Tensor, at::Tensor> Chunking::packed(const at::Tensor& x_BTHD, const at::Tensor& log_decay_H,
                                                   Decay decay) const {
  at::Tensor plain, scaled;
  pack_into(x_BTHD, log_decay_H.const_data_ptr<double>(), decay, &plain, &scaled);
  return {plain, scaled};
}

at::Tensor Chunking::unpacked(const at::Tensor& x_NHCD) const {
  const at::Tensor x = x_NHCD.contiguous();
  at::Tensor y = at::empty({batch_, tokens_, x.size(1), x.size(3)}, x.options());
  unpack(element_of(x), x.const_data_ptr(), x.size(1), x.size(3), table(), y.data_ptr(), stream_of(x));
  return y;
}

}  // namespace flashmorph::cuda
