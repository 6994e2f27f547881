#include "core/config/yaml_input.h"

#include <algorithm>
#include <cctype>

#include "core/base/listed.h"

namespace flashmorph::schema {
namespace {

YAML::Node parse(const std::string& text, const std::string& file_name) {
  std::vector<YAML::Node> documents;
  try {
    documents = YAML::LoadAll(text);
  } catch (const YAML::Exception& error) {
    const std::string line = error.mark.is_null() ? "" : " (line " + std::to_string(error.mark.line + 1) + ")";
    throw BadInput(file_name + line, "is not YAML: " + error.msg);
  }
  if (documents.size() > 1)
    throw BadInput(file_name, "holds " + std::to_string(documents.size()) + " YAML documents, expected one");
  if (documents.empty() || documents[0].IsNull()) throw BadInput(file_name, "is empty; docs/yaml.md lists the keys");
  if (!documents[0].IsMap()) throw BadInput(file_name, "is not a map of keys; docs/yaml.md lists them");
  return documents[0];
}

// The names right below a section.
std::vector<std::string> children_of(const std::string& section, const std::vector<std::string>& paths) {
  const std::string prefix = section.empty() ? "" : section + ".";
  std::vector<std::string> names;
  for (const std::string& path : paths)
    if (path.starts_with(prefix) && path.find('.', prefix.size()) == std::string::npos)
      names.push_back(path.substr(prefix.size()));
  return names;
}

}  // namespace

std::string one_line(const std::string& text) {
  constexpr const char* kDigits = "0123456789ABCDEF";
  std::string line;
  for (const unsigned char c : text)
    line += std::iscntrl(c) ? std::string{'\\', 'x', kDigits[c >> 4], kDigits[c & 15]}
                            : std::string(1, static_cast<char>(c));
  return line;
}

std::string no_such_key(const std::string& name, const std::vector<std::string>& known) {
  const std::string near = nearest_word(name, known);
  return "no such key; " + (near.empty() ? "known here: " + listed(known) : "did you mean " + near + "?");
}

YamlInput::YamlInput(const std::string& text, const std::string& file_name, const std::vector<std::string>& set)
    : root(parse(text, file_name)) {
  for (const std::string& entry : set) add_override(entry);
}

void YamlInput::add_override(const std::string& entry) {
  const size_t equals = entry.find('=');
  if (equals == 0 || equals == std::string::npos)
    return fault("--set " + entry, "expected key=value, for example budget.full_layers=4");
  const std::string path = entry.substr(0, equals);
  try {
    overrides.insert_or_assign(path, YAML::Load(entry.substr(equals + 1)));
  } catch (const YAML::Exception& error) {
    fault(path + " (--set)", "is not YAML: " + error.msg);
  }
}

std::string YamlInput::where(const std::string& path) const {
  const auto place = places.find(path);
  return place == places.end() ? path : place->second;
}

bool YamlInput::is_sound(const std::string& path) const {
  const std::string place = where(path);
  return std::none_of(faults.begin(), faults.end(), [&](const Fault& fault) { return fault.where == place; });
}

void YamlInput::reject_unknown_overrides() {
  const auto is_known = [&](const std::string& path) {
    return path.empty() || std::find(known.begin(), known.end(), path) != known.end();
  };
  for (const auto& [path, value] : overrides) {
    std::string section = path, name;
    while (!is_known(section)) {  // up to the part that exists
      const size_t dot = section.rfind('.');
      name = section.substr(dot + 1);
      section = dot == std::string::npos ? "" : section.substr(0, dot);
    }
    if (section == path) continue;
    const auto siblings = children_of(section, known);
    fault(path + " (--set)",
          siblings.empty() ? "no such key; " + section + " is a value" : no_such_key(name, siblings));
  }
}

}  // namespace flashmorph::schema
