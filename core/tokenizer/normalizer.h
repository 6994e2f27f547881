#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace flashmorph {

// What a tokenizer reads in place of the given text: NFC, then Prepend and Replace of single characters, in any order.
// These let a text be normalized part by part: after a space or newline the rest does not depend on what came before.
class Normalizer {
 public:
  Normalizer() = default;
  Normalizer(const nlohmann::json& description, const std::string& where);  // BadInput for anything else

  // `begins`: the valid UTF-8 text starts a stretch, so that what is to be prepended is.
  std::string normalized(std::string text, bool begins) const;

 private:
  enum class Kind { kNfc, kPrepend, kReplace };
  struct Step {
    Kind kind;
    std::string from, to;
  };
  void add(const nlohmann::json& description, const std::string& where);

  std::vector<Step> steps_;
};

// Every `from` in the text, left to right, becomes `to`.
std::string replaced(const std::string& text, const std::string& from, const std::string& to);

}  // namespace flashmorph
