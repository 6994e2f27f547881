#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>

#include "core/io/output_file.h"

namespace flashmorph {

// Writes PREFIX.bin, .idx and .json beside their places and moves them there at the end: one sequence a document. Until
// PREFIX.json is there, nothing is.
class TokenWriter {
 public:
  struct Written {  // what is safely on disk, to go on from
    uint64_t tokens = 0;
    uint64_t documents = 0;
    uint64_t tokens_of_document = 0;  // of the one that has not ended
  };

  TokenWriter(const std::string& prefix, int64_t vocabulary, const Written& written);

  void append(std::span<const int32_t> tokens);  // to the document
  // One without tokens leaves nothing, one of more than 2^31 - 1 a BadInput that names `input`.
  void end_document(const std::filesystem::path& input);
  const Written& so_far() const { return written_; }

  Written sync();                                          // everything so far is on disk
  void write_rest(const std::string& json);                // everything but the move: index and PREFIX.json, synced
  static void move_into_place(const std::string& prefix);  // may be repeated
  static void discard(const std::string& prefix);          // what is not in place

 private:
  std::string prefix_;
  int token_bytes_;
  Written written_;
  OutputFile bin_, lengths_;
  std::string bin_rest_, lengths_rest_;  // not yet given to the files
};

}  // namespace flashmorph
