#include "core/config/run_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <fstream>
#include <iterator>
#include <optional>

#include "core/base/bad_input.h"
#include "core/config/values.h"

namespace flashmorph {
namespace {

bool is_plain_file_name(const std::string& name) {
  const auto is_bad = [](unsigned char c) { return c == '/' || std::iscntrl(c); };
  return name != "." && name != ".." && std::ranges::none_of(name, is_bad);
}

bool is_host_and_port(const std::string& text) {
  int port = 0;
  const char *const end = text.data() + text.size(), *const digits = text.data() + text.rfind(':') + 1;
  if (text.rfind(':') == std::string::npos || !std::isdigit(static_cast<unsigned char>(*digits))) return false;
  const auto [stop, error] = std::from_chars(digits, end, port);
  return error == std::errc() && stop == end && port <= 65535;
}

struct Ratio {  // "3:1": three linear layers for each full one
  int64_t linear;
  int64_t full;
};

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

std::string not_a_ratio(const std::string& text) {
  return fmt::format("is '{}', expected linear:full layers, for example 3:1", text);
}

}  // namespace

void RunSection::rules(KeyVisitor& v) const {
  constexpr size_t kLongest = 200;  // bytes: files beside the folder have its name and an ending
  v.require(is_plain_file_name(name), {"name"}, fmt::format("is '{}', expected a plain folder name", name));
  v.require(name.size() <= kLongest, {"name"}, fmt::format("has {} bytes, expected at most {}", name.size(), kLongest));
}

void BudgetSection::rules(KeyVisitor& v) const {
  const int given = (full_layers > 0) + !ratio.empty() + (kv_bytes_per_token > 0) + (milliseconds > 0.0);
  v.require(given == 1, {"", "full_layers", "ratio", "kv_bytes_per_token", "milliseconds"},
            "needs exactly one of full_layers, ratio, kv_bytes_per_token and milliseconds");
  v.require(ratio.empty() || ratio_of(ratio), {"ratio"}, not_a_ratio(ratio));
}

void DeviceSection::rules(KeyVisitor& v) const {
  const bool goes = frozen_dtype == "same" || (kind == "cuda" ? dtype == "bfloat16" : dtype != "float64");
  v.require(goes, {"frozen_dtype", "dtype", "kind"},
            fmt::format("is {}, whose products give {}; dtype is {}", frozen_dtype,
                        kind == "cuda" ? "bfloat16 on cuda" : "float32 or bfloat16", dtype));
}

void DataSection::rules(KeyVisitor& v) const {
  const int given = !text.empty() + !jsonl.empty() + !tokens.empty() + !sources.empty();
  v.require(given == 1, {"", "text", "jsonl", "tokens", "sources"},
            "needs exactly one of text, jsonl, tokens and sources");
}

void TrainingSection::rules(KeyVisitor& v) const {
  const auto divides = [&](int64_t part, const char* part_key, int64_t whole, const char* whole_key) {
    v.require(part < 1 || whole % part == 0, {part_key, whole_key},
              fmt::format("is {}, expected a divisor of {}, {}", part, whole_key, whole));
  };
  divides(micro_batch_tokens, "micro_batch_tokens", batch_tokens, "batch_tokens");
  for (const int64_t length : data.lengths) {
    divides(length, "data.lengths", batch_tokens, "batch_tokens");
    if (micro_batch_tokens > 0) {
      divides(length, "data.lengths", micro_batch_tokens, "micro_batch_tokens");
    } else {
      v.require(
          length < 1 || longest() % length == 0, {"data.lengths", "micro_batch_tokens"},
          fmt::format("is {}, expected a divisor of the longest, {}, which is also a micro-batch's tokens; or set "
                      "micro_batch_tokens",
                      length, longest()));
    }
  }
}

void EvaluateSection::rules(KeyVisitor& v) const {
  v.require(greedy_samples <= samples, {"greedy_samples", "samples"},
            fmt::format("is {}, expected at most samples, {}", greedy_samples, samples));
  v.require(perplexity_length <= perplexity_tokens, {"perplexity_length", "perplexity_tokens"},
            fmt::format("is {}, expected at most perplexity_tokens, {}", perplexity_length, perplexity_tokens));
}

void MetricsSection::rules(KeyVisitor& v) const {
  v.require(!enabled() || is_host_and_port(listen), {"listen"},
            fmt::format("is '{}', expected HOST:PORT, for example 127.0.0.1:9464, or off", listen));
}

int64_t BudgetSection::full_layers_of(int64_t model_layers) const {
  int64_t keep = full_layers;
  if (!ratio.empty()) {
    const auto parts = ratio_of(ratio);
    if (!parts) throw BadInput("budget.ratio", not_a_ratio(ratio));
    keep = model_layers * parts->full / (parts->linear + parts->full);
  }
  if (keep < 1 || keep >= model_layers)
    throw BadInput(ratio.empty() ? "budget.full_layers" : "budget.ratio",
                   fmt::format("keeps full attention in {} layers, expected 1 to {} for a model of {} layers", keep,
                               model_layers - 1, model_layers));
  return keep;
}

int64_t TrainingSection::longest() const { return std::ranges::max(data.lengths); }

std::array<std::pair<const char*, const TrainingSection*>, 4> StagesSection::training() const {
  return {{{"align", &align}, {"select", &select}, {"distill", &distill}, {"finetune", &finetune}}};
}

const TrainingSection* StagesSection::training(const std::string& stage) const {
  for (const auto& [name, section] : training())
    if (name == stage) return section;
  return nullptr;
}

std::array<ParallelSection*, 5> StagesSection::parallels() {
  return {&align.parallel, &select.parallel, &distill.parallel, &finetune.parallel, &evaluate.parallel};
}

RunConfig RunConfig::from_yaml(const std::string& text, const std::string& file_name,
                               const std::vector<std::string>& set) {
  RunConfig config;
  read_yaml(text, file_name, set, [&](KeyVisitor& v) { config.keys(v); });
  return config;
}

RunConfig RunConfig::from_file(const std::filesystem::path& file, const std::vector<std::string>& set) {
  std::ifstream in(file);
  if (!in || std::filesystem::is_directory(file)) throw BadInput(file.string(), "cannot be read");
  return from_yaml(std::string(std::istreambuf_iterator<char>(in), {}), file.string(), set);
}

std::string RunConfig::to_yaml() const { return whole_yaml(values_of(*this)); }

std::string yaml_reference() {
  RunConfig config;
  config.data.sources.resize(1);  // which stands for all
  std::string rows;
  for (const auto& [path, value, rule] : values_of(config))
    rows += fmt::format("| `{}` | {} | {} | {} | {} |\n", path, rule.required ? "required" : "`" + value + "`",
                        rule.meaning, allowed_by(rule), rule.changes_results ? "" : "yes");
  return "# The YAML of a run\n\n"
         "Whole numbers may end in K, M or G (2M = 2000000). true and false are those of YAML 1.2 (yes and no are "
         "texts). Merge keys (`<<: *name`) are known. A key that is not listed here is refused.\n\n"
         "In paths `~` at the start is the home folder and `${NAME}` a variable of the environment; what is relative "
         "after that is relative to the folder in which the program is started, not to the YAML's.\n\n"
         "*may change*: a run that is there goes on with another value of this key; with another of any other key it "
         "is another run. The teacher and the texts may lie elsewhere then, with the same bytes: their hashes are "
         "compared.\n\n"
         "| key | default | meaning | allowed | may change |\n|---|---|---|---|---|\n" +
         rows;
}

}  // namespace flashmorph
