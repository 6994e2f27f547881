#include "core/model/stored_model.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>
#include <set>

#include "core/base/bad_input.h"
#include "core/io/json_input.h"
#include "core/model/weights.h"

namespace flashmorph {
namespace {

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";

using Names = std::map<std::string, TensorPart>;

// The first few names, and how many more there are.
std::string few_of(const std::vector<std::string>& names) {
  constexpr size_t kShown = 4;
  const std::vector<std::string> shown(names.begin(), names.begin() + std::min(kShown, names.size()));
  const std::string more = names.size() > kShown ? fmt::format(" and {} more", names.size() - kShown) : "";
  return fmt::format("{}{}", fmt::join(shown, ", "), more);
}

// ---- Quantized weights ----------------------------------------------------------------------------------------------

// Last parts of the names of what FP8, compressed-tensors, GPTQ, AWQ, bitsandbytes, HQQ, AQLM and ModelOpt store beside
// or instead of a weight; and of adapters that are not merged into it.
const std::set<std::string>& parts_beside_weights() {
  static const std::set<std::string> known = {"weight_scale",
                                              "weight_scale_inv",
                                              "weight_scale_2",
                                              "weight_global_scale",
                                              "weight_zero_point",
                                              "weight_packed",
                                              "weight_shape",
                                              "weight_g_idx",
                                              "input_scale",
                                              "input_zero_point",
                                              "activation_scale",
                                              "output_scale",
                                              "k_scale",
                                              "v_scale",
                                              "input_global_scale",
                                              "scale",
                                              "scales",
                                              "biases",
                                              "zeros",
                                              "zero_point",
                                              "qweight",
                                              "qzeros",
                                              "g_idx",
                                              "absmax",
                                              "nested_absmax",
                                              "quant_map",
                                              "nested_quant_map",
                                              "SCB",
                                              "weight_format",
                                              "W_q",
                                              "codes",
                                              "codebooks",
                                              "weight_blocks",
                                              "weight_scales",
                                              "lora_A",
                                              "lora_B",
                                              "base_layer"};
  return known;
}

bool is_beside_a_weight(const std::string& name) {
  for (size_t begin = 0, end = 0; begin <= name.size(); begin = end + 1) {
    end = std::min(name.find('.', begin), name.size());
    const std::string part = name.substr(begin, end - begin);
    if (parts_beside_weights().contains(part) || part.starts_with("quant_state") || part.ends_with("_blocks") ||
        part.ends_with("_scales"))
      return true;
  }
  return false;
}

void refuse_quantized(const std::filesystem::path& folder, const ModelFiles& files) {
  std::vector<std::string> beside;
  for (const std::string& name : files.names())
    if (is_beside_a_weight(name)) beside.push_back(name);
  if (!beside.empty())
    throw BadInput(folder.string(), "holds " + few_of(beside) +
                                        ": quantized weights or adapters, which are not supported; expected whole "
                                        "weights in float32, float16 or bfloat16");
  for (const char* name : {"hf_quant_config.json", "quantize_config.json", "quant_config.json"})
    if (std::filesystem::exists(folder / name))
      throw BadInput((folder / name).string(), "says that the weights are quantized, which is not supported");
}

// ---- Names ----------------------------------------------------------------------------------------------------------

// Every tensor that a model of this spec has, with its shape.
std::map<std::string, std::vector<int64_t>> tensors_of(const ModelSpec& spec) {
  const ModelFiles none = ModelFiles::of("", std::map<std::string, MadeTensor>{});
  const Placement shapes{.device = at::kMeta};
  std::map<std::string, std::vector<int64_t>> tensors;
  const auto add = [&](const Parameters& parameters) {
    for (const Parameter& parameter : parameters) tensors[parameter.name] = parameter.value.sizes().vec();
  };
  add(parameters_of(load_embedding(none, spec, shapes)));
  for (int64_t layer = 0; layer < spec.layers; ++layer) {
    add(parameters_of(load_attention(none, spec, layer, shapes), layer));
    add(parameters_of(load_block(none, spec, layer, shapes), layer));
  }
  const EmbeddingWeights tied{.tokens = at::empty({0}, at::kMeta)};
  add(parameters_of(load_head(none, spec, shapes, spec.tied_embeddings ? &tied : nullptr), spec.tied_embeddings));
  return tensors;
}

// As the files call it, with or without the prefix; empty when they have no such tensor.
std::string stored_name(const ModelFiles& files, const std::string& name) {
  for (const std::string& candidate : {name, name.starts_with("model.") ? name.substr(6) : name, "model." + name})
    if (files.has(candidate)) return candidate;
  return "";
}

std::string replaced(std::string text, const std::string& old, const std::string& with) {
  const size_t at = text.find(old);
  return at == std::string::npos ? text : text.replace(at, old.size(), with);
}

// Where the tensor `name` may be stored, the likeliest first.
class Sources {
 public:
  Sources(const ModelSpec& spec, const std::string& name, const std::vector<int64_t>& shape)
      : spec_(spec), shape_(shape) {
    whole(spec.norm_after ? norm_after(name) : name);
    rows_of(name, "self_attn.q_proj", "self_attn.qkv_proj", {queries(), keys(), keys()}, 0);
    rows_of(name, "self_attn.k_proj", "self_attn.qkv_proj", {queries(), keys(), keys()}, 1);
    rows_of(name, "self_attn.v_proj", "self_attn.qkv_proj", {queries(), keys(), keys()}, 2);
    rows_of(name, "mlp.gate_proj", "mlp.gate_up_proj", {spec.intermediate, spec.intermediate}, 0);
    rows_of(name, "mlp.up_proj", "mlp.gate_up_proj", {spec.intermediate, spec.intermediate}, 1);
    if (spec.experts.count > 0) experts(name);
  }

  // The first that is stored; BadInput with the likeliest when none is.
  TensorPart stored_in(const ModelFiles& files) const {
    for (TensorPart part : parts_)
      if (const std::string name = stored_name(files, part.of); !name.empty()) {
        part.of = name;
        return part;
      }
    throw BadInput(files.path().string(), "has no tensor " + parts_.front().of);
  }

 private:
  // OLMo-2 names its two norms by where they stand, behind.
  static std::string norm_after(const std::string& name) {
    if (name.find("post_attention_layernorm") != std::string::npos)
      return replaced(name, "post_attention_layernorm", "post_feedforward_layernorm");
    return replaced(name, "input_layernorm", "post_attention_layernorm");
  }

  int64_t queries() const { return spec_.heads * spec_.head_dim; }
  int64_t keys() const { return spec_.kv_heads * spec_.head_dim; }

  void whole(const std::string& stored) { parts_.push_back({.of = stored, .whole = shape_}); }

  void rows_of(const std::string& name, const char* ours, const char* joined, const std::vector<int64_t>& sizes,
               size_t place) {
    if (name.find(ours) == std::string::npos) return;
    std::vector<int64_t> whole = shape_;
    whole[0] = 0;
    for (const int64_t size : sizes) whole[0] += size;
    int64_t start = 0;
    for (size_t before = 0; before < place; ++before) start += sizes[before];
    parts_.push_back(
        {.of = replaced(name, ours, joined),
         .whole = whole,
         .part = [start, size = sizes[place]](const at::Tensor& all) { return all.narrow(0, start, size); }});
  }

  // mlp.experts.E.{gate,up,down}_proj.weight and the router, mlp.gate.weight.
  void experts(const std::string& name) {
    whole(replaced(name, "mlp.gate.", "block_sparse_moe.gate."));
    static const std::regex pattern(R"((.*)mlp\.experts\.(\d+)\.(gate|up|down)_proj\.weight)");
    std::smatch match;
    if (!std::regex_match(name, match, pattern)) return;
    const std::string layer = match[1], expert = match[2], projection = match[3];
    const char* mixtral = projection == "gate" ? "w1" : projection == "up" ? "w3" : "w2";
    whole(layer + "block_sparse_moe.experts." + expert + "." + mixtral + ".weight");
    const int64_t number = std::stoll(expert), inner = spec_.experts.intermediate;
    const std::string all = layer + "mlp.experts.";
    if (projection == "down") {
      parts_.push_back({.of = all + "down_proj",
                        .whole = {spec_.experts.count, spec_.hidden, inner},
                        .part = [number](const at::Tensor& joined) { return joined.select(0, number); }});
      return;
    }
    const int64_t start = projection == "gate" ? 0 : inner;
    parts_.push_back(
        {.of = all + "gate_up_proj",
         .whole = {spec_.experts.count, 2 * inner, spec_.hidden},
         .part = [=](const at::Tensor& joined) { return joined.select(0, number).narrow(0, start, inner); }});
  }

  const ModelSpec& spec_;
  const std::vector<int64_t>& shape_;
  std::vector<TensorPart> parts_;
};

// What older files store and the configuration says as well: rotary frequencies and causal masks.
bool follows_from_the_config(const std::string& name) {
  return name.ends_with("rotary_emb.inv_freq") || name.ends_with("attn.bias") || name.ends_with("attn.masked_bias");
}

// ---- The head -------------------------------------------------------------------------------------------------------

bool are_equal(const ModelFiles& files, const std::string& a, const std::string& b) {
  return files.shape(a) == files.shape(b) && files.entry(a).dtype == files.entry(b).dtype &&
         at::equal(files.view(a), files.view(b));
}

}  // namespace

StoredModel StoredModel::open(const std::filesystem::path& folder) {
  StoredModel model{.spec = ModelSpec::open(folder), .weights = ModelFiles::open(folder)};
  const ModelFiles& files = model.weights;
  refuse_quantized(folder, files);

  const std::string embedding = stored_name(files, kEmbedding), head = stored_name(files, kHead);
  std::set<std::string> used;
  if (model.spec.tied_embeddings && !embedding.empty() && !head.empty()) {
    if (are_equal(files, embedding, head)) {
      used.insert(head);
    } else {
      model.spec.tied_embeddings = false;
      model.notes.push_back(folder.string() + ": config.json ties the head to the embedding, but " + head +
                            " is stored and differs: the stored head counts, as in transformers");
    }
  }

  Names names;
  for (const auto& [name, shape] : tensors_of(model.spec)) {
    const bool only_head = name == kEmbedding && model.spec.tied_embeddings && embedding.empty() && !head.empty();
    names[name] =
        only_head ? TensorPart{.of = head, .whole = shape} : Sources(model.spec, name, shape).stored_in(files);
    used.insert(names[name].of);
  }
  std::vector<std::string> unused;
  for (const std::string& name : files.names())
    if (!used.contains(name) && !follows_from_the_config(name)) unused.push_back(name);
  if (!unused.empty())
    model.notes.push_back(folder.string() + ": nothing uses the stored " + few_of(unused) +
                          ": config.json describes a model without them");
  model.weights = files.under(names);
  return model;
}

ModelSpec StoredModel::spec_of(const std::filesystem::path& folder) {
  const bool has_weights = std::filesystem::exists(folder / "model.safetensors") ||
                           std::filesystem::exists(folder / "model.safetensors.index.json");
  return has_weights ? open(folder).spec : ModelSpec::open(folder);
}

}  // namespace flashmorph
