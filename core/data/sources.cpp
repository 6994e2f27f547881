#include "core/data/sources.h"

#include <algorithm>

#include "core/data/input_files.h"
#include "core/data/token_files.h"

namespace flashmorph {
namespace {

namespace fs = std::filesystem;

bool is_named_json_lines(fs::path file) {
  if (file.extension() == ".gz" || file.extension() == ".zst") file.replace_extension();
  constexpr const char* kNames[] = {".jsonl", ".ndjson", ".json"};
  return std::ranges::count(kNames, file.extension()) > 0;
}

std::vector<Source::File> files_of(const std::string& path, const std::string& field) {
  std::vector<Source::File> files;
  for (const fs::path& file : input_files(path)) files.push_back({file, field});
  return files;
}

Source source_of(const std::string& key, const DataSource& data, const std::string& field) {
  Source source{key, data.path, data.weight, {}};
  const bool is_prefix = fs::exists(TokenFiles::of(data.path).idx), is_file = fs::exists(data.path);
  if (is_prefix && is_file)
    throw BadInput(key + ": " + data.path, "is there, and so are token files of that name: give one of them another");
  if (is_prefix) return source;
  source.files = naming(key, [&] { return files_of(data.path, field); });
  if (source.files.size() == 1 && !fs::exists(source.files[0].path))
    throw BadInput(key + ": " + data.path,
                   "is no file or folder, nor are there token files " + data.path + ".idx, .bin and .json");
  for (Source::File& file : source.files)
    if (!is_named_json_lines(file.path)) file.field.clear();
  return source;
}

}  // namespace

std::vector<Source> sources_of(const DataSection& data) {
  if (!data.tokens.empty()) return {{"data.tokens", data.tokens, 1.0, {}}};
  if (!data.text.empty())
    return {{"data.text", data.text, 1.0, naming("data.text", [&] { return files_of(data.text, ""); })}};
  if (!data.jsonl.empty())
    return {{"data.jsonl", data.jsonl, 1.0, naming("data.jsonl", [&] { return files_of(data.jsonl, data.field); })}};
  std::vector<Source> sources;
  for (const DataSource& source : data.sources)
    sources.push_back(source_of("data.sources." + std::to_string(sources.size()) + ".path", source, data.field));
  return sources;
}

}  // namespace flashmorph
