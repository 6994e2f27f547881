#include "distributed/health/rank_vitals.h"

#include <ATen/ATen.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

namespace flashmorph {
namespace {

constexpr double kNoise = 0.01;  // seconds

int64_t resident_bytes() {
  int64_t whole = 0, resident = 0;  // pages
  std::ifstream("/proc/self/statm") >> whole >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

}  // namespace

double median_own_seconds(const std::vector<RankVitals>& ranks) {
  std::vector<double> own;
  for (const RankVitals& rank : ranks) own.push_back(rank.own_seconds());
  const auto middle = own.begin() + (static_cast<std::ptrdiff_t>(own.size()) - 1) / 2;
  std::nth_element(own.begin(), middle, own.end());
  return *middle;
}

std::vector<RankVitals> stragglers(const std::vector<RankVitals>& ranks, double factor) {
  const double median = median_own_seconds(ranks);
  std::vector<RankVitals> slow;
  for (const RankVitals& rank : ranks)
    if (rank.own_seconds() > factor * median && rank.own_seconds() > median + kNoise) slow.push_back(rank);
  return slow;
}

VitalSigns::VitalSigns(Communicator& world, std::vector<std::string> hosts)
    : world_(world), hosts_(std::move(hosts)), inside_before_(world.log().seconds_inside()) {}

std::vector<RankVitals> VitalSigns::look(int64_t steps) {
  const double inside = world_.log().seconds_inside(), each = 1.0 / static_cast<double>(steps);
  const at::Tensor mine = at::tensor(
      {since_.seconds() * each, (inside - inside_before_) * each, static_cast<double>(resident_bytes())}, at::kDouble);
  const at::Tensor all = world_.all_gather(mine);
  const auto value = all.accessor<double, 2>();
  std::vector<RankVitals> vitals;
  for (int64_t rank = 0; rank < world_.size(); ++rank)
    vitals.push_back({rank, hosts_.at(rank), value[rank][0], value[rank][1], static_cast<int64_t>(value[rank][2])});
  since_ = Stopwatch();
  inside_before_ = world_.log().seconds_inside();
  return vitals;
}

}  // namespace flashmorph
