#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace flashmorph {

class TokenView;

// Tokens of documents that stand behind each other, kept somewhere for as long as this lives. Neither copied nor moved:
// views point into it.
class TokenStore {
 public:
  TokenStore() = default;
  virtual ~TokenStore() = default;
  TokenStore(const TokenStore&) = delete;
  TokenStore& operator=(const TokenStore&) = delete;

  virtual uint64_t size() const = 0;                                       // tokens
  virtual void copy(uint64_t first, std::span<int32_t> tokens) const = 0;  // BadInput for an id that cannot be
  virtual uint64_t documents() const = 0;
  virtual uint64_t document_start(uint64_t document) const = 0;  // its first token; size() for the one past the last

  // Which document token `first` is of; an empty one has none.
  uint64_t document_of(uint64_t first) const;
  TokenView all() const;
};

// A stretch of a store's tokens where they lie: in memory, or in a mapped file whose ids are checked as they are read.
class TokenView {
 public:
  TokenView(const TokenStore& store, uint64_t first, size_t size) : store_(&store), first_(first), size_(size) {}

  size_t size() const { return size_; }
  TokenView subspan(size_t first, size_t size) const { return {*store_, first_ + first, size}; }
  TokenView first(size_t size) const { return subspan(0, size); }

  std::vector<int32_t> tokens() const;           // BadInput for an id outside of the vocabulary
  std::vector<int64_t> document_starts() const;  // inside the view, ascending, each once, without 0
  bool of_several_documents() const { return store_->documents() > 1; }

 private:
  const TokenStore* store_;
  uint64_t first_;
  size_t size_;
};

// Tokens in memory, with the starts of their documents in ascending order.
class TokenList : public TokenStore {
 public:
  explicit TokenList(std::vector<int32_t> tokens, std::vector<uint64_t> document_starts = {0})
      : tokens_(std::move(tokens)), starts_(std::move(document_starts)) {}

  uint64_t size() const override { return tokens_.size(); }
  void copy(uint64_t first, std::span<int32_t> tokens) const override;
  uint64_t documents() const override { return starts_.size(); }
  uint64_t document_start(uint64_t document) const override {
    return document < starts_.size() ? starts_[document] : tokens_.size();
  }

 private:
  std::vector<int32_t> tokens_;
  std::vector<uint64_t> starts_;
};

}  // namespace flashmorph
