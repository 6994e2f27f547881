#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <string>

namespace flashmorph {

// "alibi, retnet, layered"
template <class Values>
std::string listed(const Values& values, const char* between = ", ") {
  return fmt::format("{}", fmt::join(values, between));
}

}  // namespace flashmorph
