#include "core/io/json_input.h"

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <vector>

#include "core/base/bad_input.h"
#include "core/io/lfs_pointer.h"

namespace flashmorph {
namespace {

using nlohmann::json;

constexpr int kDeepest = 64;

}  // namespace

json parse_json(std::string_view text, const std::string& where, RepeatedKeys repeated) {
  refuse_lfs_pointer(text, where);
  std::vector<std::unordered_set<std::string>> keys;  // of the objects that are open
  const auto check = [&](int depth, json::parse_event_t event, const json& value) {
    if (depth > kDeepest) throw BadInput(where, "is nested deeper than " + std::to_string(kDeepest) + " levels");
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second &&
        repeated == RepeatedKeys::refused)
      throw BadInput(where, "gives the key \"" + value.get<std::string>() + "\" twice");
    return true;
  };
  try {
    return json::parse(text.begin(), text.end(), check);
  } catch (const json::parse_error& error) {
    throw BadInput(where, "is not valid JSON at byte " + std::to_string(error.byte));
  } catch (const json::exception&) {
    throw BadInput(where, "holds a number beyond any range");
  }
}

json read_json_file(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  if (!in || std::filesystem::is_directory(file)) throw BadInput(file.string(), "cannot be read");
  return parse_json(std::string(std::istreambuf_iterator<char>(in), {}), file.string());
}

const json& part_of(const json& object, const char* key) {
  static const json nothing;
  if (!object.is_object()) return nothing;
  const auto found = object.find(key);
  return found == object.end() ? nothing : *found;
}

void unsupported(const std::string& where, const json& value) {
  throw BadInput(where, "is " + value.dump().substr(0, 160) + ", which is not supported");
}

}  // namespace flashmorph
