#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "core/base/bad_input.h"
#include "core/config/run_config.h"

namespace flashmorph {

// One of the texts that a run reads, and where it lies: the files of a tokenized corpus, or files of text.
struct Source {
  struct File {
    std::filesystem::path path;
    std::string field;  // of its JSON lines; empty: plain text
  };

  std::string key;   // of the YAML, for messages: "data.sources.1.path"
  std::string path;  // what it names
  double weight = 1.0;
  std::vector<File> files;  // of text, in order; none: `path` is the prefix of token files

  bool is_tokenized() const { return files.empty(); }
};

// Those of the section. `data.sources` leaves open what a path is: a prefix where PREFIX.idx is there, else files, and
// of them those named .jsonl, .ndjson or .json (then perhaps .gz or .zst) hold JSON lines. BadInput, naming the key,
// where there are no files, or both a file or folder and token files.
std::vector<Source> sources_of(const DataSection& data);

// f(), and a BadInput of it names the key that asks for what cannot be read.
template <class Function>
auto naming(const std::string& key, Function f) {
  try {
    return f();
  } catch (const BadInput& bad) {
    std::vector<Fault> faults = bad.faults();
    for (Fault& fault : faults) fault.where = key + ": " + fault.where;
    throw BadInput(faults);
  }
}

}  // namespace flashmorph
