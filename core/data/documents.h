#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "core/data/input_text.h"

namespace flashmorph {

// The documents of a file, in parts: a plain text is one document, of JSON lines each is one, the string at `field`. A
// byte order mark in front is no part of them. BadInput names the file and the byte or line at fault.
class DocumentReader {
 public:
  // An empty `field`: plain text. `skips_bad_lines`: those that are no JSON with text at the field are counted instead.
  DocumentReader(const std::filesystem::path& file, std::string field, bool skips_bad_lines = false);

  struct Part {
    std::string_view text;  // valid UTF-8, until the next call
    bool ends;              // the document does
  };
  bool next(Part& part);  // false: there are no more

  // Where the next part starts in the content. For a plain text the document may also go on from any character's start.
  uint64_t position() const { return position_; }
  void go_on_from(uint64_t position, uint64_t line);
  uint64_t line() const { return line_; }  // lines before it, counted for messages
  uint64_t bad_lines() const { return bad_lines_; }
  uint64_t bytes_read() const { return input_.packed() ? input_.bytes_read() : position_; }  // of the file
  uint64_t file_bytes() const { return input_.file_bytes(); }

 private:
  bool next_of_text(Part& part);
  bool next_line(Part& part);
  bool fill(size_t bytes);  // false: there are not so many
  void drop_taken();
  void pass_mark();

  std::filesystem::path path_;
  InputText input_;
  std::string field_;
  bool skips_bad_lines_;
  std::string ahead_;  // content from `position_` less `taken_` on
  size_t taken_ = 0;   // bytes of it that the part before this has
  uint64_t position_ = 0, line_ = 0, bad_lines_ = 0;
  std::string text_;  // of the line
};

}  // namespace flashmorph
