#pragma once

#include <ATen/ATen.h>

#include <filesystem>
#include <string>
#include <vector>

#include "distributed/checkpoint/stage_checkpoints.h"
#include "tests/support/temporary_folder.h"

namespace flashmorph::test {

// Two tensors whose values say at which step they are, saved by one rank.
struct Trained {
  at::Tensor weights = at::zeros({6, 4}, at::kDouble);
  at::Tensor bias = at::zeros({300, 1}, at::kFloat);

  void become(int64_t step) {
    weights.copy_(at::arange(24, at::kDouble).view({6, 4}) * static_cast<double>(step));
    bias.fill_(static_cast<double>(step) / 3.0);
  }
  bool is_at(int64_t step) const {
    Trained expected;
    expected.become(step);
    return weights.equal(expected.weights) && bias.equal(expected.bias);
  }
  Regions regions() const {
    return {{"weights", {6, 4}, {0, 0, 6, 4}, weights}, {"bias", {300}, {0, 0, 300, 1}, bias}};
  }
};

inline proto::StageProgress progress_at(int64_t step) {
  proto::StageProgress progress;
  progress.set_step(step);
  progress.set_loss(1.0 / static_cast<double>(step));
  return progress;
}

// One rank's stage "distill uniform" with its checkpoints in a folder, and what was told of them.
class SmallStage : public CheckpointListener {
 public:
  explicit SmallStage(const std::filesystem::path& folder, CheckpointSection section = {.every = 10, .keep = 2},
                      FileOperations& files = real_files())
      : world_(single_communicator()),
        mesh_(*world_, {1, 1, 1}),
        checkpoints({.folder = folder, .stage = "distill uniform", .frozen = {{"teacher", "abc"}}, .files = &files},
                    section, mesh_, trained.regions(), *this) {}

  void warn(const std::string& warning) override { warnings.push_back(warning); }
  void saved(int64_t step, double) override { saved_steps.push_back(step); }

  std::string save(int64_t step) {
    trained.become(step);
    return checkpoints.save(progress_at(step));
  }

  std::vector<std::string> warnings;
  std::vector<int64_t> saved_steps;
  Trained trained;

 private:
  std::unique_ptr<Communicator> world_;
  Mesh mesh_;

 public:
  StageCheckpoints checkpoints;
};

// Checkpoints of steps 10 and 20.
inline void save_two(const std::filesystem::path& folder) {
  SmallStage stage(folder);
  stage.checkpoints.resume();
  stage.save(10);
  stage.save(20);
}

}  // namespace flashmorph::test
