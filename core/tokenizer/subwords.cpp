#include "core/tokenizer/subwords.h"

#include <cstdio>

#include "core/base/bad_input.h"
#include "core/tokenizer/byte_alphabet.h"
#include "core/tokenizer/utf8.h"

namespace flashmorph {
namespace {

using Ids = std::unordered_map<std::string, int32_t>;

std::string fallback_token(size_t byte) {
  char text[8];
  std::snprintf(text, sizeof(text), "<0x%02zX>", byte);
  return text;
}

std::string first_character(const std::string& text) { return text.substr(0, utf8_length(text.front())); }

std::string last_character(const std::string& text) {
  size_t start = text.size() - 1;
  while (start > 0 && (text[start] & 0xC0) == 0x80) --start;
  return text.substr(start);
}

}  // namespace

Subwords::Subwords(const Ids& ids, bool byte_level, bool ignore_merges, const std::string& where)
    : byte_level_(byte_level) {
  for (size_t byte = 0; byte < 256; ++byte) {
    const auto found = ids.find(byte_level ? character_of_byte()[byte] : fallback_token(byte));
    if (found == ids.end()) throw BadInput(where, "has no token for byte " + std::to_string(byte));
    id_of_byte_[byte] = found->second;
  }
  for (const auto& [token, id] : ids) {
    const std::string text = byte_level ? bytes_of_alphabet(token).value_or("") : token;
    if (text.empty()) continue;  // no pre-token is written with other characters
    if (ignore_merges) whole_words_[text] = id;
    if (!byte_level && utf8_length(text.front()) == text.size())
      id_of_character_.insert_or_assign(code_point(text), id);
  }
}

void Subwords::add_merge(const std::string& left, const std::string& right, const Ids& ids) {
  merges_.add(ids.at(left), ids.at(right), ids.at(left + right));
  for (const auto& last : {ids.find(last_character(left)), ids.find(left)})  // the token itself: when it is a byte's
    for (const auto& first : {ids.find(first_character(right)), ids.find(right)})
      if (last != ids.end() && first != ids.end())
        joined_.insert_or_assign(pair_key(last->second, first->second), true);
}

Subwords::Symbols Subwords::symbols_of(std::string_view character) const {
  if (!byte_level_)
    if (const int32_t* id = id_of_character_.find(code_point(character))) return {{*id}, 1};
  Symbols symbols{{}, character.size()};
  for (size_t i = 0; i < character.size(); ++i) symbols.ids[i] = id_of_byte_[static_cast<unsigned char>(character[i])];
  return symbols;
}

std::vector<int32_t> Subwords::encode(std::string_view word) const {
  if (ignores_merges())
    if (const auto whole = whole_words_.find(std::string(word)); whole != whole_words_.end()) return {whole->second};
  std::vector<int32_t> ids;
  for (size_t at = 0; at < word.size();) {
    const std::string_view character = word.substr(at, utf8_length(word[at]));
    const Symbols symbols = symbols_of(character);
    ids.insert(ids.end(), symbols.ids.begin(), symbols.ids.begin() + static_cast<std::ptrdiff_t>(symbols.count));
    at += character.size();
  }
  merges_.merge(ids);
  return ids;
}

size_t Subwords::part_end(std::string_view text) const {
  int32_t last = -1;
  for (size_t at = 0; at < text.size();) {
    const std::string_view character = text.substr(at, utf8_length(text[at]));
    const Symbols symbols = symbols_of(character);
    if (at > 0 && !joined_.contains(pair_key(last, symbols.ids[0]))) return at;
    last = symbols.ids[symbols.count - 1];
    at += character.size();
  }
  return text.size();
}

}  // namespace flashmorph
