#include "core/tokenizer/text_encoder.h"

#include <algorithm>

#include "core/tokenizer/utf8.h"

namespace flashmorph {
namespace {

constexpr size_t kMostWords = 1 << 17, kLongestWord = 64;

}  // namespace

TextEncoder::TextEncoder(const Tokenizer& tokenizer, size_t part)
    : tokenizer_(tokenizer), file_(tokenizer_.file()), part_(part), wanted_(part) {}

void TextEncoder::write(std::string_view text, std::vector<int32_t>& tokens) {
  while (!text.empty()) {
    const std::string_view more = text.substr(0, wanted_ - unread_.size());
    unread_ += more;
    text.remove_prefix(more.size());
    if (unread_.size() < wanted_) return;
    const size_t safe = file_.cuts.last(unread_);
    if (safe > 0) encode_part(std::string_view(unread_).substr(0, safe), false, tokens);
    unread_.erase(0, safe);
    // What could not be read waits for twice as much, so that a long stretch is not read over and over.
    wanted_ = std::max(part_, 2 * std::max(unread_.size(), state_.held.size()));
  }
}

void TextEncoder::finish(std::vector<int32_t>& tokens) {
  encode_part(unread_, true, tokens);
  unread_.clear();
  wanted_ = part_;
  taken_ = 0;
  state_ = {};
}

void TextEncoder::encode_part(std::string_view text, bool last, std::vector<int32_t>& tokens) {
  taken_ += text.size();
  const auto given = [&](std::string_view piece) {
    file_.in_normalized_text.cut(
        file_.normalizer.normalized(std::string(piece), state_.normalizes_anew),
        [&](std::string_view stretch) { encode_stretch(stretch, tokens); },
        [&](int32_t id) { append_added(id, tokens); });
    state_.normalizes_anew = false;
  };
  file_.in_given_text.cut(valid_utf8(text), given, [&](int32_t id) {
    append_added(id, tokens);
    state_.normalizes_anew = true;
  });
  if (last) encode_held(true, tokens);
}

void TextEncoder::append_added(int32_t id, std::vector<int32_t>& tokens) {
  encode_held(true, tokens);
  tokenizer_.require_below_limit(id);
  tokens.push_back(id);
  state_.first = false;
  state_.begins = true;
}

void TextEncoder::encode_stretch(std::string_view text, std::vector<int32_t>& tokens) {
  state_.held += file_.pre_tokenizer.prepared(std::string(text), state_.begins, state_.first);
  state_.first = state_.begins = false;
  encode_held(false, tokens);
}

void TextEncoder::encode_held(bool ends, std::vector<int32_t>& tokens) {
  const std::string_view text = state_.held;
  size_t done = 0;
  if (file_.pre_tokenizer.cuts()) {
    std::vector<std::string_view> pre_tokens;
    done = file_.pre_tokenizer.cut(text, ends, pre_tokens);
    for (const std::string_view pre_token : pre_tokens) append_pre_token(pre_token, tokens);
  } else if (!file_.subwords.ignores_merges()) {
    done = append_parts(text, ends, tokens);
  } else if (ends) {
    append_word(text, tokens);
    done = text.size();
  }
  state_.held.erase(0, done);
}

void TextEncoder::append_pre_token(std::string_view text, std::vector<int32_t>& tokens) {
  if (text.size() <= kLongestWord || file_.subwords.ignores_merges())
    append_word(text, tokens);
  else
    append_parts(text, true, tokens);
}

size_t TextEncoder::append_parts(std::string_view text, bool ends, std::vector<int32_t>& tokens) {
  size_t done = 0;
  while (done < text.size()) {
    const size_t size = file_.subwords.part_end(text.substr(done));
    if (done + size == text.size() && !ends) break;
    append_word(text.substr(done, size), tokens);
    done += size;
  }
  return done;
}

void TextEncoder::append_word(std::string_view word, std::vector<int32_t>& tokens) {
  const auto known = known_words_.find(word);
  if (known != known_words_.end()) {
    tokens.insert(tokens.end(), known->second.begin(), known->second.end());
    return;
  }
  std::vector<int32_t> ids = file_.subwords.encode(word);
  for (const int32_t id : ids) tokenizer_.require_below_limit(id);
  tokens.insert(tokens.end(), ids.begin(), ids.end());
  if (word.size() > kLongestWord) return;
  if (known_words_.size() == kMostWords) known_words_.clear();
  known_words_.emplace(word, std::move(ids));
}

}  // namespace flashmorph
