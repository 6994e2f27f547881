#pragma once

#include <stdexcept>
#include <string>
#include <vector>

namespace flashmorph {

// One thing wrong with what the user gave us.
struct Fault {
  std::string where;  // a file, a key path with its line, a tensor's name
  std::string what;   // what was found and what was expected
};

// Input that cannot be used: a YAML key, a file, a tensor, a mesh. Ends the program with exit code 2, one line a fault.
class BadInput : public std::runtime_error {
 public:
  explicit BadInput(std::vector<Fault> faults);
  BadInput(std::string where, std::string what) : BadInput({Fault{std::move(where), std::move(what)}}) {}

  const std::vector<Fault>& faults() const { return faults_; }

 private:
  std::vector<Fault> faults_;
};

// The candidate nearest to `word` by edit distance when it is near enough to be a typo of it, else "".
std::string nearest_word(const std::string& word, const std::vector<std::string>& candidates);

}  // namespace flashmorph
