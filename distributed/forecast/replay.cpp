#include "distributed/forecast/replay.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <deque>
#include <map>
#include <ranges>
#include <utility>

namespace flashmorph {
namespace {

int64_t ranks_of(const std::string& group, const MeshShape& mesh) {
  if (group == "tensor") return mesh.tensor;
  if (group == "pipeline") return mesh.pipeline;
  if (group == "pipeline_ends") return std::min<int64_t>(2, mesh.pipeline);
  return group == "data" ? mesh.data : mesh.tensor * mesh.pipeline;
}

// Neighbouring ranks share a host; a group is on one when all that lies between its first and last rank is.
int64_t span_of(const std::string& group, const MeshShape& mesh) {
  if (group == "tensor") return mesh.tensor;
  return group == "data" ? mesh.ranks() : mesh.tensor * mesh.pipeline;
}

// The bytes that cross a rank's link: rings for the collectives.
double on_the_wire(const Meeting& meeting, int64_t ranks) {
  const auto n = static_cast<double>(ranks);
  if (meeting.operation == "all_reduce") return 2.0 * (n - 1.0) / n * meeting.bytes;
  if (meeting.operation == "all_gather") return (n - 1.0) * meeting.bytes;
  if (meeting.operation == "reduce_scatter") return (n - 1.0) / n * meeting.bytes;
  return meeting.bytes;
}

// The pipeline ranks of a step; what other ranks do is alike.
class Replay {
 public:
  Replay(const std::vector<const Trace*>& traces, const MeshShape& mesh, const Card& card, double operator_on_host)
      : mesh_(mesh), card_(card), operator_on_host_(operator_on_host) {
    for (const Trace* trace : traces) ranks_.push_back({.trace = trace});
  }

  StepTime play() {
    for (bool moved = true; std::exchange(moved, false);)
      for (Rank& rank : ranks_)
        while (goes_on(rank)) moved = true;
    StepTime time{0.0, {}};
    for (const Rank& rank : ranks_) {
      TORCH_CHECK(rank.at == rank.trace->size(), "the ranks of a rehearsal wait for each other");
      time.seconds = std::max(time.seconds, rank.card);
    }
    for (const Rank& rank : ranks_) time.waits.push_back(rank.waited + time.seconds - rank.card);
    return time;
  }

 private:
  using Begun = std::pair<std::string, int64_t>;  // a collective: its group and its number there
  struct Rank {
    const Trace* trace;
    size_t at = 0;        // of its stretches
    bool worked = false;  // its kernels are done
    double host = 0.0, card = 0.0, way = 0.0;
    double waited = 0.0;
    std::map<Begun, double> ends;
    std::map<std::string, int64_t> meetings;
  };

  // To the end of its stretch, unless another rank has to be there first.
  bool goes_on(Rank& rank) {
    if (rank.at == rank.trace->size()) return false;
    const auto& [kernels, meeting] = (*rank.trace)[rank.at];
    if (!rank.worked)
      for (const Kernel& kernel : kernels) work(rank, kernel);
    rank.worked = true;
    if (!meet(rank, meeting)) return false;
    rank.worked = false;
    ++rank.at;
    return true;
  }

  void work(Rank& rank, const Kernel& kernel) const {
    rank.host += operator_on_host_;
    rank.card = std::max(rank.card, rank.host);
    const double alone = seconds_of(kernel, card_), beside = std::max(0.0, rank.way - rank.card);
    const double slowed = alone / (1.0 - kTakenByMessages);
    rank.card += slowed <= beside ? slowed : alone + beside * kTakenByMessages;
  }

  // False: others have to come first.
  bool meet(Rank& rank, const Meeting& meeting) {
    switch (meeting.kind) {
      case Meeting::Kind::collective:
        return meet_all(rank, meeting);
      case Meeting::Kind::begun:
        rank.way = std::max(rank.card, rank.way) + seconds_of_message(meeting);
        rank.ends[{meeting.group, meeting.peer}] = rank.way;
        return true;
      case Meeting::Kind::awaited:
        rank.card = std::max(rank.card, rank.ends.extract({meeting.group, meeting.peer}).mapped());
        return true;
      case Meeting::Kind::sent:
        messages_[{&rank - ranks_.data(), meeting.peer}].push_back(rank.card + seconds_of_message(meeting));
        return true;
      case Meeting::Kind::received:
        return receive(rank, messages_[{meeting.peer, &rank - ranks_.data()}]);
      case Meeting::Kind::end:
        return true;
    }
    return true;
  }

  bool receive(Rank& rank, std::deque<double>& messages) const {
    if (is_alone()) return true;
    if (messages.empty()) return false;
    wait(rank, messages.front());
    messages.pop_front();
    return true;
  }

  bool meet_all(Rank& rank, const Meeting& meeting) {
    const bool crosses = meeting.group == "replica" || meeting.group == "pipeline_ends";
    if (crosses && !is_alone()) {
      const size_t members = meeting.group == "replica" ? ranks_.size() : 2;
      std::map<const Rank*, double>& there = arrivals_[{meeting.group, rank.meetings[meeting.group]}];
      there[&rank] = rank.card;
      if (there.size() < members) return false;
      ++rank.meetings[meeting.group];
      wait(rank, std::ranges::max(std::views::values(there)));
    }
    rank.card = rank.way = std::max(rank.card, rank.way) + seconds_of_message(meeting);
    return true;
  }

  static void wait(Rank& rank, double until) {
    rank.waited += std::max(0.0, until - rank.card);
    rank.card = std::max(rank.card, until);
  }

  // Whoever is played alone finds the others there.
  bool is_alone() const { return ranks_.size() == 1; }

  double seconds_of_message(const Meeting& meeting) const {
    const double link = span_of(meeting.group, mesh_) <= card_.cards_a_host ? card_.link_bytes : card_.network_bytes;
    return on_the_wire(meeting, ranks_of(meeting.group, mesh_)) / (link * kLinkShare) + kLatency;
  }

  const MeshShape& mesh_;
  const Card& card_;
  double operator_on_host_;
  std::vector<Rank> ranks_;
  std::map<std::pair<int64_t, int64_t>, std::deque<double>> messages_;  // when they arrive, by sender and receiver
  std::map<Begun, std::map<const Rank*, double>> arrivals_;
};

}  // namespace

StepTime time_of(const std::vector<const Trace*>& traces, const MeshShape& mesh, const Card& card,
                 double operator_on_host) {
  return Replay(traces, mesh, card, operator_on_host).play();
}

StepTime time_of_step(const StageForecast& stage, const Card& card) {
  const double on_host = stage.steps > 0 ? kOperatorOnHost : kOperatorWithoutGraph;
  const auto played = [&](const std::vector<const Trace*>& traces) {
    return time_of(traces, stage.layout.shape, card, on_host);
  };
  const auto alone = [&](const Trace& trace) { return played({&trace}).seconds; };
  std::vector<const Trace*> traces;
  std::vector<double> each;  // of the micro-batches that were not rehearsed
  for (const RankUse& use : stage.ranks) {
    traces.push_back(&use.trace);
    const bool all = use.of_one.empty();
    each.push_back(all ? 0.0 : (alone(use.trace) - alone(use.of_one)) / static_cast<double>(use.micro_batches - 1));
  }
  StepTime time = played(traces);
  const double slowest = std::ranges::max(each);
  const auto others = static_cast<double>(stage.shape.micro_batches - stage.ranks.front().micro_batches);
  time.seconds += others * slowest;
  for (size_t r = 0; r < each.size(); ++r) time.waits[r] += others * (slowest - each[r]);
  return time;
}

}  // namespace flashmorph
