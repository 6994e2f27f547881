#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "core/base/bad_input.h"
#include "core/ops/projection.h"
#include "core/ops/put_off_gradients.h"
#include "core/ops/tensor_parallel.h"
#include "distributed/parallel/gradients.h"
#include "distributed/parallel/mesh.h"
#include "tests/mpi/world.h"

// The mesh in every shape these ranks allow; sums over it compared with the definition on one rank.

namespace flashmorph {
namespace {

using test::world;

std::vector<MeshShape> every_shape() {
  const int64_t ranks = world().size();
  std::vector<MeshShape> shapes;
  for (int64_t tensor = 1; tensor <= ranks; ++tensor)
    for (int64_t pipeline = 1; pipeline <= ranks; ++pipeline)
      if (ranks % (tensor * pipeline) == 0) shapes.push_back(MeshShape::of(ranks, tensor, pipeline));
  return shapes;
}

std::string text_of(const MeshShape& shape) {
  return std::to_string(shape.data) + " x " + std::to_string(shape.pipeline) + " x " + std::to_string(shape.tensor);
}

std::vector<int64_t> members(Communicator& group) {
  const at::Tensor ranks = group.all_gather(at::full({}, int64_t{world().rank()}, at::kLong));
  return {ranks.data_ptr<int64_t>(), ranks.data_ptr<int64_t>() + ranks.numel()};
}

TEST(MeshShape, SplitsTheRanksAndSaysWhatWouldDivideThem) {
  const MeshShape shape = MeshShape::of(24, 2, 3);
  EXPECT_EQ(shape.data, 4);
  EXPECT_EQ(shape.ranks(), 24);
  try {
    MeshShape::of(12, 8);
    FAIL() << "8 ranks a layer on 12 ranks";
  } catch (const BadInput& fault) {
    EXPECT_EQ(fault.faults().at(0).where, "parallel.tensor");
    EXPECT_EQ(fault.faults().at(0).what, "8 does not divide the 12 ranks of this run; these would: 1, 2, 3, 4, 6, 12");
  }
  EXPECT_THROW(MeshShape::of(4, 8), BadInput);
  EXPECT_THROW(MeshShape::of(4, 0), BadInput);
  EXPECT_THROW(MeshShape::of(4, -2), BadInput);
}

TEST(Mesh, RefusesAShapeOfOtherRanks) {
  EXPECT_THROW(Mesh(world(), {.data = world().size() + 1, .pipeline = 1, .tensor = 1}), c10::Error);
}

TEST(Mesh, PlacesEveryRankInEveryShape) {
  for (const MeshShape& shape : every_shape()) {
    SCOPED_TRACE(text_of(shape));
    Mesh mesh(world(), shape);
    std::vector<int64_t> data, pipeline, tensor;  // walk the grid in the order that the header promises
    int64_t rank = 0;
    for (int64_t d = 0; d < shape.data; ++d)
      for (int64_t p = 0; p < shape.pipeline; ++p)
        for (int64_t t = 0; t < shape.tensor; ++t, ++rank) {
          const bool same_data = d == mesh.data_rank(), same_pipeline = p == mesh.pipeline_rank(),
                     same_tensor = t == mesh.tensor_rank();
          EXPECT_EQ(rank == world().rank(), same_data && same_pipeline && same_tensor);
          if (same_pipeline && same_tensor) data.push_back(rank);
          if (same_data && same_tensor) pipeline.push_back(rank);
          if (same_data && same_pipeline) tensor.push_back(rank);
        }
    EXPECT_EQ(members(mesh.data()), data);
    EXPECT_EQ(members(mesh.pipeline()), pipeline);
    EXPECT_EQ(members(mesh.tensor()), tensor);
  }
}

TEST(Mesh, ItsShardReducesOverTheTensorGroup) {
  for (const MeshShape& shape : every_shape()) {
    Mesh mesh(world(), shape);
    EXPECT_EQ(mesh.shard().size(), shape.tensor);
    EXPECT_EQ(mesh.shard().rank(), mesh.tensor_rank());
    at::Tensor sum = at::ones({2}), largest = at::full({2}, static_cast<double>(mesh.tensor_rank()));
    mesh.shard().all_reduce_sum(sum);
    mesh.shard().all_reduce_max(largest);
    EXPECT_EQ(sum[1].item<int64_t>(), shape.tensor);
    EXPECT_EQ(largest[1].item<int64_t>(), shape.tensor - 1);
  }
}

// The ends of a split layer where the tokens are shared: rank r's part is (r + 1) times the whole, so sums are exact.
TEST(SharedTokens, GoIntoTheShardsAndComeOutOfThem) {
  for (MeshShape shape : every_shape()) {
    if (shape.tensor == 1) continue;
    SCOPED_TRACE(text_of(shape));
    shape.sequence = true;
    Mesh mesh(world(), shape);
    Shard& shard = mesh.shard();
    const int64_t ranks = shape.tensor, mine = mesh.tensor_rank() + 1, all = ranks * (ranks + 1) / 2;
    const at::Tensor whole = at::arange(2 * 2 * ranks * 3, at::kDouble).view({2, 2 * ranks, 3});
    const auto stretch = [&](const at::Tensor& x) { return x.narrow(-2, 2 * mesh.tensor_rank(), 2); };
    EXPECT_TRUE(own_tokens(whole, shard).equal(stretch(whole)));
    EXPECT_EQ(shard.own_count(2 * ranks), 2);

    at::Tensor x = stretch(whole).clone().set_requires_grad(true);
    const at::Tensor everywhere = into_shards(x, shard);
    EXPECT_TRUE(everywhere.equal(whole));
    everywhere.backward(whole * mine);
    EXPECT_TRUE(x.grad().equal(stretch(whole) * all));

    x.mutable_grad().reset();
    const at::Tensor for_the_head = all_tokens(x, shard);
    EXPECT_TRUE(for_the_head.equal(whole));
    for_the_head.backward(whole);  // complete on every rank
    EXPECT_TRUE(x.grad().equal(stretch(whole)));

    at::Tensor partial = at::stack({whole * mine, whole}).set_requires_grad(true);  // leading dims may be more
    const at::Tensor own = out_of_shards(partial, shard);
    EXPECT_TRUE(own.equal(at::stack({stretch(whole) * all, stretch(whole) * ranks})));
    own.backward(at::stack({stretch(whole), stretch(whole) * 2}));
    EXPECT_TRUE(partial.grad().equal(at::stack({whole, whole * 2})));
  }
}

// The products for weights that a backward pass leaves until it waits for the shards' sum of their input's gradient:
// all of them there, or half where a gather follows that may have the rest.
TEST(PutOffGradients, FillAWaitForTheShards) {
  for (const MeshShape& plain : every_shape()) {
    for (const bool sequence : {false, true}) {
      if (plain.tensor == 1) continue;
      SCOPED_TRACE(text_of(plain) + (sequence ? ", tokens shared" : ""));
      MeshShape shape = plain;
      shape.sequence = sequence;
      Mesh mesh(world(), shape);
      const auto numbers = [](at::IntArrayRef sizes, int64_t start) {
        return at::arange(start, start + c10::multiply_integers(sizes), at::kDouble).sin().view(sizes);
      };
      const int64_t mine = sequence ? 100 * mesh.tensor_rank() : 0, own = world().rank() + 1;
      const std::vector<at::Tensor> leaves = {numbers({2, 2, 3}, mine).set_requires_grad(true),
                                              numbers({4, 3}, own).set_requires_grad(true),
                                              numbers({4, 3}, 2 * own).set_requires_grad(true)};
      std::vector<std::vector<at::Tensor>> gradients;
      for (const bool put_off : {false, true}) {
        PutOffGradients list(PutOffGradients::Until::shards_are_waited_for);
        {
          const PutOffGradients::Scope putting_off(put_off ? &list : nullptr);
          const auto y = project_each(into_shards(leaves[0], mesh.shard()), {leaves[1], leaves[2]});
          (y[0].square().sum() + y[1].square().sum()).backward();
        }
        EXPECT_TRUE(leaves[0].grad().defined() && leaves[1].grad().defined());
        EXPECT_EQ(leaves[2].grad().defined(), !(put_off && sequence));
        list.work_out();
        auto& found = gradients.emplace_back();
        for (const at::Tensor& leaf : leaves) found.push_back(std::exchange(leaf.mutable_grad(), {}));
      }
      for (size_t i = 0; i < leaves.size(); ++i) EXPECT_TRUE(gradients[1][i].equal(gradients[0][i])) << i;
    }
  }
}

TEST(SharedTokens, AreWholeOnAMeshThatDoesNotShareThem) {
  Mesh mesh(world(), MeshShape::of(world().size(), 1));
  const at::Tensor x = at::ones({2, 3});
  EXPECT_TRUE(own_tokens(x, mesh.shard()).is_same(x));
  EXPECT_EQ(mesh.shard().own_count(7), 7);
}

// Whole-valued gradients, so that every sum is exact: rank r holds r + 1 for "partial", 10 (r + 1) for "own".
TEST(Gradients, PartialOnesAddOverTensorRanksAllOverDataRanks) {
  for (const MeshShape& shape : every_shape()) {
    if (shape.pipeline != 1) continue;
    SCOPED_TRACE(text_of(shape));
    Mesh mesh(world(), shape);
    const auto mine = static_cast<double>(world().rank() + 1);
    Parameters parameters = {{"partial", at::zeros({2, 3}), Split::none, true},
                             {"own", at::zeros({4}), Split::rows, false},
                             {"unused", at::ones({5}), Split::none, true}};
    const auto backward = [&] {
      parameters[0].value.mutable_grad() = at::full({3, 2}, mine).t();  // a gradient need not be contiguous
      parameters[1].value.mutable_grad() = at::full({4}, 10 * mine);
    };
    backward();
    const std::vector<at::Tensor> gradients = reduced_gradients(parameters, mesh);

    double of_all = 0.0, of_data = 0.0;
    for (int64_t rank = 0; rank < world().size(); ++rank) {
      of_all += static_cast<double>(rank + 1);
      if (rank % shape.tensor == mesh.tensor_rank()) of_data += static_cast<double>(10 * (rank + 1));
    }
    ASSERT_EQ(gradients.size(), 3u);
    EXPECT_TRUE(gradients[0].equal(at::full({2, 3}, of_all)));
    EXPECT_TRUE(gradients[1].equal(at::full({4}, of_data)));
    EXPECT_TRUE(gradients[2].equal(at::zeros({5})));

    // The same in this rank's stretch of the 15 elements, and nothing elsewhere; the norm is that of all.
    backward();
    std::vector<at::Tensor> shared = reduced_gradients(parameters, mesh, DataSum::own_partition);
    const auto flat = [](const std::vector<at::Tensor>& tensors) {
      return at::cat({tensors[0].flatten(), tensors[1].flatten(), tensors[2].flatten()});
    };
    const int64_t stretch = (15 + shape.data - 1) / shape.data, first = stretch * mesh.data_rank();
    const at::Tensor place = at::arange(15), own = place.ge(first).logical_and(place.lt(first + stretch));
    EXPECT_TRUE(flat(shared).equal(flat(gradients) * own));
    std::vector<at::Tensor> clipped = gradients;
    const double norm = clip_gradients(parameters, clipped, 0.0, mesh);
    EXPECT_NEAR(clip_gradients(parameters, shared, norm / 2, mesh, DataSum::own_partition) / norm, 1.0, 1e-12);
    EXPECT_TRUE(flat(shared).allclose(flat(gradients) * own / 2));
  }
}

// A kv head that neighbours share: their gradients add up, and the norm counts the slice once.
TEST(Gradients, CopiesOfASliceAddUpAndCountOnce) {
  for (const MeshShape& shape : every_shape()) {
    for (int64_t replicas = 1; replicas <= shape.tensor; ++replicas) {
      if (shape.tensor % replicas != 0 || shape.pipeline != 1 || shape.data != 1) continue;
      SCOPED_TRACE(text_of(shape) + ", copies " + std::to_string(replicas));
      Mesh mesh(world(), shape);
      const int64_t slice = mesh.tensor_rank() / replicas, slices = shape.tensor / replicas;
      Parameters parameters = {{"kv", at::zeros({2, 3}, at::kDouble), Split::rows, false, replicas}};
      parameters[0].value.mutable_grad() = at::full({2, 3}, static_cast<double>(mesh.tensor_rank() + 1), at::kDouble);
      std::vector<at::Tensor> gradients = reduced_gradients(parameters, mesh);
      double square = 0.0;
      for (int64_t s = 0; s < slices; ++s) {
        double sum = 0.0;
        for (int64_t copy = 0; copy < replicas; ++copy) sum += static_cast<double>(s * replicas + copy + 1);
        square += 6 * sum * sum;
        if (s == slice) EXPECT_TRUE(gradients[0].equal(at::full({2, 3}, sum, at::kDouble)));
      }
      EXPECT_NEAR(clip_gradients(parameters, gradients, 0.0, mesh), std::sqrt(square), 1e-9);
    }
  }
}

TEST(Gradients, ATiedWeightAddsUpOverThePipelinesEndsAndCountsOnce) {
  for (const MeshShape& shape : every_shape()) {
    if (shape.pipeline == 1 || shape.tensor != 1) continue;
    SCOPED_TRACE(text_of(shape));
    Mesh mesh(world(), shape);
    const int64_t last = shape.pipeline - 1;
    const bool is_end = mesh.pipeline_rank() == 0 || mesh.pipeline_rank() == last;
    Parameters parameters = {{"own", at::zeros({4}), Split::none}};
    parameters[0].value.mutable_grad() = at::ones({4});
    if (is_end) {
      parameters.push_back({"tied", at::zeros({3}), Split::rows, false, 1, true});
      parameters[1].value.mutable_grad() = at::full({3}, static_cast<double>(mesh.pipeline_rank() + 1));
    }
    std::vector<at::Tensor> gradients = reduced_gradients(parameters, mesh);
    const double data = static_cast<double>(shape.data), sum = data * static_cast<double>(1 + last + 1);
    if (is_end) EXPECT_TRUE(gradients[1].equal(at::full({3}, sum)));
    EXPECT_NEAR(clip_gradients(parameters, gradients, 0.0, mesh),
                std::sqrt(4.0 * data * data * static_cast<double>(shape.pipeline) + 3.0 * sum * sum), 1e-9);
  }
}

TEST(Gradients, TravelInOneAllReduceAGroup) {
  Mesh mesh(world(), MeshShape::of(world().size(), 1));
  Parameters parameters;
  for (int i = 0; i < 5; ++i) parameters.push_back({std::to_string(i), at::ones({3}), Split::none, true});
  reduced_gradients(parameters, mesh);
  const auto& sent = mesh.data().traffic().by_operation;
  if (world().size() == 1) {
    EXPECT_TRUE(sent.empty());
  } else {
    EXPECT_EQ(sent.at("all_reduce").calls, 1);
    EXPECT_EQ(sent.at("all_reduce").bytes, 5 * 3 * 4);
  }
}

TEST(Gradients, TheNormAndTheClippingAreThoseOfOneRank) {
  at::Generator generator = at::detail::createCPUGenerator(5);
  const at::Tensor rows = at::randn({12, 5}, generator, at::TensorOptions(at::kDouble));
  const at::Tensor columns = at::randn({3, 24}, generator, at::TensorOptions(at::kDouble));
  const at::Tensor whole = at::randn({7}, generator, at::TensorOptions(at::kDouble));
  const double norm = at::cat({rows.flatten(), columns.flatten(), whole}).norm().item<double>();
  for (const MeshShape& shape : every_shape()) {
    if (shape.pipeline != 1) continue;
    SCOPED_TRACE(text_of(shape));
    Mesh mesh(world(), shape);
    const auto slice = [&](const at::Tensor& tensor, int64_t dim) {
      return tensor.chunk(shape.tensor, dim)[mesh.tensor_rank()].contiguous();
    };
    const Parameters parameters = {{"rows", slice(rows, 0), Split::rows},
                                   {"columns", slice(columns, 1), Split::columns},
                                   {"whole", whole, Split::none}};
    for (const double limit : {0.0, norm / 4, norm * 2}) {
      std::vector<at::Tensor> gradients;
      for (const Parameter& parameter : parameters) gradients.push_back(parameter.value.clone());
      EXPECT_NEAR(clip_gradients(parameters, gradients, limit, mesh), norm, 1e-12 * norm);
      const double kept = limit == norm / 4 ? 0.25 : 1.0;
      for (size_t i = 0; i < gradients.size(); ++i)
        EXPECT_TRUE(gradients[i].allclose(parameters[i].value * kept, 1e-12, 0.0))
            << parameters[i].name << " " << limit;
    }
  }
}

TEST(Gradients, SmallFloat32GradientsKeepTheirNorm) {
  Mesh mesh(world(), MeshShape::of(world().size(), 1));
  const Parameters parameters = {{"tiny", at::zeros({1000}), Split::none}};
  std::vector<at::Tensor> gradients = {at::full({1000}, 1e-25f)};  // whose squares are zero in float32
  EXPECT_NEAR(clip_gradients(parameters, gradients, 1.0, mesh) / (1e-25 * std::sqrt(1000.0)), 1.0, 1e-6);
}

TEST(SampleOrder, RowsAreTheSameBitsForAnyDataSize) {
  constexpr int64_t kMicroBatches = 12;
  at::Generator generator = at::detail::createCPUGenerator(9);
  const at::Tensor all = at::randn({kMicroBatches, 5}, generator, at::TensorOptions(at::kDouble));
  for (const MeshShape& shape : every_shape()) {
    if (shape.pipeline != 1) continue;
    SCOPED_TRACE(text_of(shape));
    Mesh mesh(world(), shape);
    const MicroBatchRange mine = local_micro_batches(kMicroBatches, mesh);
    EXPECT_EQ(mine.last - mine.first, kMicroBatches / shape.data);
    at::Tensor rows = all.narrow(0, mine.first, mine.last - mine.first);
    if (mesh.tensor_rank() != 0) rows = at::zeros_like(rows);  // the heads of rank 0 made all of it
    const at::Tensor before = rows.clone();
    const at::Tensor gathered = gather_in_sample_order(rows, kMicroBatches, mesh);
    EXPECT_TRUE(gathered.equal(all));
    EXPECT_TRUE(gathered.sum(0).equal(all.sum(0)));
    EXPECT_TRUE(rows.equal(before)) << "the rows handed in were changed";
  }
}

TEST(SampleOrder, UnevenSharesAreRefused) {
  Mesh mesh(world(), MeshShape::of(world().size(), 1));
  EXPECT_NO_THROW(local_micro_batches(2 * world().size(), mesh));
  if (world().size() > 1) EXPECT_THROW(local_micro_batches(2 * world().size() + 1, mesh), c10::Error);
}

}  // namespace
}  // namespace flashmorph
