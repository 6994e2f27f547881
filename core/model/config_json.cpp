#include "core/model/config_json.h"

#include "core/base/bad_input.h"
#include "core/io/json_input.h"

namespace flashmorph {

using nlohmann::json;

ConfigJson::ConfigJson(json values, std::string file, std::string inside)
    : values_(std::move(values)), file_(std::move(file)), inside_(std::move(inside)) {}

ConfigJson ConfigJson::open(const std::filesystem::path& folder) {
  const std::filesystem::path file = folder / "config.json";
  if (!std::filesystem::is_regular_file(file))
    throw BadInput(file.string(), "cannot be read; expected the config.json of a Hugging Face model folder");
  json values = read_json_file(file);
  if (!values.is_object()) throw BadInput(file.string(), "is not a JSON object");
  return {std::move(values), file.string()};
}

void ConfigJson::fail(const std::string& key, const std::string& what) const {
  throw BadInput(file_ + ": " + inside_ + key, what);
}

void ConfigJson::expected(const std::string& key, const std::string& what) const {
  fail(key, "is " + values_[key].dump() + ", expected " + what);
}

const json& ConfigJson::required(const std::string& key) const {
  if (!has(key)) fail(key, "is missing");
  return values_[key];
}

int64_t ConfigJson::size(const std::string& key) const {
  required(key);
  const int64_t value = size_from_0(key, 0);
  if (value < 1) expected(key, "a positive integer");
  return value;
}

int64_t ConfigJson::size_from_0(const std::string& key, int64_t otherwise) const {
  if (!has(key)) return otherwise;
  const json& value = values_[key];
  if (!value.is_number_integer() || value.get<int64_t>() < 0 || value.get<int64_t>() > (int64_t{1} << 31))
    expected(key, "a positive integer");
  return value.get<int64_t>();
}

double ConfigJson::number(const std::string& key) const {
  const json& value = required(key);
  if (!value.is_number() || !(value.get<double>() > 0.0)) expected(key, "a positive number");
  return value.get<double>();
}

bool ConfigJson::flag(const std::string& key, bool otherwise) const {
  if (!has(key)) return otherwise;
  if (!values_[key].is_boolean()) expected(key, "true or false");
  return values_[key].get<bool>();
}

std::string ConfigJson::text(const std::string& key, const std::string& otherwise) const {
  if (!has(key)) return otherwise;
  if (!values_[key].is_string()) expected(key, "a string");
  return values_[key].get<std::string>();
}

std::vector<int64_t> ConfigJson::indices(const std::string& key) const {
  std::vector<int64_t> indices;
  if (!has(key)) return indices;
  if (!values_[key].is_array()) expected(key, "a list of indices");
  for (const json& entry : values_[key]) {
    if (!entry.is_number_integer() || entry.get<int64_t>() < 0) expected(key, "a list of indices");
    indices.push_back(entry.get<int64_t>());
  }
  return indices;
}

std::vector<std::string> ConfigJson::texts(const std::string& key) const {
  std::vector<std::string> texts;
  if (!has(key)) return texts;
  if (!values_[key].is_array()) expected(key, "a list of strings");
  for (const json& entry : values_[key]) {
    if (!entry.is_string()) expected(key, "a list of strings");
    texts.push_back(entry.get<std::string>());
  }
  return texts;
}

ConfigJson ConfigJson::inside(const std::string& key) const {
  if (!has(key)) return {json::object(), file_, inside_ + key + "."};
  if (!values_[key].is_object()) expected(key, "an object");
  return {values_[key], file_, inside_ + key + "."};
}

}  // namespace flashmorph
