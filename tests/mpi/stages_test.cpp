#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>

#include "core/io/checkpoint.h"
#include "core/select/rules.h"
#include "distributed/stages/align.h"
#include "distributed/stages/hybrid_training.h"
#include "distributed/stages/select.h"
#include "tests/mpi/world.h"
#include "tests/support/tensors.h"

// The same stage on every mesh of these ranks and on one rank alone, on the passkey teacher.

namespace flashmorph {
namespace {

using test::world;

constexpr const char* kTeacher = "tests/data/passkey-teacher";

RunConfig small_run(int64_t select_tokens) {
  return RunConfig::from_yaml("model: {path: " + std::string(kTeacher) +
                                  "}\nbudget: {full_layers: 3}\ndata: {text: tests/data/text/tinyshakespeare.txt}\n"
                                  "stages:\n"
                                  "  align: {tokens: 2048, batch_tokens: 1024, data: {lengths: 256, passkeys: 2, passkey_share: 1}}\n"
                                  "  select: {tokens: " + std::to_string(select_tokens) +
                                  ", batch_tokens: 1024, gate_penalty: 1, data: {lengths: 256, passkeys: 2, words: 8}}\n"
                                  "  distill: {tokens: 3072, batch_tokens: 1024, lr: {from: 1e-3, to: 1e-4}, data: {lengths: 256, passkeys: 2}}\n",
                              "test");
}

struct Inputs {
  Tokenizer tokenizer = Tokenizer::open(std::string(kTeacher) + "/tokenizer.json");
  Corpus corpus = Corpus::open({.text = "tests/data/text/tinyshakespeare.txt"}, tokenizer, 512);
  PasskeyTask passkeys{tokenizer};
  StageObserver observer;
  StopSignal stop;
};

Inputs& inputs() {
  static Inputs shared;
  return shared;
}

MorphableModel load(Mesh& mesh, const RunConfig& config, at::ScalarType dtype = at::kFloat) {
  const Placement placement{mesh.tensor_rank(), mesh.shape().tensor, dtype, at::kCPU};
  MorphableModel model =
      MorphableModel::load(Checkpoint::open(kTeacher), ModelSpec::open(kTeacher), placement, mesh.shard());
  model.add_branches(config.mixer, config.run.seed);
  return model;
}

StageContext context(Mesh& mesh, const RunConfig& config) {
  return {config, mesh, inputs().corpus, inputs().passkeys, inputs().observer, inputs().stop};
}

GateTrajectory gates_of(const MorphableModel& model, Mesh& mesh, const RunConfig& config) {
  StageContext here = context(mesh, config);
  return select_gates(model, 3, here).first;
}

// This rank's slice of a tensor that the one-rank run holds whole.
at::Tensor slice_of(const at::Tensor& whole, Split split, const Mesh& mesh) {
  if (split == Split::none) return whole;
  const int64_t dim = split == Split::rows ? 0 : 1, each = whole.size(dim) / mesh.shape().tensor;
  return whole.narrow(dim, mesh.tensor_rank() * each, each);
}

void expect_equal_parameters(const Parameters& alone, const Parameters& here, const Mesh& mesh, double tolerance) {
  ASSERT_EQ(alone.size(), here.size());
  for (size_t i = 0; i < here.size(); ++i)
    EXPECT_LT(test::relative_error(slice_of(alone[i].value, alone[i].split, mesh), here[i].value), tolerance) << here[i].name;
}

std::vector<int64_t> tensor_sizes() {
  std::vector<int64_t> sizes;
  for (const int64_t tensor : {1, 2})
    if (world().size() % tensor == 0) sizes.push_back(tensor);
  return sizes;
}

TEST(Stages, GatesAreTheSameOnEveryMesh) {
  const RunConfig config = small_run(20 * 1024);
  const auto single = single_communicator();
  Mesh one(*single, {1, 1, 1});
  const MorphableModel alone = load(one, config);
  const std::vector<double> expected = gates_of(alone, one, config).alpha.back();
  for (const int64_t tensor : tensor_sizes()) {
    Mesh mesh(world(), MeshShape::of(world().size(), tensor));
    const MorphableModel model = load(mesh, config);
    const std::vector<double> gates = gates_of(model, mesh, config).alpha.back();
    for (size_t l = 0; l < gates.size(); ++l) {
      if (tensor == 1) {
        EXPECT_EQ(gates[l], expected[l]) << "data " << world().size() << ", layer " << l;
      } else {
        EXPECT_NEAR(gates[l] / expected[l], 1.0, 1e-5) << "tensor " << tensor << ", layer " << l;
      }
    }
    EXPECT_EQ(top_layers(gates, 3), top_layers(expected, 3));
  }
}

TEST(Stages, AlignedBranchesAreTheSameOnEveryMesh) {
  RunConfig config = small_run(1024);
  for (const char* norm : {"head", "hidden"}) {
    config.mixer.output_norm = norm;
    const auto single = single_communicator();
    Mesh one(*single, {1, 1, 1});
    MorphableModel alone = load(one, config, at::kDouble);
    StageContext alone_context = context(one, config);
    align(alone, alone_context);
    for (const int64_t tensor : tensor_sizes()) {
      Mesh mesh(world(), MeshShape::of(world().size(), tensor));
      MorphableModel model = load(mesh, config, at::kDouble);
      StageContext here = context(mesh, config);
      align(model, here);
      expect_equal_parameters(alone.branch_parameters(), model.branch_parameters(), mesh, 1e-9);
    }
  }
}

TEST(Stages, DistilledWeightsAreTheSameOnEveryMesh) {
  const RunConfig config = small_run(1024);
  Routes routes(12, Route::linear());
  routes[5] = Route::full();
  const auto single = single_communicator();
  Mesh one(*single, {1, 1, 1});
  const MorphableModel alone = load(one, config, at::kDouble), trained_alone = alone.hybrid(routes);
  StageContext alone_context = context(one, config);
  distill(alone, trained_alone, routes, "test", alone_context);
  for (const int64_t tensor : tensor_sizes()) {
    Mesh mesh(world(), MeshShape::of(world().size(), tensor));
    const MorphableModel model = load(mesh, config, at::kDouble), trained = model.hybrid(routes);
    StageContext here = context(mesh, config);
    distill(model, trained, routes, "test", here);
    expect_equal_parameters(trained_alone.all_parameters(), trained.all_parameters(), mesh, 1e-9);
  }
}

}  // namespace
}  // namespace flashmorph
