#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "core/morph/morphable_model.h"
#include "core/train/adamw.h"
#include "distributed/parallel/mesh.h"
#include "distributed/stages/training.h"
#include "proto/run.pb.h"

namespace flashmorph {

// One gate a layer, alpha in [0, 1]: 1 is full attention, 0 linear. A pipeline rank trains those of its own layers, the
// same on all its data and tensor ranks; how they moved is known to every rank.
class Gates {
 public:
  // Open: all 1, where the mixture is the teacher. Or all at another value.
  Gates(const MorphableModel& model, Mesh& mesh, double at = 1.0);

  // [own layers] float64, on the host: what an optimizer moves.
  const at::Tensor& alpha() const { return alpha_l_; }
  void clamp();  // into [0, 1]

  // A copy where the model is, for a micro-batch of its own: its gradient stays apart from the others'.
  at::Tensor leaf() const;
  Routes mixing(const at::Tensor& leaf) const;  // of this rank's layers

  // Of all layers, in order. Collective.
  std::vector<double> of_all_layers() const;
  void record(int64_t step, double loss, const std::vector<double>& of_all_layers);  // steps done

  Trained trained_by(AdamW& optimizer);  // the optimizer of alpha(), its only parameter

  // gates.json, but for the method and where it came from: all gates after the last recorded step, and before.
  proto::GateSnapshot snapshot() const;

 private:
  const MorphableModel& model_;
  Mesh& mesh_;
  at::Tensor alpha_l_;
  proto::GateSnapshot moved_;
};

// A mixed route for each gate of alpha_l, a leaf where the model is, with their numbers from the host, so that nobody
// waits for a device to read them.
Routes mixing_routes(const at::Tensor& alpha_l, const at::Tensor& on_host_l);

}  // namespace flashmorph
