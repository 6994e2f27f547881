#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace flashmorph {

enum class RepeatedKeys { refused, last_counts };

// JSON that somebody else wrote. BadInput names `where` when the text is malformed, gives a key twice in one object
// (unless the last shall count), nests so deep that walking it could exhaust the stack, or is a Git LFS pointer.
nlohmann::json parse_json(std::string_view text, const std::string& where,
                          RepeatedKeys repeated = RepeatedKeys::refused);
nlohmann::json read_json_file(const std::filesystem::path& file);

// The value at `key`, or null when `object` is no object or has none.
const nlohmann::json& part_of(const nlohmann::json& object, const char* key);

[[noreturn]] void unsupported(const std::string& where, const nlohmann::json& value);  // BadInput quoting the value

}  // namespace flashmorph
