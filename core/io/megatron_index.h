#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace flashmorph {

// The .idx of a Megatron-LM token file (indexed_dataset.py, little-endian, unaligned):
//   "MMIDIDX\0\0", uint64 version 1, uint8 element code, uint64 S sequences, uint64 D entries of the document array,
//   int32[S] lengths, int64[S] byte offsets in the .bin, int64[D] documents: each the index of its first sequence, then
//   S.
// Tokens are uint16 (code 8) or int32 (code 4), and the sequences fill the .bin one after the other.
class MegatronIndex {
 public:
  MegatronIndex() = default;

  // Reads over `content`, which must stay, and checks all of it. BadInput names `file` and the field at fault: another
  // magic, version or element, multimodal modes, a size that does not fit, lengths and offsets that do not follow each
  // other (as overflowed ones do), documents out of order, or sequences that do not fill the .bin's `bin_bytes`.
  MegatronIndex(std::string_view content, uint64_t bin_bytes, const std::string& file);

  int token_bytes() const { return token_bytes_; }  // 2 or 4
  uint64_t tokens() const { return tokens_; }
  uint64_t documents() const { return documents_; }
  uint64_t document_start(uint64_t document) const;  // its first token; tokens() for the one past the last

 private:
  uint64_t offset(uint64_t sequence) const;

  std::string_view content_;
  int token_bytes_ = 4;
  uint64_t sequences_ = 0, documents_ = 0, tokens_ = 0;
};

// The bytes of such a file for documents of one sequence each, handed to `write` piece by piece. `lengths`: int32 as
// the file holds them. One length more than 2^31 - 1 or bytes that do not fit in int64 are for the caller to refuse.
void write_megatron_index(std::string_view lengths, int token_bytes,
                          const std::function<void(std::string_view)>& write);

}  // namespace flashmorph
