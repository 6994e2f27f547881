#include "core/io/tokenizer.h"

#include <algorithm>
#include <array>
#include <unordered_map>

#include "core/io/tokenizer_file.h"
#include "core/io/utf8.h"

namespace flashmorph {
namespace {

// Finds added tokens in text: the leftmost first, the longest where several start.
class AddedTokens {
 public:
  void add(std::string content, int32_t id) {
    auto& bucket = by_first_byte_[static_cast<unsigned char>(content.front())];
    const auto shorter = std::find_if(bucket.begin(), bucket.end(),
                                      [&](const auto& token) { return token.first.size() < content.size(); });
    bucket.emplace(shorter, std::move(content), id);
  }

  // Calls plain(text) for each stretch without added tokens and token(id) for each added token, in order.
  template <class Plain, class Token>
  void cut(std::string_view text, Plain plain, Token token) const {
    size_t start = 0;
    for (size_t at = 0; at < text.size();) {
      const auto* found = token_at(text.substr(at));
      if (found == nullptr) {
        ++at;
        continue;
      }
      if (at > start) plain(text.substr(start, at - start));
      token(found->second);
      at += found->first.size();
      start = at;
    }
    if (start < text.size()) plain(text.substr(start));
  }

 private:
  const std::pair<std::string, int32_t>* token_at(std::string_view text) const {
    for (const auto& token : by_first_byte_[static_cast<unsigned char>(text.front())])
      if (text.starts_with(token.first)) return &token;
    return nullptr;
  }

  std::array<std::vector<std::pair<std::string, int32_t>>, 256> by_first_byte_;  // longest first
};

}  // namespace

struct Tokenizer::Implementation {
  TokenizerFile file;
  AddedTokens in_given_text, in_normalized_text;

  // The ids of a pre-token; the same few words make up most of any text.
  class Words {
   public:
    explicit Words(const TokenizerFile& file) : file_(file) {}
    void append(std::string_view word, std::vector<int32_t>& out);

   private:
    static constexpr size_t kMostWords = 1 << 16, kLongestWord = 64;
    std::vector<int32_t> ids_of(const std::string& word) const;

    const TokenizerFile& file_;
    std::unordered_map<std::string, std::vector<int32_t>> known_;
  };

  std::vector<std::string_view> split(std::string_view text) const;
};

std::vector<int32_t> Tokenizer::Implementation::Words::ids_of(const std::string& word) const {
  if (const auto whole = file_.whole_words.find(word); whole != file_.whole_words.end()) return {whole->second};
  std::vector<int32_t> ids;
  for (const char byte : word) ids.push_back(file_.id_of_byte[static_cast<unsigned char>(byte)]);
  file_.merges.merge(ids);
  return ids;
}

void Tokenizer::Implementation::Words::append(std::string_view view, std::vector<int32_t>& out) {
  const std::string word(view);
  if (const auto known = known_.find(word); known != known_.end()) {
    out.insert(out.end(), known->second.begin(), known->second.end());
    return;
  }
  const std::vector<int32_t> ids = ids_of(word);
  out.insert(out.end(), ids.begin(), ids.end());
  if (known_.size() < kMostWords && word.size() <= kLongestWord) known_.emplace(word, ids);
}

std::vector<std::string_view> Tokenizer::Implementation::split(std::string_view text) const {
  std::vector<std::string_view> pieces = {text};
  for (const SplitPattern& pattern : file.patterns) {
    std::vector<std::string_view> finer;
    for (const std::string_view piece : pieces) {
      const auto parts = pattern.split(piece);
      finer.insert(finer.end(), parts.begin(), parts.end());
    }
    pieces = std::move(finer);
  }
  return pieces;
}

Tokenizer Tokenizer::open(const std::filesystem::path& path) {
  auto made = std::make_unique<Implementation>();
  made->file = read_tokenizer_file(path);
  for (const AddedToken& token : made->file.added)
    (token.normalized ? made->in_normalized_text : made->in_given_text).add(token.content, token.id);
  return Tokenizer(std::move(made));
}

std::vector<int32_t> Tokenizer::encode(std::string_view any) const {
  const Implementation& parts = *implementation_;
  Implementation::Words words(parts.file);
  std::vector<int32_t> tokens;
  const auto added = [&](int32_t id) { tokens.push_back(id); };
  const auto normalized = [&](std::string_view text) {
    for (const std::string_view word : parts.split(text)) words.append(word, tokens);
  };
  const auto given = [&](std::string_view text) {
    parts.in_normalized_text.cut(parts.file.to_nfc ? nfc(text) : std::string(text), normalized, added);
  };
  parts.in_given_text.cut(valid_utf8(any), given, added);
  return tokens;
}

std::string Tokenizer::decode(const std::vector<int32_t>& tokens) const {
  const std::vector<std::string>& bytes_of = implementation_->file.bytes_of;
  std::string bytes;
  for (const int32_t token : tokens)
    if (token >= 0 && token < vocab_size()) bytes += bytes_of[static_cast<size_t>(token)];
  return valid_utf8(bytes);
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(implementation_->file.bytes_of.size()); }

int32_t Tokenizer::id_of(std::string_view token) const {
  for (const AddedToken& added : implementation_->file.added)
    if (added.content == token) return added.id;
  return -1;
}

Tokenizer::Tokenizer(std::unique_ptr<Implementation> implementation) : implementation_(std::move(implementation)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

}  // namespace flashmorph
