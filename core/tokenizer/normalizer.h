#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace flashmorph {

// What a tokenizer reads in place of the given text: the Unicode normalization forms, Lowercase, StripAccents, Strip,
// Prepend and Replace (of a string or a pattern), in any order.
class Normalizer {
 public:
  Normalizer() = default;
  Normalizer(const nlohmann::json& description, const std::string& where);  // BadInput for anything else

  // `begins`: the valid UTF-8 text starts a stretch, so that what is to be prepended is.
  std::string normalized(std::string text, bool begins) const;

  // A text may be normalized part by part: after a space or newline the rest does not depend on what came before.
  bool in_parts() const { return in_parts_; }
  bool makes_spaces() const { return makes_spaces_; }  // of characters that are none

 private:
  using Step = std::function<std::string(std::string text, bool begins)>;
  void add(const nlohmann::json& description, const std::string& where);
  void add_replacement(const nlohmann::json& description, const std::string& where);

  std::vector<Step> steps_;
  bool in_parts_ = true, makes_spaces_ = false;
  bool changes_text_ = false;  // by a Prepend or Replace, whose result may combine with what follows
};

// Every `from` in the text, left to right, becomes `to`.
std::string replaced(const std::string& text, const std::string& from, const std::string& to);

}  // namespace flashmorph
