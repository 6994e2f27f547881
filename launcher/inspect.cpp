#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>

#include "core/base/listed.h"
#include "core/export/describe.h"
#include "core/io/checksums.h"
#include "core/tokenizer/tokenizer.h"
#include "launcher/commands.h"
#include "launcher/terminal.h"

namespace flashmorph {
namespace {

struct InspectOptions {
  std::string folder;
  int64_t length = 0;  // tokens; 0: the model's longest position
};

void line(const char* label, const std::string& value) { fmt::print("{:<14}{}\n", label, value); }

std::string indices(const std::vector<bool>& layers, bool of) {
  std::vector<size_t> found;
  for (size_t layer = 0; layer < layers.size(); ++layer)
    if (layers[layer] == of) found.push_back(layer);
  return listed(found, " ");
}

std::string layers_of(const HybridSpec& hybrid) {
  const auto full = std::ranges::count(hybrid.full, true);
  std::string text = fmt::format("{}, {} with full attention", hybrid.full.size(), full);
  if (full == static_cast<int64_t>(hybrid.full.size())) return text;
  return text + fmt::format(": {}; {} linear ({}): {}", indices(hybrid.full, true), hybrid.full.size() - full,
                            hybrid.mixer.kind, indices(hybrid.full, false));
}

std::string experts_of(const ExpertsSpec& experts) {
  return fmt::format("{} of {}, {} a token{}, in {} layers", experts.count, experts.intermediate, experts.per_token,
                     experts.normalized ? ", weights normalised" : "", std::ranges::count(experts.in_layer, true));
}

std::string parameters_of(const ModelDescription& model) {
  std::string dtypes;
  for (const auto& [dtype, count] : model.parameters_as)
    dtypes += fmt::format("{}{} as {}", dtypes.empty() ? "" : ", ", count, dtype);
  return fmt::format("{} in {} tensors, {} ({})", model.parameters, model.tensors, short_bytes(model.bytes), dtypes);
}

void print(const ModelDescription& model, int64_t length) {
  const ModelSpec& spec = model.hybrid.model;
  line("format", model.format);
  line("family", spec.model_type);
  line("layers", layers_of(model.hybrid));
  line("sizes",
       fmt::format("hidden {}, heads {} of {}, kv heads {}, intermediate {}, vocabulary {}, positions {}", spec.hidden,
                   spec.heads, spec.head_dim, spec.kv_heads, spec.intermediate, spec.vocabulary, spec.max_positions));
  for (const std::string& note : model.notes) line("note", note);
  if (spec.experts.count > 0) line("experts", experts_of(spec.experts));
  line("parameters", parameters_of(model));
  const int64_t cache = model.cache_bytes(length);
  line("KV cache", fmt::format("{} B a token; {} B if every layer had full attention", model.kv_bytes_per_token,
                               model.full_kv_bytes_per_token));
  line("states", fmt::format("{}, whatever the length", short_bytes(model.state_bytes)));
  line("memory", fmt::format("{} for a sequence of {} tokens, {:.1f} B a token; {} if every layer had full attention",
                             short_bytes(cache), length, static_cast<double>(cache) / static_cast<double>(length),
                             short_bytes(model.full_kv_bytes_per_token * length)));
}

// Last, so that a tokenizer that cannot be read does not hide the rest.
void print_tokenizer(const std::filesystem::path& folder, int64_t vocabulary) {
  if (!std::filesystem::exists(folder / "tokenizer.json")) return;
  const Tokenizer tokenizer = Tokenizer::of_model(folder, vocabulary);
  line("tokenizer", fmt::format("{} tokens; {} ends a text", tokenizer.vocab_size(), tokenizer.end_of_text()));
}

}  // namespace

CommandWork inspect_command(CLI::App& app) {
  auto options = std::make_shared<InspectOptions>();
  app.add_option("folder", options->folder, "a Hugging Face folder: config.json and *.safetensors")->required();
  app.add_option("--length", options->length, "tokens of a sequence, for its memory (default: the longest position)")
      ->check(CLI::PositiveNumber);
  return [options] {
    const ModelDescription model = describe(options->folder);
    check_checksums(options->folder);
    print(model, options->length == 0 ? model.hybrid.model.max_positions : options->length);
    print_tokenizer(options->folder, model.hybrid.model.vocabulary);
    return 0;
  };
}

}  // namespace flashmorph
