#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "core/model/parameter.h"
#include "distributed/parallel/mesh.h"

namespace flashmorph {

// What a rank has of the gradients' sum over the data group: all of it, or only in the partition of elements that it
// updates (ZeRO, zero.h), with zeros elsewhere.
enum class DataSum { whole, own_partition };

// Elements of a partition, when so many are cut into one for each data rank.
int64_t partition_of(int64_t elements, const Communicator& data);

// The gradients of sharded parameters after backward, made equal to the one-rank run's: partial and replicated ones
// added over the tensor group, a tied one over both ends of the pipeline, all of them summed over the data group. One
// flat all-reduce each, or a reduce-scatter over the data group.
std::vector<at::Tensor> reduced_gradients(const Parameters& parameters, Mesh& mesh, DataSum over_data = DataSum::whole);

// The global L2 norm over the whole model (each element counted once), and scaling to at most `limit`.
double clip_gradients(const Parameters& parameters, std::vector<at::Tensor>& gradients, double limit, Mesh& mesh,
                      DataSum over_data = DataSum::whole);

// Whether this rank is the one whose copy of the parameter counts, of all that hold the same elements in a replica.
bool counts_here(const Parameter& parameter, const Mesh& mesh);

// Rows that each data rank made for its micro-batches, [mine, n] float64, added up over the tensor group, gathered and
// ordered by global micro-batch index: [all, n]. The sum over rows is then the same bits for any number of data ranks.
at::Tensor gather_in_sample_order(const at::Tensor& rows, int64_t micro_batches, Mesh& mesh);

// Which micro-batches of a step this rank's data coordinate makes: contiguous, equal counts.
struct MicroBatchRange {
  int64_t first;
  int64_t last;
};
MicroBatchRange local_micro_batches(int64_t micro_batches, const Mesh& mesh);

}  // namespace flashmorph
