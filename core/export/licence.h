#pragma once

#include <filesystem>
#include <string>

namespace flashmorph {

// What a model folder may be used for, as it says itself.
struct Licence {
  std::string name;                                           // "apache-2.0"; "" when the folder names none
  std::string file;                                           // that names it, README.md or a licence's own file
  bool is_identifier() const { return file == "README.md"; }  // of those that model hubs know
};

// The front matter of README.md (license; license_name where that is "other"), else the first line of LICENSE,
// LICENSE.txt, LICENSE.md or COPYING. What is no plain short name counts as none.
Licence licence_of(const std::filesystem::path& folder);

}  // namespace flashmorph
