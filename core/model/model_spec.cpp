#include "core/model/model_spec.h"

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

using nlohmann::json;

// What sets the families apart.
struct Family {
  bool query_key_norm;
};

const std::map<std::string, Family>& families() {
  static const std::map<std::string, Family> known = {{"qwen3", {.query_key_norm = true}}};
  return known;
}

std::string known_families() {
  std::string text;
  for (const auto& [name, family] : families()) text += (text.empty() ? "" : ", ") + name;
  return text;
}

// Typed access to config.json; every fault names the file and the key.
class Reader {
 public:
  Reader(json values, std::string file) : values_(std::move(values)), file_(std::move(file)) {}

  bool has(const std::string& key) const { return values_.contains(key) && !values_[key].is_null(); }

  int64_t size(const std::string& key) const {
    const json& value = required(key);
    if (!value.is_number_integer() || value.get<int64_t>() < 1 || value.get<int64_t>() > (int64_t{1} << 31))
      fail(key, "is " + value.dump() + ", expected a positive integer");
    return value.get<int64_t>();
  }

  double number(const std::string& key, double otherwise) const {
    if (!has(key)) return otherwise;
    if (!values_[key].is_number() || values_[key].get<double>() <= 0.0)
      fail(key, "is " + values_[key].dump() + ", expected a positive number");
    return values_[key].get<double>();
  }

  bool flag(const std::string& key, bool otherwise) const {
    if (!has(key)) return otherwise;
    if (!values_[key].is_boolean()) fail(key, "is " + values_[key].dump() + ", expected true or false");
    return values_[key].get<bool>();
  }

  std::string text(const std::string& key, const std::string& otherwise) const {
    if (!has(key)) return otherwise;
    if (!values_[key].is_string()) fail(key, "is " + values_[key].dump() + ", expected a string");
    return values_[key].get<std::string>();
  }

  Reader inside(const std::string& key) const {
    if (!has(key)) return {json::object(), file_};
    if (!values_[key].is_object()) fail(key, "is " + values_[key].dump() + ", expected an object");
    return {values_[key], file_};
  }

  // The first entry of a list that is not `expected`, or "".
  std::string first_other_than(const std::string& expected, const std::string& key) const {
    if (!has(key)) return "";
    for (const json& entry : values_[key])
      if (entry != expected) return entry.dump();
    return "";
  }

  [[noreturn]] void fail(const std::string& key, const std::string& what) const { throw BadInput(file_ + ": " + key, what); }

 private:
  const json& required(const std::string& key) const {
    if (!has(key)) fail(key, "is missing");
    return values_[key];
  }

  json values_;
  std::string file_;
};

Reader read(const std::filesystem::path& folder) {
  const std::filesystem::path file = folder / "config.json";
  std::ifstream in(file);
  if (!in) throw BadInput(file.string(), "cannot be read; model.path must be a Hugging Face folder");
  json values = json::parse(in, nullptr, /*allow_exceptions=*/false);
  if (!values.is_object()) throw BadInput(file.string(), "is not a JSON object");
  return {std::move(values), file.string()};
}

void refuse_unsupported(const Reader& config) {
  if (const std::string act = config.text("hidden_act", "silu"); act != "silu")
    config.fail("hidden_act", "is " + act + ", only silu is supported");
  if (config.flag("attention_bias", false)) config.fail("attention_bias", "is true, biases are not supported");
  if (config.flag("use_sliding_window", false)) config.fail("use_sliding_window", "is true, sliding windows are not supported");
  if (const std::string kind = config.first_other_than("full_attention", "layer_types"); !kind.empty())
    config.fail("layer_types", "holds " + kind + ", only full_attention is supported");
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const Reader rope = config.inside(key);
    const std::string type = rope.text("rope_type", rope.text("type", "default"));
    if (type != "default") config.fail(key, "asks for " + type + ", only plain RoPE is supported");
  }
}

}  // namespace

ModelSpec ModelSpec::open(const std::filesystem::path& folder) {
  const Reader config = read(folder);
  ModelSpec spec;
  spec.model_type = config.text("model_type", "");
  const auto family = families().find(spec.model_type);
  if (family == families().end())
    config.fail("model_type", "is '" + spec.model_type + "', supported: " + known_families());
  refuse_unsupported(config);

  spec.vocabulary = config.size("vocab_size");
  spec.hidden = config.size("hidden_size");
  spec.intermediate = config.size("intermediate_size");
  spec.layers = config.size("num_hidden_layers");
  spec.heads = config.size("num_attention_heads");
  spec.kv_heads = config.has("num_key_value_heads") ? config.size("num_key_value_heads") : spec.heads;
  spec.max_positions = config.size("max_position_embeddings");
  spec.norm_epsilon = config.number("rms_norm_eps", 1e-6);
  spec.rope_theta = config.inside("rope_parameters").number("rope_theta", config.number("rope_theta", 10000.0));
  spec.query_key_norm = family->second.query_key_norm;
  spec.tied_embeddings = config.flag("tie_word_embeddings", false);

  if (spec.heads % spec.kv_heads != 0)
    config.fail("num_key_value_heads", "is " + std::to_string(spec.kv_heads) + ", which does not divide the " +
                                           std::to_string(spec.heads) + " attention heads");
  if (!config.has("head_dim") && spec.hidden % spec.heads != 0)
    config.fail("head_dim", "is missing and hidden_size is not a multiple of num_attention_heads");
  spec.head_dim = config.has("head_dim") ? config.size("head_dim") : spec.hidden / spec.heads;
  if (spec.head_dim % 2 != 0) config.fail("head_dim", "is " + std::to_string(spec.head_dim) + ", expected an even number");
  return spec;
}

void ModelSpec::check_tensor_parallel(int64_t tensor) const {
  const auto splits = [&](int64_t ranks) {
    return ranks >= 1 && heads % ranks == 0 && kv_heads % ranks == 0 && intermediate % ranks == 0 && vocabulary % ranks == 0;
  };
  if (splits(tensor)) return;
  std::string could;
  for (int64_t ranks = 1; ranks <= kv_heads; ++ranks)
    if (splits(ranks)) could += (could.empty() ? "" : ", ") + std::to_string(ranks);
  throw BadInput("parallel.tensor", std::to_string(tensor) + " does not divide the model's " + std::to_string(heads) +
                                        " heads, " + std::to_string(kv_heads) + " kv heads, intermediate size " +
                                        std::to_string(intermediate) + " and vocabulary " + std::to_string(vocabulary) +
                                        "; these would: " + could);
}

}  // namespace flashmorph
