#include "core/tokenizer/oniguruma.h"

#include <cctype>
#include <map>
#include <string_view>

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

// A property with what Unicode 15 and 16 added to it: PCRE2 may know less. In the form of a class's content.
const std::map<std::string, std::string>& properties() {
  static const std::map<std::string, std::string> known = {
      {"L",
       R"(\p{L}\x{1C89}-\x{1C8A}\x{A7CB}-\x{A7CD}\x{A7DA}-\x{A7DC}\x{105C0}-\x{105F3}\x{10D4A}-\x{10D65})"
       R"(\x{10D6F}-\x{10D85}\x{10EC2}-\x{10EC4}\x{1123F}-\x{11240}\x{11380}-\x{11389}\x{1138B}\x{1138E})"
       R"(\x{11390}-\x{113B5}\x{113B7}\x{113D1}\x{113D3}\x{11BC0}-\x{11BE0}\x{11F02}\x{11F04}-\x{11F10})"
       R"(\x{11F12}-\x{11F33}\x{1342F}\x{13441}-\x{13446}\x{13460}-\x{143FA}\x{16100}-\x{1611D}\x{16D40}-\x{16D6C})"
       R"(\x{18CFF}\x{1B132}\x{1B155}\x{1DF25}-\x{1DF2A}\x{1E030}-\x{1E06D}\x{1E4D0}-\x{1E4EB}\x{1E5D0}-\x{1E5ED})"
       R"(\x{1E5F0}\x{2B739}\x{2EBF0}-\x{2EE5D}\x{31350}-\x{323AF})"},
      {"N", R"(\p{N}\x{10D40}-\x{10D49}\x{116D0}-\x{116E3}\x{11BF0}-\x{11BF9}\x{11F50}-\x{11F59}\x{16130}-\x{16139})"
            R"(\x{16D70}-\x{16D79}\x{1CCF0}-\x{1CCF9}\x{1D2C0}-\x{1D2D3}\x{1E4F0}-\x{1E4F9}\x{1E5F1}-\x{1E5FA})"},
      {"M", R"(\p{M}\x{897}\x{CF3}\x{ECE}\x{10D69}-\x{10D6D}\x{10EFC}-\x{10EFF}\x{11241}\x{113B8}-\x{113C0}\x{113C2})"
            R"(\x{113C5}\x{113C7}-\x{113CA}\x{113CC}-\x{113D0}\x{113D2}\x{113E1}-\x{113E2}\x{11F00}-\x{11F01}\x{11F03})"
            R"(\x{11F34}-\x{11F3A}\x{11F3E}-\x{11F42}\x{11F5A}\x{13440}\x{13447}-\x{13455}\x{1611E}-\x{1612F}\x{1E08F})"
            R"(\x{1E4EC}-\x{1E4EF}\x{1E5EE}-\x{1E5EF})"},
      {"s", R"(\p{White_Space})"}};  // PCRE2's own \s has U+180E as well
  return known;
}

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

  void property(const std::string& name, bool negated) {
    const auto known = properties().find(name);
    if (known == properties().end()) refuse("\\p{" + name + "}");
    if (!in_class_)
      out_ += (negated ? "[^" : "[") + known->second + "]";
    else if (negated && name == "s")
      out_ += "\\P{White_Space}";
    else if (negated)
      refuse("\\P{" + name + "} in a class");
    else
      out_ += known->second;
  }

  void escape() {
    const char escaped = at_ + 1 < in_.size() ? in_[at_ + 1] : '\0';
    const size_t close = in_.find('}', at_);
    if (escaped == 's' || escaped == 'S') {
      property("s", escaped == 'S');
      at_ += 2;
    } else if ((starts("\\p{") || starts("\\P{")) && close != std::string::npos) {
      property(in_.substr(at_ + 3, close - at_ - 3), escaped == 'P');
      at_ = close + 1;
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
