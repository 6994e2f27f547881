#include "core/export/hugging_face.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <stdexcept>

#include "core/base/bad_input.h"
#include "core/export/licence.h"
#include "core/export/round_trip.h"
#include "core/export/staging_folder.h"
#include "core/io/atomic_file.h"
#include "core/io/checksums.h"
#include "core/io/json_input.h"
#include "core/io/safetensors.h"

namespace flashmorph {
namespace {

namespace fs = std::filesystem;

constexpr double kLogitTolerance = 2e-4;
constexpr int64_t kTokens = 256;

// What a teacher's folder may hold besides its configuration and weights, and a hybrid's folder needs as it is.
constexpr const char* kCopiedFiles[] = {"tokenizer.json",
                                        "tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "added_tokens.json",
                                        "vocab.json",
                                        "merges.txt",
                                        "tokenizer.model",
                                        "generation_config.json",
                                        "chat_template.jinja",
                                        "chat_template.json",
                                        "LICENSE",
                                        "LICENSE.txt",
                                        "LICENSE.md",
                                        "COPYING",
                                        "USE_POLICY.md",
                                        "NOTICE",
                                        "NOTICE.txt"};

std::string read_file(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::string content{std::istreambuf_iterator<char>(in), {}};
  if (!in) throw BadInput(file.string(), "cannot be read");
  return content;
}

const char* dtype_name(at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble:
      return "float64";
    case at::kBFloat16:
      return "bfloat16";
    case at::kHalf:
      return "float16";
    default:
      return "float32";
  }
}

std::string config_text(const ExportFormat& format, const ExportContent& content) {
  const fs::path file = content.source / "config.json";
  read_json_file(file);  // the checks of foreign JSON
  nlohmann::ordered_json config = format.config(content.hybrid, nlohmann::ordered_json::parse(read_file(file)));
  config.erase("torch_dtype");  // the older name of dtype
  config["dtype"] = dtype_name(content.tensors.front().second.scalar_type());
  return config.dump(2) + "\n";
}

// In this folder; the tests run the Python.
std::string how_to_load(const ExportFormat& format) {
  return fmt::format(R"(It loads with transformers {3} or later{0}:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer, model = (auto.from_pretrained("."{1}) for auto in (AutoTokenizer, AutoModelForCausalLM))
prompt = tokenizer("Once upon a time", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=16)[0]))
```
{2})",
                     format.brings_code() ? ", and runs code of this folder" : "",
                     format.brings_code() ? ", trust_remote_code=True" : "",
                     format.has_gguf()
                         ? "\nIt loads with llama.cpp as the file that `python deploy/hf_to_gguf.py FOLDER "
                           "MODEL.gguf` of flashmorph-dist makes of this folder.\n"
                         : "",
                     format.transformers());
}

std::string about(const Licence& licence) {
  if (licence.name.empty())
    return "The teacher's folder names no licence: ask its makers before you use or pass on this model.";
  return fmt::format("The teacher's licence, and so this model's: {}, as the teacher's {} says.", licence.name,
                     licence.file);
}

// What model hubs read, the title, how to load the folder, its licence, the rest of the card.
std::string whole_card(const ExportFormat& format, const ExportContent& content) {
  const Licence licence = licence_of(content.source);
  const std::string& card = content.model_card;
  const size_t title_end = std::min(card.find('\n'), card.size());
  return fmt::format("---\n{}library_name: transformers\npipeline_tag: text-generation\n---\n\n{}\n\n{}\n{}{}",
                     licence.is_identifier() ? "license: " + licence.name + "\n" : "", card.substr(0, title_end),
                     how_to_load(format), about(licence), card.substr(title_end));
}

// The same function as before? The hybrid and the files, run side by side.
ExportReport read_back(const fs::path& folder, const ExportFormat& format, const ExportContent& content) {
  const ConfigJson config = ConfigJson::open(folder);
  TORCH_CHECK(format.reads(config), format.name(), " does not know its own config.json");
  const HybridSpec written = format.hybrid_of(config);
  const ModelFiles files = ModelFiles::open(folder);
  const int64_t length = std::min(kTokens, content.hybrid.model.max_positions);
  const at::Tensor tokens = at::arange(length, at::kLong) * 7919 % content.hybrid.model.vocabulary;
  const at::ScalarType dtype = content.tensors.front().second.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor before =
      hybrid_logits(content.hybrid, ModelFiles::of(content.source, content.tensors), tokens, dtype);
  const at::Tensor after = hybrid_logits(written, format.own_tensors(files, written), tokens, dtype);
  const double difference = (after - before).abs().max().item<double>();
  if (!(difference <= kLogitTolerance))
    throw std::runtime_error(
        fmt::format("{}: read back as {}, a logit differs by {:.3g} (allowed: {:.0e}); nothing was exported",
                    folder.string(), format.name(), difference, kLogitTolerance));
  return {format.name(), length, difference};
}

}  // namespace

ExportReport export_hugging_face(const fs::path& folder, const ExportFormat& format, const ExportContent& content) {
  TORCH_CHECK(!content.tensors.empty(), "an export needs tensors");
  const fs::path place = fs::absolute(folder).lexically_normal();
  const std::string config = config_text(format, content);

  StagingFolder staging(place);
  for (const char* name : kCopiedFiles)
    if (fs::exists(content.source / name))
      write_file_atomically(staging.path() / name, read_file(content.source / name));
  for (const auto& [name, text] : format.more_files(content.hybrid.mixer))
    write_file_atomically(staging.path() / name, text);
  write_file_atomically(staging.path() / "config.json", config);
  write_file_atomically(staging.path() / "README.md", whole_card(format, content));
  write_safetensors(staging.path() / "model.safetensors", format.tensors(content.hybrid, content.tensors),
                    {{"format", "pt"}});
  const ExportReport report = read_back(staging.path(), format, content);
  write_checksums(staging.path());
  staging.move_to_place();
  return report;
}

}  // namespace flashmorph
