#include "core/tasks/material.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

constexpr size_t kLongPiece = 200;  // bytes: a longer line is cut behind its sentences

void add_pieces(std::string_view line, std::vector<std::string>& pieces) {
  while (line.size() > kLongPiece) {
    const size_t end = line.find(". ", kLongPiece / 2);
    if (end == std::string_view::npos) break;
    pieces.emplace_back(line.substr(0, end + 2));
    line.remove_prefix(end + 2);
  }
  if (!line.empty()) pieces.emplace_back(line);
}

std::vector<std::string> pieces_of(std::string_view text) {
  std::vector<std::string> pieces;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size() - 1);
    add_pieces(text.substr(0, end + 1), pieces);
    text.remove_prefix(end + 1);
  }
  return pieces;
}

std::vector<std::string> words_of(std::string_view text) {
  const auto is_lower = [](char c) { return c >= 'a' && c <= 'z'; };
  const auto is_word = [&](std::string_view word) {
    return word.size() >= 4 && word.size() <= 9 && std::ranges::all_of(word, is_lower);
  };
  std::set<std::string, std::less<>> words;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find_first_of(" \n,.;:!?", at), text.size());
    if (const std::string_view word = text.substr(at, end - at); is_word(word)) words.emplace(word);
    at = end + 1;
  }
  return {words.begin(), words.end()};
}

}  // namespace

TaskMaterial::TaskMaterial(const Tokenizer& tokenizer, std::string_view text, std::string_view chat)
    : tokenizer_(tokenizer),
      pieces_(pieces_of(text)),
      words_(words_of(text)),
      tokens_(std::make_shared<TokenList>(tokenizer.encode(text))),
      passkeys_(std::make_shared<PasskeyTask>(tokenizer)) {
  constexpr size_t kLeast = 500;
  if (pieces_.size() < kLeast || words_.size() < kLeast)
    throw BadInput("the tasks' text", fmt::format("has {} lines and {} different words of 4 to 9 letters, expected at "
                                                  "least {} of each",
                                                  pieces_.size(), words_.size(), kLeast));
  if (chat.empty()) return;
  const size_t place = chat.find("{}");
  if (place == std::string_view::npos || place != chat.rfind("{}"))
    throw BadInput("the chat", "expected one {} where the message stands, as the model's template renders it");
  before_message_ = tokenizer.encode(chat.substr(0, place));
  after_message_ = tokenizer.encode_rest(chat.substr(place + 2));
}

std::vector<int32_t> filled(const TaskMaterial& material, const std::string& task, int64_t length, int64_t most,
                            const std::function<std::string(int64_t units)>& text) {
  const auto tokens = [&](int64_t units) { return material.tokenizer().encode(text(units)); };
  const auto size_of = [](const std::vector<int32_t>& all) { return static_cast<int64_t>(all.size()); };
  constexpr int64_t kProbe = 16;
  const int64_t budget = length - most;
  std::vector<int32_t> best = tokens(1);
  if (size_of(best) > budget)
    throw BadInput(task, fmt::format("a length of {} tokens is too short, expected at least {}, answer included",
                                     length, size_of(best) + most));
  const double each = std::max(1.0, static_cast<double>(size_of(tokens(1 + kProbe)) - size_of(best)) / kProbe);
  int64_t units = 1;
  for (int attempt = 0; attempt < 6; ++attempt) {
    const auto more = static_cast<int64_t>(static_cast<double>(budget - size_of(best)) / each);
    if (more < 1) break;
    int64_t larger = units + more;
    std::vector<int32_t> grown = tokens(larger);
    while (larger > units && size_of(grown) > budget) {
      larger -= std::max<int64_t>(1, static_cast<int64_t>(static_cast<double>(size_of(grown) - budget) / each));
      larger = std::max(larger, units);
      grown = larger > units ? tokens(larger) : best;
    }
    if (larger == units) break;
    units = larger;
    best = std::move(grown);
  }
  return best;
}

std::vector<size_t> drawn(size_t count, size_t size, KeyedRandom& random) {
  std::vector<size_t> all(size);
  std::iota(all.begin(), all.end(), size_t{0});
  for (size_t i = 0; i < count; ++i) std::swap(all[i], all[i + random.below(size - i)]);
  all.resize(count);
  return all;
}

std::string random_number(int digits, KeyedRandom& random) {
  std::string number(1, static_cast<char>('1' + random.below(9)));
  while (static_cast<int>(number.size()) < digits) number += static_cast<char>('0' + random.below(10));
  return number;
}

}  // namespace flashmorph
