#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace flashmorph {

// From tokens back to text: ByteLevel, Metaspace, ByteFallback, Fuse, Replace and Strip, or a sequence of them; without
// any, tokens with spaces between.
class TokenDecoder {
 public:
  TokenDecoder() = default;
  TokenDecoder(const nlohmann::json& description, const std::string& where);  // BadInput for anything else

  std::string text_of(std::vector<std::string> tokens) const;

 private:
  enum class Kind { kByteLevel, kMetaspace, kByteFallback, kFuse, kReplace, kStrip };
  struct Step {
    Kind kind;
    std::string from, to;        // kReplace; kMetaspace's replacement and what it becomes; kStrip's character
    size_t start = 0, stop = 0;  // kStrip: how many at most from either end; kMetaspace: start > 0 drops the prefix
  };
  void add(const nlohmann::json& description, const std::string& where);

  std::vector<Step> steps_;
};

}  // namespace flashmorph
