#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "core/io/mapped_file.h"

namespace flashmorph {

// The documents of a file, in parts: a plain text is one document, of JSON lines each is one, the string at `field`.
// BadInput names the file and the byte or line at fault.
class DocumentReader {
 public:
  // An empty `field`: plain text.
  DocumentReader(const std::filesystem::path& file, std::string field);

  struct Part {
    std::string_view text;  // valid UTF-8, until the next call
    bool ends;              // the document does
  };
  bool next(Part& part);  // false: there are no more

  // Where the next part starts. For a plain text the document may also go on from any character's start.
  uint64_t position() const { return position_; }
  void go_on_from(uint64_t position, uint64_t line);
  uint64_t line() const { return line_; }  // lines before it, counted for messages
  uint64_t size() const { return file_.content().size(); }

 private:
  bool next_of_text(Part& part);
  bool next_line(Part& part);

  std::filesystem::path path_;
  MappedFile file_;
  std::string field_;
  uint64_t position_ = 0, line_ = 0;
  std::string text_;  // of the line
};

}  // namespace flashmorph
