#include "distributed/parallel/zero.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "distributed/parallel/gradients.h"

namespace flashmorph {

DataShardedAdamW::DataShardedAdamW(std::vector<at::Tensor> parameters, const AdamW::Options& options,
                                   Communicator& data)
    : parameters_(std::move(parameters)),
      data_(data),
      partition_(partition_of(elements_of(parameters_), data)),
      optimizer_({}, options) {
  const int64_t first = data.rank() * partition_, last = first + partition_;
  int64_t start = 0;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const int64_t end = start + parameters_[i].numel(), from = std::max(first, start), to = std::min(last, end);
    if (from < to) pieces_.push_back({i, from - start, to - from});
    start = end;
  }
  for (const Piece& piece : pieces_) own_elements_ += piece.count;
  optimizer_ = AdamW(own_pieces(parameters_), options);
}

void DataShardedAdamW::step(const std::vector<at::Tensor>& gradients, double learning_rate) {
  TORCH_CHECK(gradients.size() == parameters_.size(), gradients.size(), " gradients for ", parameters_.size(),
              " parameters");
  if (!pieces_.empty()) optimizer_.step(own_pieces(gradients), learning_rate);
  gather();
}

std::vector<std::pair<DataShardedAdamW::Piece, AdamW::State>> DataShardedAdamW::states() const {
  const std::vector<AdamW::State> own = optimizer_.states();
  std::vector<std::pair<Piece, AdamW::State>> states;
  for (size_t i = 0; i < pieces_.size(); ++i) states.emplace_back(pieces_[i], own[i]);
  return states;
}

void DataShardedAdamW::resume_at(int64_t steps) {
  optimizer_.resume_at(steps);
  gather();
}

std::vector<at::Tensor> DataShardedAdamW::own_pieces(const std::vector<at::Tensor>& whole) const {
  std::vector<at::Tensor> own;
  for (const Piece& piece : pieces_)
    own.push_back(whole[piece.parameter].detach().view({-1}).narrow(0, piece.first, piece.count));
  return own;
}

void DataShardedAdamW::gather() {
  if (parameters_.empty() || data_.size() == 1) return;
  const c10::NoGradGuard no_gradient;
  at::Tensor own = at::zeros({partition_}, parameters_[0].options().requires_grad(false));
  int64_t filled = 0;
  for (const at::Tensor& piece : own_pieces(parameters_)) {
    own.narrow(0, filled, piece.numel()).copy_(piece);
    filled += piece.numel();
  }
  const at::Tensor all = data_.all_gather(own).flatten();
  int64_t start = 0;
  for (const at::Tensor& parameter : parameters_) {
    parameter.detach().copy_(all.narrow(0, start, parameter.numel()).view_as(parameter));
    start += parameter.numel();
  }
}

}  // namespace flashmorph
