#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace flashmorph {

// SHA-256 as 64 lower-case hexadecimal digits.
std::string sha256_of_bytes(const void* data, size_t size);
// Of all pieces behind one another, and of a file, which is read in pieces (BadInput when it cannot be). `before_each`
// is called before each of them, and may throw.
std::string sha256_of_pieces(
    const std::vector<std::string_view>& pieces, const std::function<void()>& before_each = [] {});
std::string sha256_of_file(
    const std::filesystem::path& file, const std::function<void()>& before_each = [] {});

}  // namespace flashmorph
