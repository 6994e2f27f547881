#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace flashmorph {

// Where the documents of a text begin.
class DocumentStarts {
 public:
  virtual ~DocumentStarts() = default;
  // The starts s with first < s < last in ascending order, each once, as distances from `first`.
  virtual std::vector<int64_t> inside(uint64_t first, uint64_t last) const = 0;
  virtual bool several() const = 0;  // there is more than one
};

// What a view's tokens are read from and checked against. Lives as long as its views.
struct TokenSource {
  const void* bytes = nullptr;
  int token_bytes = 4;                        // int32, or uint16 for 2
  int64_t vocabulary = 1LL << 31;             // ids are below
  std::string name;                           // for messages
  const DocumentStarts* documents = nullptr;  // null: one document
};

// A stretch of tokens where they lie: in memory, or in a mapped file whose ids are checked as they are read.
class TokenView {
 public:
  TokenView(const TokenSource& source, uint64_t first, size_t size) : source_(&source), first_(first), size_(size) {}

  size_t size() const { return size_; }
  int32_t operator[](size_t i) const;  // BadInput for an id outside of the vocabulary
  TokenView subspan(size_t first, size_t size) const { return {*source_, first_ + first, size}; }
  TokenView first(size_t size) const { return subspan(0, size); }

  std::vector<int32_t> tokens() const;
  std::vector<int64_t> document_starts() const;  // inside the view, without 0
  bool of_several_documents() const { return source_->documents != nullptr && source_->documents->several(); }

 private:
  const TokenSource* source_;
  uint64_t first_;
  size_t size_;
};

// Tokens that are kept somewhere for as long as this lives. Neither copied nor moved: views point into it.
class TokenStore {
 public:
  TokenStore() = default;
  virtual ~TokenStore() = default;
  TokenStore(const TokenStore&) = delete;
  TokenStore& operator=(const TokenStore&) = delete;

  TokenView all() const { return {source_, 0, size_}; }

 protected:
  TokenSource source_;
  size_t size_ = 0;
};

// Tokens in memory, with the starts of their documents in ascending order.
class TokenList : public TokenStore, private DocumentStarts {
 public:
  explicit TokenList(std::vector<int32_t> tokens, std::vector<uint64_t> document_starts = {0});

 private:
  std::vector<int64_t> inside(uint64_t first, uint64_t last) const override;
  bool several() const override { return !inside(0, tokens_.size()).empty(); }
  std::vector<int32_t> tokens_;
  std::vector<uint64_t> starts_;
};

}  // namespace flashmorph
