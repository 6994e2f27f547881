#include "core/config/checks.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>

namespace flashmorph::schema {
namespace {

// One rule over some keys, reported at the first of them.
void require(bool holds, YamlInput& input, const std::vector<std::string>& keys, const std::string& what) {
  const auto is_sound = [&](const std::string& key) { return input.is_sound(key); };
  if (!holds && std::all_of(keys.begin(), keys.end(), is_sound)) input.fault(input.where(keys[0]), what);
}

void check_divides(int64_t part, const std::string& part_key, int64_t whole, const std::string& whole_key,
                   const std::string& stage, YamlInput& input) {
  require(part < 1 || whole % part == 0, input, {stage + part_key, stage + whole_key},
          "is " + std::to_string(part) + ", expected a divisor of " + whole_key + ", " + std::to_string(whole));
}

void check_training(const std::string& name, const TrainingSection& section, YamlInput& input) {
  const std::string stage = "stages." + name + ".";
  const int64_t micro = section.micro_batch_tokens;
  check_divides(micro, "micro_batch_tokens", section.batch_tokens, "batch_tokens", stage, input);
  const int64_t longest = section.longest();
  for (const int64_t length : section.data.lengths) {
    check_divides(length, "data.lengths", section.batch_tokens, "batch_tokens", stage, input);
    if (micro > 0) {
      check_divides(length, "data.lengths", micro, "micro_batch_tokens", stage, input);
    } else {
      require(length < 1 || longest % length == 0, input, {stage + "data.lengths", stage + "micro_batch_tokens"},
              "is " + std::to_string(length) + ", expected a divisor of the longest, " + std::to_string(longest) +
                  ", which is also a micro-batch's tokens; or set micro_batch_tokens");
    }
  }
}

bool is_plain_file_name(const std::string& name) {
  const auto is_bad = [](unsigned char c) { return c == '/' || std::iscntrl(c); };
  return name != "." && name != ".." && std::none_of(name.begin(), name.end(), is_bad);
}

void check_budget(const BudgetSection& budget, YamlInput& input) {
  const int given =
      (budget.full_layers > 0) + !budget.ratio.empty() + (budget.kv_bytes_per_token > 0) + (budget.milliseconds > 0.0);
  require(given == 1, input,
          {"budget", "budget.full_layers", "budget.ratio", "budget.kv_bytes_per_token", "budget.milliseconds"},
          "needs exactly one of full_layers, ratio, kv_bytes_per_token and milliseconds");
  require(budget.ratio.empty() || ratio_of(budget.ratio), input, {"budget.ratio"},
          "is '" + budget.ratio + "', expected linear:full layers, for example 3:1");
}

void check_metrics(const MetricsSection& metrics, YamlInput& input) {
  const size_t colon = metrics.listen.rfind(':');
  const std::string port = colon == std::string::npos ? "" : metrics.listen.substr(colon + 1);
  const bool is_number = !port.empty() && port.size() <= 5 &&
                         std::all_of(port.begin(), port.end(), [](unsigned char c) { return std::isdigit(c); });
  require(!metrics.enabled() || (is_number && std::stoi(port) <= 65535), input, {"metrics.listen"},
          "is '" + metrics.listen + "', expected HOST:PORT, for example 127.0.0.1:9464, or off");
}

void check_data(const DataSection& data, YamlInput& input) {
  const int given = !data.text.empty() + !data.jsonl.empty() + !data.tokens.empty() + !data.sources.empty();
  require(given == 1, input, {"data", "data.text", "data.jsonl", "data.tokens", "data.sources"},
          "needs exactly one of text, jsonl, tokens and sources");
}

void check_evaluate(const EvaluateSection& evaluate, YamlInput& input) {
  const std::string stage = "stages.evaluate.";
  require(evaluate.greedy_samples <= evaluate.samples, input, {stage + "greedy_samples", stage + "samples"},
          "is " + std::to_string(evaluate.greedy_samples) + ", expected at most samples, " +
              std::to_string(evaluate.samples));
  require(evaluate.perplexity_length <= evaluate.perplexity_tokens, input,
          {stage + "perplexity_length", stage + "perplexity_tokens"},
          "is " + std::to_string(evaluate.perplexity_length) + ", expected at most perplexity_tokens, " +
              std::to_string(evaluate.perplexity_tokens));
}

}  // namespace

std::optional<Ratio> ratio_of(const std::string& text) {
  constexpr int64_t kMost = 1000;
  const char* const end = text.data() + text.size();
  Ratio ratio{};
  const auto linear = std::from_chars(text.data(), end, ratio.linear);
  if (linear.ec != std::errc() || linear.ptr == end || *linear.ptr != ':') return std::nullopt;
  const auto full = std::from_chars(linear.ptr + 1, end, ratio.full);
  if (full.ec != std::errc() || full.ptr != end) return std::nullopt;
  if (ratio.linear < 1 || ratio.full < 1 || ratio.linear > kMost || ratio.full > kMost) return std::nullopt;
  return ratio;
}

void check(const RunConfig& config, YamlInput& input) {
  constexpr size_t kLongest = 200;  // bytes: files beside the folder have its name and an ending
  require(is_plain_file_name(config.run.name), input, {"run.name"},
          "is '" + config.run.name + "', expected a plain folder name");
  require(config.run.name.size() <= kLongest, input, {"run.name"},
          fmt::format("has {} bytes, expected at most {}", config.run.name.size(), kLongest));
  check_budget(config.budget, input);
  check_data(config.data, input);
  for (const auto& [stage, section] : config.stages.training()) check_training(stage, *section, input);
  require(config.stages.align.tokens > 0 || !config.stages.align.branches.empty(), input, {"stages.align.tokens"},
          "is missing or 0: the branches need tokens to train, or stages.align.branches to be taken from");
  check_evaluate(config.stages.evaluate, input);
  check_metrics(config.metrics, input);
}

}  // namespace flashmorph::schema
