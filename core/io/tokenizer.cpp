#include "core/io/tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

using nlohmann::json;

constexpr const char* kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* kReplacement = "\xEF\xBF\xBD";  // U+FFFD

std::string utf8(uint32_t code) {
  utf8proc_uint8_t bytes[4];
  const auto size = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code), bytes);
  return {reinterpret_cast<const char*>(bytes), static_cast<size_t>(size)};
}

// The text with every byte that is not part of valid UTF-8 replaced by U+FFFD.
std::string valid_utf8(std::string_view text) {
  std::string valid;
  valid.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    utf8proc_int32_t code = 0;
    const auto size = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data() + at),
                                       static_cast<utf8proc_ssize_t>(text.size() - at), &code);
    if (size <= 0) {
      valid += kReplacement;
      ++at;
    } else {
      valid.append(text, at, static_cast<size_t>(size));
      at += static_cast<size_t>(size);
    }
  }
  return valid;
}

std::string nfc(const std::string& text) {
  utf8proc_uint8_t* composed = nullptr;
  const auto size = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                 static_cast<utf8proc_ssize_t>(text.size()), &composed,
                                 static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  if (size < 0) return text;
  std::string result(reinterpret_cast<const char*>(composed), static_cast<size_t>(size));
  std::free(composed);
  return result;
}

// GPT-2's alphabet: every byte as one printable character.
std::array<std::string, 256> byte_alphabet() {
  std::array<std::string, 256> alphabet;
  uint32_t next = 256;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    alphabet[byte] = utf8(printable ? byte : next++);
  }
  return alphabet;
}

class Pattern {
 public:
  Pattern(const std::string& regex, const std::string& file) {
    int error = 0;
    PCRE2_SIZE place = 0;
    code_ = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(regex.data()), regex.size(), PCRE2_UTF | PCRE2_UCP, &error, &place, nullptr);
    if (code_ == nullptr) throw BadInput(file + ": pre_tokenizer", "has a pattern that does not compile at " + std::to_string(place));
    pcre2_jit_compile(code_, PCRE2_JIT_COMPLETE);
  }
  ~Pattern() { pcre2_code_free(code_); }
  Pattern(const Pattern&) = delete;
  Pattern& operator=(const Pattern&) = delete;

  // Calls take(piece) for every match and every stretch between matches.
  template <class Take>
  void split(std::string_view text, Take take) const {
    pcre2_match_data* found = pcre2_match_data_create_from_pattern(code_, nullptr);
    size_t at = 0;
    while (at < text.size()) {
      const int matches = pcre2_match(code_, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at, PCRE2_NO_UTF_CHECK,
                                      found, nullptr);
      const PCRE2_SIZE* range = pcre2_get_ovector_pointer(found);
      if (matches < 0 || range[1] == range[0]) break;
      if (range[0] > at) take(text.substr(at, range[0] - at));
      take(text.substr(range[0], range[1] - range[0]));
      at = range[1];
    }
    if (at < text.size()) take(text.substr(at));
    pcre2_match_data_free(found);
  }

 private:
  pcre2_code* code_ = nullptr;
};

struct AddedToken {
  std::string content;
  int32_t id;
};

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

struct Merge {
  int32_t rank;
  int32_t id;
};

}  // namespace

struct Tokenizer::Implementation {
  std::array<int32_t, 256> id_of_byte{};
  std::unordered_map<uint64_t, Merge> merges;
  std::vector<std::string> bytes_of;  // by id, what it decodes to
  std::vector<AddedToken> added;      // longest first
  std::unique_ptr<Pattern> pattern;
  bool normalizes = false;

  void append_word(std::string_view word, std::vector<int32_t>& out) const;
  void append_plain(std::string_view text, std::vector<int32_t>& out) const;
};

// Byte-level BPE: the pair with the lowest rank merges first, the leftmost among equals.
void Tokenizer::Implementation::append_word(std::string_view word, std::vector<int32_t>& out) const {
  std::vector<int32_t> symbols;
  for (const char byte : word) symbols.push_back(id_of_byte[static_cast<unsigned char>(byte)]);
  while (symbols.size() > 1) {
    Merge best{std::numeric_limits<int32_t>::max(), 0};
    size_t place = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto found = merges.find(pair_key(symbols[i], symbols[i + 1]));
      if (found != merges.end() && found->second.rank < best.rank) {
        best = found->second;
        place = i;
      }
    }
    if (best.rank == std::numeric_limits<int32_t>::max()) break;
    symbols[place] = best.id;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(place) + 1);
  }
  out.insert(out.end(), symbols.begin(), symbols.end());
}

void Tokenizer::Implementation::append_plain(std::string_view text, std::vector<int32_t>& out) const {
  if (text.empty()) return;
  const std::string normal = normalizes ? nfc(std::string(text)) : std::string(text);
  pattern->split(normal, [&](std::string_view word) { append_word(word, out); });
}

namespace {

[[noreturn]] void unsupported(const std::string& file, const std::string& part, const json& value) {
  throw BadInput(file + ": " + part, "is " + value.dump().substr(0, 120) + ", which is not supported");
}

const json& part_of(const json& object, const char* key) {
  static const json nothing;
  return object.is_object() && object.contains(key) ? object[key] : nothing;
}

bool read_normalizer(const json& normalizer, const std::string& file) {
  if (normalizer.is_null()) return false;
  if (part_of(normalizer, "type") != "NFC") unsupported(file, "normalizer", normalizer);
  return true;
}

// The split pattern of a byte-level pre-tokenizer: a Split followed by ByteLevel, or ByteLevel with its own.
std::string read_pattern(const json& pre_tokenizer, const std::string& file) {
  json steps = part_of(pre_tokenizer, "type") == "Sequence" ? part_of(pre_tokenizer, "pretokenizers") : json::array({pre_tokenizer});
  std::string pattern;
  bool byte_level = false;
  for (const json& step : steps) {
    const json& type = part_of(step, "type");
    if (type == "Split" && !byte_level && pattern.empty() && part_of(step, "behavior") == "Isolated" &&
        part_of(step, "invert") != true && part_of(part_of(step, "pattern"), "Regex").is_string()) {
      pattern = step["pattern"]["Regex"].get<std::string>();
    } else if (type == "ByteLevel" && !byte_level && part_of(step, "add_prefix_space") != true) {
      byte_level = true;
      if (part_of(step, "use_regex") != false) {
        if (!pattern.empty()) unsupported(file, "pre_tokenizer", step);
        pattern = kGpt2Pattern;
      }
    } else {
      unsupported(file, "pre_tokenizer", step);
    }
  }
  if (!byte_level || pattern.empty()) unsupported(file, "pre_tokenizer", pre_tokenizer);
  return pattern;
}

std::pair<std::string, std::string> read_merge(const json& merge, const std::string& file) {
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string())
    return {merge[0].get<std::string>(), merge[1].get<std::string>()};
  const std::string text = merge.is_string() ? merge.get<std::string>() : "";
  const size_t space = text.find(' ');
  if (space == std::string::npos) unsupported(file, "model.merges", merge);
  return {text.substr(0, space), text.substr(space + 1)};
}

}  // namespace

Tokenizer Tokenizer::open(const std::filesystem::path& path) {
  const std::string file = path.string();
  std::ifstream in(path);
  if (!in) throw BadInput(file, "cannot be read");
  const json root = json::parse(in, nullptr, /*allow_exceptions=*/false);
  const json &model = part_of(root, "model"), &vocabulary = part_of(model, "vocab");
  if (part_of(model, "type") != "BPE" || !vocabulary.is_object() || !part_of(model, "merges").is_array())
    throw BadInput(file, "is not a byte-level BPE tokenizer (model.type BPE with vocab and merges)");
  for (const char* key : {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"})
    if (const json& value = part_of(model, key); !value.is_null() && value != "") unsupported(file, std::string("model.") + key, value);
  for (const char* key : {"byte_fallback", "ignore_merges"})
    if (part_of(model, key) == true) unsupported(file, std::string("model.") + key, true);

  auto made = std::make_unique<Implementation>();
  made->normalizes = read_normalizer(part_of(root, "normalizer"), file);
  made->pattern = std::make_unique<Pattern>(read_pattern(part_of(root, "pre_tokenizer"), file), file);

  const std::array<std::string, 256> alphabet = byte_alphabet();
  std::unordered_map<std::string, char> byte_of;
  for (int byte = 0; byte < 256; ++byte) byte_of[alphabet[byte]] = static_cast<char>(byte);
  const auto place = [&](const json& id, const std::string& token) -> int32_t {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > 10'000'000)
      throw BadInput(file + ": " + token, "has the id " + id.dump() + ", expected a number below 10000000");
    const auto index = id.get<size_t>();
    if (made->bytes_of.size() <= index) made->bytes_of.resize(index + 1);
    return static_cast<int32_t>(index);
  };
  std::unordered_map<std::string, int32_t> ids;
  for (const auto& [token, id] : vocabulary.items()) {
    const int32_t index = place(id, token);
    ids[token] = index;
    std::string& bytes = made->bytes_of[static_cast<size_t>(index)];
    for (size_t at = 0; at < token.size();) {
      const size_t size = std::max<size_t>(1, static_cast<size_t>(utf8proc_utf8class[static_cast<unsigned char>(token[at])]));
      const auto byte = byte_of.find(token.substr(at, size));
      bytes += byte != byte_of.end() ? std::string(1, byte->second) : token.substr(at, size);
      at += size;
    }
  }
  for (int byte = 0; byte < 256; ++byte) {
    const auto found = ids.find(alphabet[byte]);
    if (found == ids.end()) throw BadInput(file + ": model.vocab", "has no token for byte " + std::to_string(byte));
    made->id_of_byte[byte] = found->second;
  }
  int32_t rank = 0;
  for (const json& merge : model["merges"]) {
    const auto [left, right] = read_merge(merge, file);
    if (!ids.contains(left) || !ids.contains(right) || !ids.contains(left + right)) unsupported(file, "model.merges", merge);
    made->merges.try_emplace(pair_key(ids[left], ids[right]), Merge{rank++, ids[left + right]});
  }
  for (const json& token : part_of(root, "added_tokens")) {
    if (!part_of(token, "content").is_string() || token["content"].get<std::string>().empty()) unsupported(file, "added_tokens", token);
    for (const char* key : {"single_word", "lstrip", "rstrip"})
      if (part_of(token, key) == true) unsupported(file, "added_tokens", token);
    const std::string content = token["content"].get<std::string>();
    made->added.push_back({content, place(part_of(token, "id"), content)});
    made->bytes_of[static_cast<size_t>(made->added.back().id)] = content;
  }
  std::stable_sort(made->added.begin(), made->added.end(),
                   [](const AddedToken& a, const AddedToken& b) { return a.content.size() > b.content.size(); });
  return Tokenizer(std::move(made));
}

std::vector<int32_t> Tokenizer::encode(std::string_view any) const {
  const std::string valid = valid_utf8(any);
  std::string_view text = valid;
  std::vector<int32_t> tokens;
  while (!text.empty()) {
    size_t first = text.size();
    const AddedToken* next = nullptr;
    for (const AddedToken& token : implementation_->added) {
      const size_t found = text.find(token.content);
      if (found < first) {
        first = found;
        next = &token;
      }
    }
    implementation_->append_plain(text.substr(0, first), tokens);
    if (next == nullptr) break;
    tokens.push_back(next->id);
    text.remove_prefix(first + next->content.size());
  }
  return tokens;
}

std::string Tokenizer::decode(const std::vector<int32_t>& tokens) const {
  std::string bytes;
  for (const int32_t token : tokens)
    if (token >= 0 && static_cast<size_t>(token) < implementation_->bytes_of.size())
      bytes += implementation_->bytes_of[static_cast<size_t>(token)];
  return valid_utf8(bytes);
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(implementation_->bytes_of.size()); }

int32_t Tokenizer::id_of(std::string_view token) const {
  for (const AddedToken& added : implementation_->added)
    if (added.content == token) return added.id;
  return -1;
}

Tokenizer::Tokenizer(std::unique_ptr<Implementation> implementation) : implementation_(std::move(implementation)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

}  // namespace flashmorph
