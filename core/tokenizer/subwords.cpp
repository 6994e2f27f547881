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

Subwords::Subwords(const Ids& ids, const SubwordRules& rules, const std::string& where)
    : byte_level_(rules.byte_level),
      byte_fallback_(rules.byte_fallback),
      ignore_merges_(rules.ignore_merges),
      fuse_unknown_(rules.fuse_unknown) {
  const auto id_or_none = [&](const std::string& token) {
    const auto found = ids.find(token);
    return found == ids.end() ? -1 : found->second;
  };
  if (!rules.unknown.empty() && (unknown_ = id_or_none(rules.unknown)) < 0)
    throw BadInput(where, "lacks the unk_token \"" + rules.unknown + "\"");
  for (size_t byte = 0; byte < 256; ++byte)
    id_of_byte_[byte] = id_or_none(byte_level_ ? character_of_byte()[byte] : fallback_token(byte));
  for (const auto& [token, id] : ids) {
    const std::string text = byte_level_ ? bytes_of_alphabet(token).value_or("") : token;
    if (text.empty()) continue;  // no pre-token is written with other characters
    if (ignore_merges_) whole_words_[text] = id;
    if (!byte_level_ && utf8_length(text.front()) == text.size())
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

size_t Subwords::symbol_size(char lead) const { return byte_level_ ? 1 : utf8_length(lead); }

Subwords::Symbols Subwords::symbols_of(std::string_view symbol) const {
  if (!byte_level_) {
    if (const int32_t* id = id_of_character_.find(code_point(symbol))) return {{*id}, 1, true};
    if (!byte_fallback_) return {{}, 0, false};
  }
  Symbols symbols{{}, symbol.size(), byte_level_};
  for (size_t i = 0; i < symbol.size(); ++i) {
    symbols.ids[i] = id_of_byte_[static_cast<unsigned char>(symbol[i])];
    if (symbols.ids[i] < 0) return {{}, 0, false};
  }
  return symbols;
}

std::vector<int32_t> Subwords::encode(std::string_view word) const {
  if (ignore_merges_)
    if (const auto whole = whole_words_.find(std::string(word)); whole != whole_words_.end()) return {whole->second};
  std::vector<int32_t> ids;
  bool unknown_waits = false;  // until a symbol with its own token comes: bytes that stand in go before it
  const auto let_out = [&] {
    if (unknown_waits) ids.push_back(unknown_);
    unknown_waits = false;
  };
  for (size_t at = 0; at < word.size();) {
    const std::string_view symbol = word.substr(at, symbol_size(word[at]));
    const Symbols symbols = symbols_of(symbol);
    if (symbols.count == 0 && unknown_ >= 0) {
      if (!fuse_unknown_) let_out();
      unknown_waits = true;
    }
    if (symbols.own) let_out();
    ids.insert(ids.end(), symbols.ids.begin(), symbols.ids.begin() + static_cast<std::ptrdiff_t>(symbols.count));
    at += symbol.size();
  }
  let_out();
  merges_.merge(ids);
  return ids;
}

size_t Subwords::part_end(std::string_view text) const {
  int32_t last = -1;  // nothing, or a symbol that what follows may change
  for (size_t at = 0; at < text.size();) {
    const std::string_view symbol = text.substr(at, symbol_size(text[at]));
    const Symbols symbols = symbols_of(symbol);
    if (last >= 0 && symbols.count > 0 && !joined_.contains(pair_key(last, symbols.ids[0]))) return at;
    if (symbols.count == 0)
      last = -1;
    else if (last >= 0 || symbols.own || at == 0)
      last = symbols.ids[symbols.count - 1];
    at += symbol.size();
  }
  return text.size();
}

}  // namespace flashmorph
