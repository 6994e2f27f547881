#include "distributed/parallel/on_all_ranks.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <exception>
#include <string>
#include <vector>

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

constexpr char kFieldEnd = '\x1f';
constexpr char kFaultEnd = '\x1e';

std::string packed(const std::vector<Fault>& faults) {
  std::string text;
  for (const Fault& fault : faults) text += fault.where + kFieldEnd + fault.what + kFaultEnd;
  return text;
}

std::vector<Fault> unpacked(const std::string& text) {
  std::vector<Fault> faults;
  for (size_t at = 0; at < text.size();) {
    const size_t field = text.find(kFieldEnd, at), end = text.find(kFaultEnd, field);
    faults.push_back({text.substr(at, field - at), text.substr(field + 1, end - field - 1)});
    at = end + 1;
  }
  return faults;
}

}  // namespace

void on_all_ranks(Communicator& world, const std::function<void()>& work) {
  enum Outcome : int64_t { fine, bad_input, stopped, failure };
  Outcome outcome = fine;
  std::string message;
  try {
    work();
  } catch (const BadInput& fault) {
    outcome = bad_input;
    message = packed(fault.faults());
  } catch (const Stopped& asked) {
    outcome = stopped;
    message = asked.what();
  } catch (const std::exception& error) {
    outcome = failure;
    message = error.what();
  }
  const at::Tensor outcomes = world.all_gather(at::full({1}, static_cast<int64_t>(outcome), at::kLong)).flatten();
  for (int rank = 0; rank < world.size(); ++rank) {
    const auto theirs = outcomes[rank].item<int64_t>();
    if (theirs == fine) continue;
    message = world.broadcast_text(message, rank);
    if (theirs == bad_input) throw BadInput(unpacked(message));
    if (theirs == stopped) throw Stopped(message);
    throw CommonFailure("rank " + std::to_string(rank) + ": " + message);
  }
}

std::vector<std::string> gather_text(const std::string& text, Communicator& world) {
  const at::Tensor lengths = world.all_gather(at::full({}, static_cast<int64_t>(text.size()), at::kLong));
  at::Tensor padded = at::zeros({lengths.max().item<int64_t>()}, at::kByte);
  std::copy(text.begin(), text.end(), static_cast<char*>(padded.data_ptr()));
  const at::Tensor all = world.all_gather(padded);
  std::vector<std::string> texts;
  for (int64_t rank = 0; rank < world.size(); ++rank)
    texts.emplace_back(static_cast<const char*>(all[rank].data_ptr()),
                       static_cast<size_t>(lengths[rank].item<int64_t>()));
  return texts;
}

}  // namespace flashmorph
