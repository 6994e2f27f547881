#include "core/tokenizer/oniguruma.h"

#include <cctype>
#include <optional>
#include <string_view>

#include "core/base/bad_input.h"
#include "core/tokenizer/unicode_classes.h"

namespace flashmorph {
namespace {

class Translation {
 public:
  Translation(const std::string& regex, const std::string& where) : in_(regex), where_(where) {}

  std::string result() {
    while (at_ < in_.size()) {
      if (starts("&&")) refuse("&&");
      if (in_[at_] == '\\')
        escape();
      else if (in_class_)
        of_class();
      else
        plain();
    }
    return out_;
  }

 private:
  bool starts(std::string_view what) const { return std::string_view(in_).substr(at_).starts_with(what); }
  void take(size_t count) {
    out_.append(in_, at_, count);
    at_ += count;
  }
  [[noreturn]] void refuse(const std::string& what) const {
    throw BadInput(where_, "has a pattern with " + what + ", which is not supported");
  }

  // `content`: of a class.
  void characters(const std::string& content, bool negated, const std::string& written) {
    if (!in_class_)
      out_ += (negated ? "[^" : "[") + content + "]";
    else if (negated && content == kWhiteSpace)
      out_ += "\\P{White_Space}";
    else if (negated)
      refuse(written + " in a class");
    else
      out_ += content;
  }

  void property(const std::string& name, const std::string& written) {
    const std::optional<std::string> content = class_of_category(name);
    if (!content) refuse(written);
    characters(*content, written[1] == 'P', written);
  }

  void escape() {
    const char escaped = at_ + 1 < in_.size() ? in_[at_ + 1] : '\0';
    const size_t close = in_.find('}', at_);
    if (escaped == 's' || escaped == 'S') {
      characters(kWhiteSpace, escaped == 'S', in_.substr(at_, 2));  // PCRE2's own \s has U+180E as well
      at_ += 2;
    } else if ((starts("\\p{") || starts("\\P{")) && close != std::string::npos) {
      property(in_.substr(at_ + 3, close - at_ - 3), in_.substr(at_, close + 1 - at_));
      at_ = close + 1;
    } else if (escaped == 'd' || escaped == 'D') {
      characters(*class_of_category("Nd"), escaped == 'D', in_.substr(at_, 2));
      at_ += 2;
    } else if (std::ispunct(static_cast<unsigned char>(escaped)) || escaped == 'n' || escaped == 'r' ||
               escaped == 't') {
      take(2);
    } else {
      refuse(std::string("\\") + escaped);
    }
  }

  void of_class() {
    if (in_[at_] == '[') refuse("a class in a class");
    if (in_[at_] == ']') in_class_ = false;
    take(1);
  }

  void plain() {
    const char next = in_[at_];
    if (next == '^' || next == '$') refuse(std::string(1, next));  // of each line there, of the text here
    if (starts("[]") || starts("[^]")) refuse("an empty class");
    if (starts("{,") || starts("}+")) refuse(in_.substr(at_, 2));
    if (starts("(?") && !starts("(?:") && !starts("(?i:") && !starts("(?=") && !starts("(?!") && !starts("(?>"))
      refuse(in_.substr(at_, 4));
    in_class_ = next == '[';
    take(starts("[^") ? 2 : starts("(?") ? 3 : 1);
  }

  const std::string& in_;
  const std::string& where_;
  std::string out_;
  size_t at_ = 0;
  bool in_class_ = false;
};

}  // namespace

std::string pcre2_of(const std::string& oniguruma, const std::string& where) {
  return Translation(oniguruma, where).result();
}

}  // namespace flashmorph
