#include "core/io/tokenizer_file.h"

#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_set>

#include "core/base/bad_input.h"
#include "core/io/json_input.h"
#include "core/io/utf8.h"

namespace flashmorph {
namespace {

using nlohmann::json;

constexpr uint64_t kHighestId = 10'000'000;
constexpr const char* kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

[[noreturn]] void unsupported(const std::string& where, const json& value) {
  throw BadInput(where, "is " + value.dump().substr(0, 120) + ", which is not supported");
}

const json& part_of(const json& object, const char* key) {
  static const json nothing;
  return object.is_object() && object.contains(key) ? object[key] : nothing;
}

// GPT-2's alphabet: every byte as one printable character.
const std::array<std::string, 256>& character_of_byte() {
  static const std::array<std::string, 256> alphabet = [] {
    std::array<std::string, 256> characters;
    uint32_t next = 256;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
      characters[byte] = utf8_of(printable ? byte : next++);
    }
    return characters;
  }();
  return alphabet;
}

// The bytes that a token of the alphabet's characters stands for; a token with any other character stands for itself.
std::string bytes_of_token(const std::string& token) {
  static const std::unordered_map<std::string_view, char> byte_of = [] {
    std::unordered_map<std::string_view, char> bytes;
    for (int byte = 0; byte < 256; ++byte) bytes[character_of_byte()[byte]] = static_cast<char>(byte);
    return bytes;
  }();
  std::string bytes;
  for (size_t at = 0; at < token.size();) {
    const auto character = std::string_view(token).substr(at, utf8_length(token[at]));
    const auto found = byte_of.find(character);
    if (found == byte_of.end()) return token;
    bytes += found->second;
    at += character.size();
  }
  return bytes;
}

bool asks_for_nfc(const json& normalizer, const std::string& where) {
  const json &type = part_of(normalizer, "type"), &steps = part_of(normalizer, "normalizers");
  if (normalizer.is_null()) return false;
  if (type == "NFC") return true;
  if (type != "Sequence" || !steps.is_array()) unsupported(where, normalizer);
  bool to_nfc = false;
  for (const json& step : steps) to_nfc |= asks_for_nfc(step, where);
  return to_nfc;
}

// The pattern of one step before the last; the last is ByteLevel, whose own pattern may be switched off.
std::optional<std::string> pattern_of(const json& step, bool last, const std::string& where) {
  const json &type = part_of(step, "type"), &regex = part_of(part_of(step, "pattern"), "Regex");
  const bool split = type == "Split" && part_of(step, "behavior") == "Isolated" && part_of(step, "invert") != true;
  if (!last && split && regex.is_string()) return regex.get<std::string>();
  if (!last || type != "ByteLevel" || part_of(step, "add_prefix_space") != false) unsupported(where, step);
  if (part_of(step, "use_regex") == false) return std::nullopt;
  return kGpt2Pattern;
}

std::vector<SplitPattern> read_patterns(const json& pre_tokenizer, const std::string& where) {
  const json one_step = json::array({pre_tokenizer});
  const json& steps = part_of(pre_tokenizer, "type") == "Sequence" ? part_of(pre_tokenizer, "pretokenizers") : one_step;
  if (!steps.is_array() || steps.empty()) unsupported(where, pre_tokenizer);
  std::vector<SplitPattern> patterns;
  for (size_t i = 0; i < steps.size(); ++i)
    if (const auto pattern = pattern_of(steps[i], i + 1 == steps.size(), where)) patterns.emplace_back(*pattern, where);
  return patterns;
}

class Reader {
 public:
  explicit Reader(const std::filesystem::path& path) : name_(path.string()), root_(read_json_file(path)) {}

  TokenizerFile read() {
    check_model();
    file_.to_nfc = asks_for_nfc(part_of(root_, "normalizer"), name_ + ": normalizer");
    file_.patterns = read_patterns(part_of(root_, "pre_tokenizer"), name_ + ": pre_tokenizer");
    if (part_of(part_of(root_, "decoder"), "type") != "ByteLevel")
      unsupported(name_ + ": decoder", part_of(root_, "decoder"));
    read_vocabulary();
    read_merges();
    read_added_tokens();
    return std::move(file_);
  }

 private:
  void check_model() {
    const json& model = part_of(root_, "model");
    if (part_of(model, "type") != "BPE") unsupported(name_ + ": model.type", part_of(model, "type"));
    if (!part_of(model, "vocab").is_object() || !part_of(model, "merges").is_array())
      throw BadInput(name_ + ": model", "lacks a vocab object or a merges array");
    for (const char* key : {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"})
      if (const json& value = part_of(model, key); !value.is_null() && value != "")
        unsupported(name_ + ": model." + key, value);
    if (part_of(model, "byte_fallback") == true) unsupported(name_ + ": model.byte_fallback", true);
  }

  // Books the id for a token; what the token decodes to is kept with it.
  int32_t take_id(const json& value, const std::string& token) {
    const std::string where = name_ + ": token \"" + token + "\"";
    if (!value.is_number_unsigned() || value.get<uint64_t>() > kHighestId)
      throw BadInput(where, "has the id " + value.dump() + ", expected a number up to " + std::to_string(kHighestId));
    const auto id = value.get<int32_t>();
    if (!taken_.insert(id).second) throw BadInput(where, "has the id " + value.dump() + " of another token");
    if (file_.bytes_of.size() <= static_cast<size_t>(id)) file_.bytes_of.resize(static_cast<size_t>(id) + 1);
    file_.bytes_of[id] = bytes_of_token(token);
    return id;
  }

  void read_vocabulary() {
    const bool ignore_merges = part_of(root_["model"], "ignore_merges") == true;
    for (const auto& [token, value] : root_["model"]["vocab"].items()) {
      const int32_t id = take_id(value, token);
      ids_[token] = id;
      if (ignore_merges) file_.whole_words[file_.bytes_of[id]] = id;
    }
    for (int byte = 0; byte < 256; ++byte) {
      const auto found = ids_.find(character_of_byte()[byte]);
      if (found == ids_.end()) throw BadInput(name_ + ": model.vocab", "has no token for byte " + std::to_string(byte));
      file_.id_of_byte[byte] = found->second;
    }
  }

  void read_merges() {
    for (const json& merge : root_["model"]["merges"]) {
      const std::string where = name_ + ": model.merges";
      const auto [left, right] = pair_of(merge, where);
      for (const std::string& token : {left, right, left + right})
        if (!ids_.contains(token)) throw BadInput(where, merge.dump() + " needs \"" + token + "\", which is not in the vocab");
      file_.merges.add(ids_[left], ids_[right], ids_[left + right]);
    }
  }

  static std::pair<std::string, std::string> pair_of(const json& merge, const std::string& where) {
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string())
      return {merge[0].get<std::string>(), merge[1].get<std::string>()};
    const std::string text = merge.is_string() ? merge.get<std::string>() : "";
    const size_t space = text.find(' ');
    if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos)
      throw BadInput(where, merge.dump().substr(0, 120) + " is not a pair of tokens");
    return {text.substr(0, space), text.substr(space + 1)};
  }

  void read_added_tokens() {
    const json& added = part_of(root_, "added_tokens");
    if (!added.is_null() && !added.is_array()) unsupported(name_ + ": added_tokens", added);
    for (const json& token : added) {
      const json& content = part_of(token, "content");
      if (!content.is_string() || content == "") unsupported(name_ + ": added_tokens", token);
      for (const char* key : {"single_word", "lstrip", "rstrip"})
        if (part_of(token, key) == true) unsupported(name_ + ": added_tokens", token);
      const auto text = content.get<std::string>();
      const auto known = ids_.find(text);
      if (known != ids_.end() && part_of(token, "id") != known->second)
        throw BadInput(name_ + ": token \"" + text + "\"", "has two ids, " + std::to_string(known->second) + " and " +
                                                              part_of(token, "id").dump());
      const bool normalized = part_of(token, "normalized") == true;
      const std::string looked_for = normalized && file_.to_nfc ? nfc(text) : text;
      const int32_t id = known != ids_.end() ? known->second : take_id(part_of(token, "id"), looked_for);
      ids_[text] = id;
      file_.added.push_back({looked_for, id, normalized});
    }
  }

  std::string name_;
  json root_;
  TokenizerFile file_;
  std::unordered_map<std::string, int32_t> ids_;
  std::unordered_set<int32_t> taken_;
};

}  // namespace

TokenizerFile read_tokenizer_file(const std::filesystem::path& path) { return Reader(path).read(); }

}  // namespace flashmorph
