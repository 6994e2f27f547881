#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "core/morph/morphable_model.h"
#include "distributed/parallel/mesh.h"
#include "distributed/stages/training.h"
#include "proto/run.pb.h"

namespace flashmorph {

class GateDescent;

struct MovedGates {
  std::vector<double> alpha;  // of all layers
  double price = 0.0;         // of a gate: the lambda that would hold the gates where they are
};

// One gate a layer, alpha in [0, 1]: 1 is full attention, 0 linear. A pipeline rank trains those of its own layers, the
// same on all its data and tensor ranks; how they moved is known to every rank.
class Gates {
 public:
  // Open: all 1, where the mixture is the teacher. Or all at another value.
  Gates(const MorphableModel& model, Mesh& mesh, double at = 1.0);

  // [own layers] float64, on the host: what an optimizer moves.
  const at::Tensor& alpha() const { return alpha_l_; }
  void clamp();  // into [0, 1]
  void set(const std::vector<double>& of_all_layers);

  // A copy where the model is, for a micro-batch of its own: its gradient stays apart from the others'.
  at::Tensor leaf() const;
  Routes mixing(const at::Tensor& leaf) const;  // of this rank's layers

  // Of all layers, in order. Collective.
  std::vector<double> of_all_layers() const { return of_all_layers(alpha_l_); }
  std::vector<double> of_all_layers(const at::Tensor& own_l) const;  // one number of each of this rank's gates

  Trained trained_by(GateDescent& descent);

  // How they moved: gates.json, but for the method, the gates that count, and where it came from.
  const proto::GateSnapshot& history() const { return history_; }
  const proto::GateStep& last() const { return *history_.history().rbegin(); }
  void record(const StepResult& step, const MovedGates& moved, double cost);

 private:
  const MorphableModel& model_;
  Mesh& mesh_;
  at::Tensor alpha_l_;
  proto::GateSnapshot history_;
};

// A mixed route for each gate of alpha_l, a leaf where the model is, with their numbers from the host, so that nobody
// waits for a device to read them.
Routes mixing_routes(const at::Tensor& alpha_l, const at::Tensor& on_host_l);

}  // namespace flashmorph
