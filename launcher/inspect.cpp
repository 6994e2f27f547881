#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "core/export/describe.h"
#include "launcher/commands.h"

namespace flashmorph {
namespace {

struct Options {
  std::string folder;
  int64_t length = 0;  // tokens; 0: the model's longest position
};

std::string in_units(int64_t bytes) {
  if (bytes >= int64_t{1} << 30) return fmt::format("{:.2f} GiB", static_cast<double>(bytes) / (1 << 30));
  if (bytes >= 1 << 20) return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / (1 << 20));
  if (bytes >= 1 << 10) return fmt::format("{:.1f} KiB", static_cast<double>(bytes) / (1 << 10));
  return fmt::format("{} B", bytes);
}

void line(const char* label, const std::string& value) { fmt::print("{:<14}{}\n", label, value); }

void print(const ModelDescription& model, int64_t length) {
  const ModelSpec& spec = model.spec;
  line("family", spec.model_type);
  line("layers", fmt::format("{}, {} with full attention: {}", spec.layers, model.full_layers.size(),
                             fmt::join(model.full_layers, " ")));
  line("sizes", fmt::format("hidden {}, heads {} of {}, kv heads {}, intermediate {}, vocabulary {}, positions {}",
                            spec.hidden, spec.heads, spec.head_dim, spec.kv_heads, spec.intermediate, spec.vocabulary,
                            spec.max_positions));
  std::string dtypes;
  for (const auto& [dtype, count] : model.parameters_as)
    dtypes += fmt::format("{}{} {}", dtypes.empty() ? "" : ", ", count, dtype);
  line("parameters", fmt::format("{} in {} tensors, {}", dtypes, model.tensors, in_units(model.bytes)));
  const int64_t cache = model.cache_bytes(length);
  line("KV cache", fmt::format("{} B a token", model.kv_bytes_per_token));
  line("states", fmt::format("{} in all, whatever the length", in_units(model.state_bytes)));
  line("memory", fmt::format("{} for one sequence of {} tokens, {:.1f} B a token", in_units(cache), length,
                             static_cast<double>(cache) / static_cast<double>(length)));
}

}  // namespace

CommandWork inspect_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("folder", options->folder, "a Hugging Face folder: config.json and *.safetensors")->required();
  app.add_option("--length", options->length, "tokens of a sequence, for its memory (default: the longest position)")
      ->check(CLI::PositiveNumber);
  return [options] {
    const ModelDescription model = describe(options->folder);
    print(model, options->length == 0 ? model.spec.max_positions : options->length);
    return 0;
  };
}

}  // namespace flashmorph
