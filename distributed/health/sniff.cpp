#include "distributed/health/sniff.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "core/base/clock.h"

namespace flashmorph {
namespace {

constexpr double kLongest = 0.5;    // seconds of a rank's own measurement, behind its first run
constexpr int kRuns = 10;           // at most
constexpr int kLinkRuns = 4;        // of each of two ranks
constexpr double kOddShare = 0.75;  // of the median

// Of the fastest of so many runs that fit; the first one also sets up. `work` ends with its result on the host.
template <class Work>
double best_seconds(Work work, int runs, double longest) {
  work();
  const Stopwatch whole;
  double best = std::numeric_limits<double>::infinity();
  for (int run = 0; run < runs && (run == 0 || whole.seconds() < longest); ++run) {
    const Stopwatch watch;
    work();
    best = std::min(best, watch.seconds());
  }
  return best;
}

double product_rate(const at::TensorOptions& options) {
  const int64_t n = options.device().is_cpu() ? 512 : 8192;
  const at::Tensor a = at::ones({n, n}, options), b = at::ones({n, n}, options);
  const double seconds = best_seconds([&] { at::matmul(a, b)[0][0].item<double>(); }, kRuns, kLongest);
  return 2.0 * static_cast<double>(n * n * n) / seconds;
}

double memory_rate(const at::TensorOptions& options) {
  const int64_t bytes = (options.device().is_cpu() ? int64_t{32} : int64_t{512}) << 20;
  const at::Tensor from = at::ones({bytes}, options.dtype(at::kByte)), to = at::empty_like(from);
  const double seconds = best_seconds([&] { to.copy_(from)[0].item<uint8_t>(); }, kRuns, kLongest);
  return 2.0 * static_cast<double>(bytes) / seconds;
}

// Every second link at a time, so that no rank is in two.
double link_rate(Communicator& world, const at::TensorOptions& options) {
  double mine = 0.0;
  for (const int shift : {0, 1}) {
    const int pair = (world.rank() + shift) / 2, first = 2 * pair - shift;
    const bool alone = first < 0 || first + 1 >= world.size();
    const auto group = world.split(alone ? Communicator::kNoGroup : pair, world.rank(), "link");
    if (!group) continue;
    at::Tensor values = at::ones({int64_t{4} << 20}, options.dtype(at::kFloat));
    const auto reduce = [&] {
      group->all_reduce(values, Reduction::max);
      values[0].item<float>();
    };
    const double seconds = best_seconds(reduce, kLinkRuns, /*longest=*/1e9);
    if (world.rank() == first) mine = static_cast<double>(values.nbytes()) / seconds;
  }
  return mine;
}

// Of an even number the faster one in the middle.
double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size()) / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

struct Figure {
  std::string of;  // "rank 3 on node7"
  double rate;
};

// Of figures that should be alike.
void add_odd(const std::vector<Figure>& figures, const std::string& what, const std::string& unit,
             std::vector<std::string>& warnings) {
  std::vector<double> rates;
  for (const Figure& one : figures) rates.push_back(one.rate);
  if (rates.empty()) return;
  const double usual = median(rates);
  for (const auto& [of, rate] : figures)
    if (rate < kOddShare * usual)
      warnings.push_back(fmt::format(
          "{} is slow before the first step: {}, {:.1f} G{}; the median is {:.1f} G{}, and less than {:g} % "
          "of it is told (health.sniff)",
          of, what, rate / 1e9, unit, usual / 1e9, unit, 100.0 * kOddShare));
}

std::string spread(const std::vector<Rates>& ranks, double Rates::*rate, const std::string& unit) {
  std::vector<double> rates;
  for (const Rates& one : ranks)
    if (one.*rate > 0.0) rates.push_back(one.*rate / 1e9);
  if (rates.empty()) return "none";
  const auto [least, most] = std::ranges::minmax(rates);
  return fmt::format("{:.1f} to {:.1f} G{}", least, most, unit);
}

}  // namespace

Rates measured_rates(Communicator& world, const at::Device& device, at::ScalarType dtype) {
  const c10::NoGradGuard no_gradient;
  const auto options = at::TensorOptions(dtype).device(device);
  world.barrier();
  return {product_rate(options), memory_rate(options), link_rate(world, options)};
}

std::vector<Rates> gather_rates(const Rates& mine, Communicator& world) {
  const at::Tensor all = world.all_gather(at::tensor({mine.product, mine.memory, mine.link}, at::kDouble));
  const auto value = all.accessor<double, 2>();
  std::vector<Rates> ranks;
  for (int64_t rank = 0; rank < world.size(); ++rank) ranks.push_back({value[rank][0], value[rank][1], value[rank][2]});
  return ranks;
}

std::string text_of(const std::vector<Rates>& ranks) {
  return fmt::format("{} rank{}: matrix product {}, memory {}, links {}", ranks.size(), ranks.size() == 1 ? "" : "s",
                     spread(ranks, &Rates::product, "FLOP/s"), spread(ranks, &Rates::memory, "B/s"),
                     spread(ranks, &Rates::link, "B/s"));
}

std::vector<std::string> odd_rates(const std::vector<Rates>& ranks, const std::vector<std::string>& hosts) {
  const auto name = [&](size_t rank) { return fmt::format("rank {} on {}", rank, hosts.at(rank)); };
  std::vector<Figure> products, memories, inside, between;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    products.push_back({name(rank), ranks[rank].product});
    memories.push_back({name(rank), ranks[rank].memory});
    if (rank + 1 == ranks.size()) continue;
    (hosts[rank] == hosts[rank + 1] ? inside : between)
        .push_back({fmt::format("the link between {} and {}", name(rank), name(rank + 1)), ranks[rank].link});
  }
  std::vector<std::string> warnings;
  add_odd(products, "matrix product", "FLOP/s", warnings);
  add_odd(memories, "memory", "B/s", warnings);
  add_odd(inside, "all-reduce inside a host", "B/s", warnings);
  add_odd(between, "all-reduce between hosts", "B/s", warnings);
  return warnings;
}

}  // namespace flashmorph
