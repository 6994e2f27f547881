#pragma once

#include <charconv>
#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

#include "core/base/bad_input.h"

namespace flashmorph {

inline std::vector<std::string> cut_at_commas(const std::string& list) {
  std::vector<std::string> parts;
  std::stringstream in(list);
  for (std::string part; std::getline(in, part, ',');)
    if (!part.empty()) parts.push_back(part);
  return parts;
}

// What --lengths says, or `otherwise` when it is not given. BadInput.
inline std::vector<int64_t> lengths_of(const std::string& list, std::vector<int64_t> otherwise) {
  if (list.empty()) return otherwise;
  std::vector<int64_t> lengths;
  for (const std::string& part : cut_at_commas(list)) {
    int64_t length = 0;
    const char* const past = part.data() + part.size();
    const auto [end, error] = std::from_chars(part.data(), past, length);
    if (error != std::errc() || end != past || length < 1)
      throw BadInput("--lengths", "holds '" + part + "', expected numbers of tokens, for example 1024,4096");
    lengths.push_back(length);
  }
  if (lengths.empty())
    throw BadInput("--lengths", "names no length, expected numbers of tokens, for example 1024,4096");
  return lengths;
}

}  // namespace flashmorph
