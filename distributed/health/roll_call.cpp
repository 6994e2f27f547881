#include "distributed/health/roll_call.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <tuple>

#include "core/base/clock.h"
#include "core/io/atomic_file.h"

namespace flashmorph {
namespace {

std::string listed(const std::vector<int>& ranks) {
  return fmt::format("{} {}", ranks.size() == 1 ? "rank" : "ranks", fmt::join(ranks, ", "));
}

std::string place_of(const RankAnswer::Call& call) {
  return fmt::format("number {} of group {} ({})", call.number, call.name, listed(call.members));
}

nlohmann::ordered_json json_of(const RankAnswer::Call& call) {
  return {{"group", call.group}, {"name", call.name},          {"members", call.members},
          {"call", call.call},   {"message", call.is_message}, {"number", call.number},
          {"step", call.step},   {"started", call.started},    {"seconds", call.seconds}};
}

nlohmann::ordered_json json_of(const RankAnswer& answer) {
  nlohmann::ordered_json json = {
      {"rank", answer.rank}, {"host", answer.host}, {"phase", answer.phase}, {"seconds", answer.seconds}};
  json["calls"] = nlohmann::ordered_json::array();
  for (const RankAnswer::Call& call : answer.calls) json["calls"].push_back(json_of(call));
  if (answer.on_card) json["on_card"] = json_of(*answer.on_card);
  return json;
}

RankAnswer::Call call_of(const nlohmann::json& call) {
  return {call.at("group"),  call.at("name"), call.at("members"), call.at("call"),   call.at("message"),
          call.at("number"), call.at("step"), call.at("started"), call.at("seconds")};
}

RankAnswer answer_of(const nlohmann::json& json) {
  RankAnswer answer{json.at("rank"), json.at("host"), json.at("phase"), json.at("seconds"), {}, {}};
  for (const nlohmann::json& call : json.at("calls")) answer.calls.push_back(call_of(call));
  if (json.contains("on_card")) answer.on_card = call_of(json.at("on_card"));
  return answer;
}

std::filesystem::path file_of(const std::filesystem::path& folder, size_t rank) {
  return folder / fmt::format("rank-{}.json", rank);
}

std::filesystem::path call_file(const std::filesystem::path& folder) { return folder / "roll-call"; }

}  // namespace

const RankAnswer::Call* RankAnswer::waits_in() const {
  if (on_card) return &*on_card;
  return !calls.empty() && calls.back().seconds < 0.0 ? &calls.back() : nullptr;
}

void add_calls(const CallLog& log, RankAnswer& answer) {
  const std::vector<CallGroup> groups = log.groups();
  const double now = unix_time();
  const auto told = [&](const CallRecord& record) {
    const CallGroup& group = groups.at(record.group);
    return RankAnswer::Call{record.group,        group.name,    group.members, text_of(record),
                            record.peer != kAll, record.number, record.step,   now - seconds_since(record.start),
                            record.seconds};
  };
  for (const CallRecord& record : log.last()) answer.calls.push_back(told(record));
  if (const std::optional<CallRecord> record = log.on_card()) answer.on_card = told(*record);
}

RollCall::RollCall(std::filesystem::path folder, std::vector<std::string> hosts)
    : folder_(std::move(folder)), hosts_(std::move(hosts)) {}

void RollCall::clear() const {
  std::filesystem::remove_all(folder_);
  std::filesystem::create_directories(folder_);
}

bool RollCall::call() const {
  const int file = open(call_file(folder_).c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
  if (file >= 0) close(file);
  return file >= 0 || errno != EEXIST;  // where nothing can be written, every rank speaks
}

bool RollCall::all_answered() const {
  std::error_code ignored;
  for (size_t rank = 0; rank < hosts_.size(); ++rank)
    if (!std::filesystem::exists(file_of(folder_, rank), ignored)) return false;
  return true;
}

bool RollCall::was_called() const {
  std::error_code ignored;
  return std::filesystem::exists(call_file(folder_), ignored);
}

void RollCall::answer(const RankAnswer& answer) const {
  write_file_atomically(file_of(folder_, static_cast<size_t>(answer.rank)), json_of(answer).dump(1) + "\n");
}

std::vector<std::optional<RankAnswer>> RollCall::answers() const {
  std::vector<std::optional<RankAnswer>> answers(hosts_.size());
  for (size_t rank = 0; rank < hosts_.size(); ++rank)
    if (std::ifstream file(file_of(folder_, rank)); file) answers[rank] = answer_of(nlohmann::json::parse(file));
  return answers;
}

std::string first_divergence(const std::vector<std::optional<RankAnswer>>& answers) {
  struct Called {
    std::map<std::string, std::vector<int>> ranks;  // by what they called
    double time = 0.0;
    RankAnswer::Call place;
  };
  std::map<std::tuple<size_t, std::vector<int>, int64_t>, Called> collectives;
  for (const std::optional<RankAnswer>& answer : answers) {
    if (!answer) continue;
    for (const RankAnswer::Call& call : answer->calls) {
      if (call.is_message) continue;
      Called& called = collectives[{call.group, call.members, call.number}];
      called.time = called.ranks.empty() ? call.started : std::min(called.time, call.started);
      called.ranks[call.call].push_back(answer->rank);
      called.place = call;
    }
  }
  const Called* first = nullptr;
  for (const auto& [place, called] : collectives)
    if (called.ranks.size() > 1 && (first == nullptr || called.time < first->time)) first = &called;
  if (first == nullptr) return "";

  std::vector<std::pair<std::string, std::vector<int>>> sides(first->ranks.begin(), first->ranks.end());
  std::ranges::stable_sort(sides, {},
                           [](const auto& side) { return side.second.size(); });  // the odd one out comes first
  std::string text;
  for (const auto& [call, ranks] : sides)
    text += text.empty() ? fmt::format("{} called {} as {}", listed(ranks), call, place_of(first->place))
                         : fmt::format("; {} called {}", listed(ranks), call);
  return text;
}

std::string who_is_missing(const std::vector<std::optional<RankAnswer>>& answers,
                           const std::vector<std::string>& hosts) {
  std::string text;
  std::vector<int> waiting;
  for (size_t rank = 0; rank < answers.size(); ++rank) {
    const std::optional<RankAnswer>& answer = answers[rank];
    if (answer && answer->waits_in() != nullptr) {
      waiting.push_back(static_cast<int>(rank));
      continue;
    }
    text += fmt::format("  missing: rank {} on {} ", rank, hosts[rank]);
    if (!answer) {
      text += "gives no answer: it is dead or stopped\n";
    } else if (answer->calls.empty()) {
      text += fmt::format("has been in {} for {:.1f} s and in no collective yet\n", answer->phase, answer->seconds);
    } else {
      text += fmt::format("is in no collective; it has been in {} for {:.1f} s, and its last was {}, {}\n",
                          answer->phase, answer->seconds, answer->calls.back().call, place_of(answer->calls.back()));
    }
  }
  for (const int rank : waiting) {
    const RankAnswer::Call& call = *answers[rank]->waits_in();
    text += fmt::format("  waiting: rank {} on {}{} in {}, {}\n", rank, hosts[rank],
                        answers[rank]->on_card ? ", its card," : "", call.call, place_of(call));
  }
  return text;
}

}  // namespace flashmorph
