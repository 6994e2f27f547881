#include "distributed/communication/call_log.h"

#include <algorithm>

#include "core/base/clock.h"

namespace flashmorph {

std::string text_of(const CallRecord& call) {
  std::string text = call.operation;
  if (call.dtype != at::ScalarType::Undefined) {
    text += std::string(" of ") + c10::toString(call.dtype) + " [";
    for (size_t i = 0; i < call.sizes.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(call.sizes[i]);
    text += "] (" + std::to_string(call.bytes) + " bytes)";
  }
  if (call.peer >= 0) text += (text.starts_with("receive") ? " from " : " to ") + std::to_string(call.peer);
  return text;
}

size_t CallLog::add_group(std::string name, std::vector<int> members) {
  const std::lock_guard lock(mutex_);
  groups_.push_back({std::move(name), std::move(members)});
  return groups_.size() - 1;
}

void CallLog::begin(size_t group, const char* operation, int peer, const at::Tensor* values) {
  const std::lock_guard lock(mutex_);
  if (depth_++ > 0) return;
  CallRecord& call = ring_[calls_++ % kKept];
  call.group = group;
  call.operation = operation;
  call.peer = peer;
  call.number = peer == kAll ? ++groups_[group].collectives : groups_[group].collectives;
  call.sizes.clear();
  call.dtype = at::ScalarType::Undefined;
  call.bytes = 0;
  if (values != nullptr) {
    call.sizes.assign(values->sizes().begin(), values->sizes().end());
    call.dtype = values->scalar_type();
    call.bytes = static_cast<int64_t>(values->nbytes());
  }
  call.step = step_;
  call.start = std::chrono::steady_clock::now();
  call.seconds = -1.0;
}

void CallLog::end() {
  const std::lock_guard lock(mutex_);
  if (--depth_ > 0) return;
  CallRecord& call = ring_[(calls_ - 1) % kKept];
  call.seconds = seconds_since(call.start);
  seconds_inside_ += call.seconds;
}

int64_t CallLog::goes_on_on_card() {
  const std::lock_guard lock(mutex_);
  on_card_.emplace(++tickets_, ring_[(calls_ - 1) % kKept]);
  return tickets_;
}

void CallLog::done_on_card(int64_t ticket) {
  const std::lock_guard lock(mutex_);
  on_card_.erase(ticket);
}

std::optional<CallRecord> CallLog::on_card() const {
  const std::lock_guard lock(mutex_);
  if (on_card_.empty()) return std::nullopt;
  return on_card_.begin()->second;
}

double CallLog::seconds_inside() const {
  const std::lock_guard lock(mutex_);
  return seconds_inside_;
}

std::vector<CallRecord> CallLog::last() const {
  const std::lock_guard lock(mutex_);
  std::vector<CallRecord> records;
  for (size_t call = calls_ > kKept ? calls_ - kKept : 0; call < calls_; ++call) records.push_back(ring_[call % kKept]);
  return records;
}

std::vector<CallGroup> CallLog::groups() const {
  const std::lock_guard lock(mutex_);
  return groups_;
}

}  // namespace flashmorph
