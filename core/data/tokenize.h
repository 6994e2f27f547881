#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "core/tokenizer/tokenizer.h"

namespace flashmorph {

struct TokenizeJob {
  std::vector<std::filesystem::path> inputs;
  std::string prefix;                  // of PREFIX.bin, .idx and .json
  std::string field;                   // where a JSON line holds its document; empty: each input is one plain text
  bool append_end = false;             // the tokenizer's end of text behind each document
  bool skip_bad_lines = false;         // of JSON lines: pass over those without text at the field, and count them
  bool fresh = false;                  // start anew, whatever lies there
  uint64_t commit_bytes = 32'000'000;  // of input, after which a killed process need not do it again
};

struct TokenizeProgress {
  uint64_t bytes = 0;  // of input, read
  uint64_t bytes_in_all = 0;
  uint64_t bytes_before = 0;  // read by an earlier process
  uint64_t tokens = 0;
  uint64_t documents = 0;
  uint64_t bad_lines = 0;    // passed over
  bool done_before = false;  // there was nothing left to do
};

// Tokenizes the inputs in order, reporting now and then. Killed at any moment, the same job goes on where it was last
// safe and ends with the same bytes; at the end the files are there whole. BadInput for inputs that cannot be read
// (what was done before the fault is kept for the same job, which may skip bad lines the second time), and when the
// files, or the unfinished ones, of another job are in the way.
TokenizeProgress tokenize(const TokenizeJob& job, const Tokenizer& tokenizer,
                          const std::function<void(const TokenizeProgress&)>& report);

}  // namespace flashmorph
