#include "distributed/measure/measures.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "core/eval/answers.h"
#include "core/eval/pace.h"
#include "core/eval/perplexity.h"

namespace flashmorph {
namespace {

constexpr int64_t kMostRows = 64;  // samples that are answered together

double mean(const std::vector<double>& values) {
  double sum = 0.0;
  for (const double value : values) sum += value;
  return values.empty() ? 0.0 : sum / static_cast<double>(values.size());
}

double standard_error(const std::vector<double>& values) {
  if (values.size() < 2) return 0.0;
  const double middle = mean(values);
  double squares = 0.0;
  for (const double value : values) squares += (value - middle) * (value - middle);
  const auto count = static_cast<double>(values.size());
  return std::sqrt(squares / (count - 1.0) / count);
}

// A row a sample: the depth, then a score for each thing asked for; -1 where a sample asks for fewer than another.
at::Tensor of_all_ranks(const std::vector<WrittenAnswer>& own, int64_t samples, Mesh& mesh) {
  size_t most = 0;
  for (const WrittenAnswer& one : own) most = std::max(most, one.parts.size());
  at::Tensor width = at::full({1}, static_cast<int64_t>(most), at::kLong);
  mesh.data().all_reduce(width, Reduction::max);
  at::Tensor table = at::zeros({samples, 1 + width.item<int64_t>()}, at::kDouble);
  auto cell = table.accessor<double, 2>();
  for (const WrittenAnswer& one : own) {
    cell[one.sample][0] = one.asked.depth;
    for (int64_t part = 0; part + 1 < table.size(1); ++part)
      cell[one.sample][part + 1] = part < std::ssize(one.parts) ? one.parts[static_cast<size_t>(part)] : -1.0;
  }
  mesh.data().all_reduce(table, Reduction::sum);
  return table;
}

void summarize(const at::Tensor& table, int64_t depths, proto::TaskScore& score) {
  const auto cell = table.accessor<double, 2>();
  const int64_t samples = table.size(0), parts = table.size(1) - 1;
  std::vector<double> all;
  std::vector<std::vector<double>> by_depth(static_cast<size_t>(depths)), by_part(static_cast<size_t>(parts));
  for (int64_t i = 0; i < samples; ++i) {
    std::vector<double> own;
    for (int64_t part = 0; part < parts && cell[i][part + 1] >= 0.0; ++part) {
      own.push_back(cell[i][part + 1]);
      by_part[static_cast<size_t>(part)].push_back(own.back());
    }
    all.push_back(mean(own));
    if (const double depth = cell[i][0]; depth >= 0.0)
      by_depth[static_cast<size_t>(std::min(depths - 1, static_cast<int64_t>(depth * static_cast<double>(depths))))]
          .push_back(all.back());
  }
  score.set_samples(samples);
  score.set_score(mean(all));
  score.set_error(standard_error(all));
  if (std::ranges::any_of(by_depth, [](const auto& bucket) { return !bucket.empty(); }))
    for (const std::vector<double>& bucket : by_depth) score.add_by_depth(bucket.empty() ? -1.0 : mean(bucket));
  for (const std::vector<double>& part : by_part) score.add_by_part(mean(part));
}

}  // namespace

OwnItems::OwnItems(int64_t count, const Mesh& mesh)
    : first(count * mesh.data_rank() / mesh.shape().data), last(count * (mesh.data_rank() + 1) / mesh.shape().data) {}

void in_parts(int64_t count, int64_t few, const Mesh& mesh,
              const std::function<void(int64_t first, int64_t last)>& measure, const BeforePart& before) {
  const OwnItems own(count, mesh);
  const int64_t most = (count + mesh.shape().data - 1) / mesh.shape().data;
  for (int64_t done = 0; done < most; done += few) {
    const int64_t first = std::min(own.last, own.first + done);
    before(first - own.first);
    if (first < own.last) measure(first, std::min(own.last, first + few));
  }
}

int64_t usual_batch_tokens(const at::Device& device) { return device.is_cuda() ? 262144 : 16384; }

void sum_over_items(at::Tensor& counts, Mesh& mesh) {
  mesh.data().all_reduce(counts, Reduction::sum);
  mesh.pipeline().all_reduce(counts, Reduction::sum);
}

proto::TaskScore measure_task(const MorphableModel& model, const Routes& routes, const Task& task, int64_t length,
                              const TaskPlan& plan, Mesh& mesh, const BeforePart& before,
                              std::vector<WrittenAnswer>* own) {
  const Tokenizer& tokenizer = plan.material.tokenizer();
  std::vector<WrittenAnswer> mine;
  const auto measure = [&](int64_t first, int64_t last) {
    std::vector<TaskSample> samples;
    for (int64_t i = first; i < last; ++i) samples.push_back(task_sample(task, plan.material, plan.seed, length, i));
    const auto written = answers(model, routes, samples, tokenizer, task.forced);
    for (size_t i = 0; i < samples.size(); ++i) {
      const std::vector<double> parts = scores(samples[i], tokenizer, written[i]);
      mine.push_back({first + static_cast<int64_t>(i), samples[i], written[i], parts, mean(parts)});
    }
  };
  const int64_t few = std::clamp<int64_t>(plan.batch_tokens / length, 1, kMostRows);
  in_parts(plan.samples, few, mesh, measure, before);
  proto::TaskScore score;
  score.set_task(task.name);
  score.set_length(length);
  summarize(of_all_ranks(mine, plan.samples, mesh), plan.depths, score);
  if (own != nullptr) *own = std::move(mine);
  return score;
}

std::vector<proto::PerplexityAtPlace> perplexity_by_place(const MorphableModel& model, const Routes& routes,
                                                          TokenView text, int64_t length, int64_t windows, Mesh& mesh,
                                                          const BeforePart& before) {
  constexpr int64_t kFirstEdge = 1024;
  std::vector<int64_t> edges = {0};
  for (int64_t edge = kFirstEdge; edge < length; edge *= 2) edges.push_back(edge);
  edges.push_back(length);
  const auto buckets = static_cast<int64_t>(edges.size()) - 1;
  at::Tensor sums = at::zeros({buckets, 2}, at::kDouble);
  const auto measure = [&](int64_t first, int64_t last) {
    const std::vector<LikelihoodSum> part = likelihood_by_place(model, routes, text, length, first, last, edges);
    for (int64_t b = 0; b < buckets; ++b) {
      sums[b][0] += part[static_cast<size_t>(b)].negative_log;
      sums[b][1] += static_cast<double>(part[static_cast<size_t>(b)].tokens);
    }
  };
  in_parts(windows, 1, mesh, measure, before);
  sum_over_items(sums, mesh);
  std::vector<proto::PerplexityAtPlace> all;
  for (int64_t b = 0; b < buckets; ++b) {
    const double tokens = sums[b][1].item<double>();
    if (tokens == 0.0) continue;
    proto::PerplexityAtPlace& here = all.emplace_back();
    here.set_from(edges[static_cast<size_t>(b)]);
    here.set_to(edges[static_cast<size_t>(b) + 1]);
    here.set_tokens(static_cast<int64_t>(tokens));
    here.set_perplexity(std::exp(sums[b][0].item<double>() / tokens));
  }
  return all;
}

proto::ChoiceScore measure_choices(const MorphableModel& model, const Routes& routes, const Tokenizer& tokenizer,
                                   const std::string& file, const std::vector<ChoiceItem>& items, Mesh& mesh,
                                   const BeforePart& before) {
  at::Tensor right = at::zeros({2}, at::kDouble);
  const auto measure = [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const ChoiceItem& item = items[static_cast<size_t>(i)];
      const std::vector<double> likelihoods = choice_likelihoods(model, routes, tokenizer, item);
      if (!model.has_head()) continue;
      const ChoiceVerdict found = verdict(item, likelihoods);
      right[0] += found.right;
      right[1] += found.right_by_length;
    }
  };
  constexpr int64_t kItemsAtATime = 16;
  in_parts(static_cast<int64_t>(items.size()), kItemsAtATime, mesh, measure, before);
  sum_over_items(right, mesh);
  proto::ChoiceScore score;
  score.set_file(file);
  score.set_items(static_cast<int64_t>(items.size()));
  const auto count = static_cast<double>(items.size());
  score.set_accuracy(right[0].item<double>() / count);
  score.set_by_length(right[1].item<double>() / count);
  return score;
}

proto::LayerLatency layer_latency(const MorphableModel& model, int64_t length, Mesh& mesh) {
  at::Tensor times = at::zeros({model.layer_count(), 2}, at::kDouble);
  for (int64_t l = model.own_layers().first; l < model.own_layers().last; ++l) {
    times[l][0] = 1000.0 * attention_seconds(model, l, Route::full(), length);
    times[l][1] = 1000.0 * attention_seconds(model, l, Route::linear(), length);
  }
  mesh.world().all_reduce(times, Reduction::max);
  proto::LayerLatency latency;
  latency.set_length(length);
  for (int64_t l = 0; l < model.layer_count(); ++l) {
    latency.add_full(times[l][0].item<double>());
    latency.add_linear(times[l][1].item<double>());
  }
  return latency;
}

LayerLatency numbers_of(const proto::LayerLatency& latency) {
  return {{latency.full().begin(), latency.full().end()}, {latency.linear().begin(), latency.linear().end()}};
}

}  // namespace flashmorph
