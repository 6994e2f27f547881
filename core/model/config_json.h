#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace flashmorph {

// Typed access to a model's config.json, or to an object inside it. A key that is null counts as absent. Every fault is
// a BadInput that names the file and the key, what was found and what was expected.
class ConfigJson {
 public:
  static ConfigJson open(const std::filesystem::path& folder);  // folder/config.json
  ConfigJson(nlohmann::json values, std::string file, std::string inside = "");

  bool has(const std::string& key) const { return values_.contains(key) && !values_[key].is_null(); }

  int64_t size(const std::string& key) const;  // a positive integer, at most 2^31
  int64_t size(const std::string& key, int64_t otherwise) const { return has(key) ? size(key) : otherwise; }
  int64_t size_from_0(const std::string& key, int64_t otherwise) const;  // an integer from 0 on, at most 2^31
  double number(const std::string& key) const;                           // a positive number
  double number(const std::string& key, double otherwise) const { return has(key) ? number(key) : otherwise; }
  bool flag(const std::string& key, bool otherwise) const;
  std::string text(const std::string& key, const std::string& otherwise) const;
  std::vector<int64_t> indices(const std::string& key) const;    // integers from 0 on; absent: empty
  std::vector<std::string> texts(const std::string& key) const;  // absent: empty
  ConfigJson inside(const std::string& key) const;               // absent: an empty object

  const nlohmann::json& values() const { return values_; }
  const std::string& file() const { return file_; }
  [[noreturn]] void fail(const std::string& key, const std::string& what) const;

 private:
  const nlohmann::json& required(const std::string& key) const;
  [[noreturn]] void expected(const std::string& key, const std::string& what) const;

  nlohmann::json values_;
  std::string file_;
  std::string inside_;  // "rope_scaling." for keys of that object
};

}  // namespace flashmorph
