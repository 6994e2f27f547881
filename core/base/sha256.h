#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace flashmorph {

// SHA-256 as 64 lower-case hexadecimal digits.
std::string sha256_of_bytes(const void* data, size_t size);
std::string sha256_of_pieces(const std::vector<std::string_view>& pieces);  // of all of them behind one another
std::string sha256_of_file(const std::filesystem::path& file);  // throws BadInput when it cannot be read

}  // namespace flashmorph
