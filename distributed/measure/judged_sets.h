#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "core/select/selector.h"
#include "distributed/communication/communicator.h"
#include "proto/run.pb.h"

namespace flashmorph {

// A run's judgements: a set is judged once on so many samples, also over several starts of the run (judgements.json).
// Every rank asks for the same sets in the same order.
class JudgedSets {
 public:
  using Layers = std::vector<int64_t>;
  using Work = std::function<proto::JudgedSet(const Layers& full_layers, int64_t samples, bool with_text)>;

  // Reads what is there; without a file nothing is kept. Collective.
  JudgedSets(std::filesystem::path file, Communicator& world, Work judge);

  // From memory, or judged now. When the run is stopped here, what is known is on disk. Collective.
  Judgement judge(const Layers& full_layers, int64_t samples, bool with_text = false);

  void save(double after = 0.0);  // when the last time is so many seconds ago. Collective

  // What the sets would have cost that were asked for since the last call, each of them judged anew.
  proto::JudgeCost take_cost();

 private:
  std::filesystem::path file_;
  Communicator& world_;
  Work judge_;
  std::map<std::pair<Layers, int64_t>, proto::JudgedSet> known_;  // by the samples, too
  double saved_at_ = 0.0;                                         // Unix time
  proto::JudgeCost cost_;
};

}  // namespace flashmorph
