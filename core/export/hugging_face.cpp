#include "core/export/hugging_face.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <system_error>

#include "core/base/bad_input.h"
#include "core/export/modeling_code.h"
#include "core/io/atomic_file.h"
#include "core/io/safetensors.h"
#include "core/mixer/decay.h"

namespace flashmorph {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

// What a teacher's folder may hold besides its configuration and weights, and a hybrid's folder needs as it is.
constexpr const char* kCopiedFiles[] = {
    "tokenizer.json", "tokenizer_config.json",  "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt",     "generation_config.json", "chat_template.jinja",     "chat_template.json"};

// A folder under construction; gone with its content unless it was moved to its place.
class StagingFolder {
 public:
  explicit StagingFolder(const fs::path& place) : path_(neighbour(place, "partial")) {
    fs::remove_all(path_);
    fs::create_directories(path_);
  }
  ~StagingFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  StagingFolder(const StagingFolder&) = delete;
  StagingFolder& operator=(const StagingFolder&) = delete;

  const fs::path& path() const { return path_; }

  void move_to(const fs::path& place) {
    const fs::path old = neighbour(place, "old");
    fs::remove_all(old);
    if (fs::exists(place)) fs::rename(place, old);
    fs::rename(path_, place);
    sync(place.parent_path());
    fs::remove_all(old);
  }

 private:
  static fs::path neighbour(const fs::path& place, const char* role) {
    return place.parent_path() / fmt::format(".{}.{}", place.filename().string(), role);
  }

  static void sync(const fs::path& folder) {
    const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const bool synced = descriptor >= 0 && ::fsync(descriptor) == 0;
    const int error = errno;
    if (descriptor >= 0) ::close(descriptor);
    if (!synced) throw std::system_error(error, std::generic_category(), folder.string());
  }

  fs::path path_;
};

std::string read_file(const fs::path& file) {
  if (!fs::is_regular_file(file)) throw BadInput(file.string(), "expected a file, found none");
  std::ifstream in(file, std::ios::binary);
  std::string content{std::istreambuf_iterator<char>(in), {}};
  if (!in) throw BadInput(file.string(), "cannot be read");
  return content;
}

Json read_config(const fs::path& file) {
  Json config = Json::parse(read_file(file), nullptr, false);
  if (!config.is_object()) throw BadInput(file.string(), "expected a JSON object");
  return config;
}

int64_t positive(const Json& config, const char* key, const fs::path& file) {
  const auto found = config.find(key);
  if (found == config.end() || !found->is_number_integer() || found->get<int64_t>() < 1)
    throw BadInput(file.string(), fmt::format("{}: expected a positive integer, found {}", key,
                                              found == config.end() ? "nothing" : found->dump()));
  return found->get<int64_t>();
}

const char* dtype_name(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
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

Json layer_types(const std::vector<int64_t>& full_layers, int64_t layers) {
  Json types = std::vector<std::string>(layers, "linear_attention");
  for (const int64_t layer : full_layers) {
    TORCH_CHECK(0 <= layer && layer < layers, "full layer ", layer, " of a model of ", layers, " layers");
    types[layer] = "full_attention";
  }
  return types;
}

// Loaders differ in what a decay's name means, so the numbers themselves are written.
Json branch_settings(const MixerSection& mixer, int64_t heads, int64_t layers) {
  Json decays = Json::array();
  for (int64_t layer = 0; layer < layers; ++layer) decays.push_back(log_decays(mixer.decay, heads, layer, layers));
  return {{"mixer", mixer.kind}, {"decay", mixer.decay}, {"log_decay", decays}, {"output_norm", mixer.output_norm},
          {"rope", mixer.rope},  {"chunk", mixer.chunk}};
}

Json hybrid_config(const ExportContent& content) {
  const fs::path file = content.source / "config.json";
  Json config = read_config(file);
  const int64_t layers = positive(config, "num_hidden_layers", file);
  const int64_t heads = positive(config, "num_attention_heads", file);
  config["model_type"] = "flashmorph";
  config["architectures"] = {"FlashmorphForCausalLM"};
  config["auto_map"] = {{"AutoConfig", "modeling_flashmorph.FlashmorphConfig"},
                        {"AutoModelForCausalLM", "modeling_flashmorph.FlashmorphForCausalLM"}};
  config.erase("torch_dtype");  // the older name of dtype
  config["dtype"] = dtype_name(content.tensors.front().second);
  config["layer_types"] = layer_types(content.full_layers, layers);
  config["flashmorph"] = branch_settings(content.mixer, heads, layers);
  return config;
}

}  // namespace

void export_hugging_face(const fs::path& folder, const ExportContent& content) {
  TORCH_CHECK(!content.tensors.empty(), "an export needs tensors");
  TORCH_CHECK(content.mixer.kind == "lightning", "modeling_flashmorph.py has no mixer ", content.mixer.kind);
  const fs::path place = fs::absolute(folder).lexically_normal();
  const std::string config = hybrid_config(content).dump(2) + "\n";

  StagingFolder staging(place);
  for (const char* name : kCopiedFiles)
    if (fs::exists(content.source / name))
      write_file_atomically(staging.path() / name, read_file(content.source / name));
  write_file_atomically(staging.path() / "config.json", config);
  write_file_atomically(staging.path() / "modeling_flashmorph.py", modeling_code());
  write_file_atomically(staging.path() / "README.md", content.model_card);
  write_safetensors(staging.path() / "model.safetensors", content.tensors, {{"format", "pt"}});
  staging.move_to(place);
}

}  // namespace flashmorph
