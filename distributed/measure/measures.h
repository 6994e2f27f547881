#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/eval/choices.h"
#include "core/morph/morphable_model.h"
#include "core/select/budget.h"
#include "core/tasks/task.h"
#include "distributed/parallel/mesh.h"
#include "distributed/stages/context.h"
#include "proto/run.pb.h"

namespace flashmorph {

// Measurements of any model over a mesh: items are shared out over the data ranks, the result is the same on every
// rank, whatever the mesh. All are collective.

// Items of a measurement, 0 to count - 1, shared out over the data ranks in stretches: this rank's.
struct OwnItems {
  int64_t first, last;
  OwnItems(int64_t count, const Mesh& mesh);
};

// Called on every rank before each part of the items, with those that this rank has done; it may communicate and throw.
using BeforePart = std::function<void(int64_t done)>;

// Measures this data rank's items, `few` at a time. Every rank calls `before` as often.
void in_parts(int64_t count, int64_t few, const Mesh& mesh,
              const std::function<void(int64_t first, int64_t last)>& measure, const BeforePart& before);

// Prompt tokens of the samples that are answered together, where nobody says otherwise.
int64_t usual_batch_tokens(const at::Device& device);

struct TaskPlan {
  const TaskMaterial& material;
  uint64_t seed;
  int64_t samples;
  int64_t depths;        // buckets of depth
  int64_t batch_tokens;  // prompt tokens of the samples that are answered together, one sample at least
};

// What a model wrote for one sample.
struct WrittenAnswer {
  int64_t sample;
  TaskSample asked;
  std::vector<int32_t> written;
  std::vector<double> parts;  // a score for each thing asked for
  double score;               // their mean
};

// `own`: gets this data rank's answers, in order, when given.
proto::TaskScore measure_task(const MorphableModel& model, const Routes& routes, const Task& task, int64_t length,
                              const TaskPlan& plan, Mesh& mesh, const BeforePart& before,
                              std::vector<WrittenAnswer>* own = nullptr);

// Of `windows` windows of `length` tokens from the text's start, by where a token stands in its document: [0, 1024),
// [1024, 2048), [2048, 4096) and so on; places that no token stands at are left out.
std::vector<proto::PerplexityAtPlace> perplexity_by_place(const MorphableModel& model, const Routes& routes,
                                                          TokenView text, int64_t length, int64_t windows, Mesh& mesh,
                                                          const BeforePart& before);

proto::ChoiceScore measure_choices(const MorphableModel& model, const Routes& routes, const Tokenizer& tokenizer,
                                   const std::string& file, const std::vector<ChoiceItem>& items, Mesh& mesh,
                                   const BeforePart& before);

// How long each layer's two attentions take on these ranks, milliseconds to read one sequence of `length` random
// states (attention_seconds), of the slowest rank that holds a part of the layer. The same on every rank.
// Collective.
proto::LayerLatency layer_latency(const MorphableModel& model, int64_t length, Mesh& mesh);

// As a budget in milliseconds takes it.
LayerLatency numbers_of(const proto::LayerLatency& latency);

// Adds up over the data ranks, and over pipelines whose last rank alone has counted.
void sum_over_items(at::Tensor& counts, Mesh& mesh);

}  // namespace flashmorph
