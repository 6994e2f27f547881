#include "distributed/checkpoint/run_folder.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <sstream>

#include "core/base/bad_input.h"
#include "core/base/sha256.h"
#include "core/io/atomic_file.h"
#include "distributed/checkpoint/messages.h"

namespace flashmorph {
namespace {

// Of all that results depend on: a run may go on on another mesh.
std::string config_hash(RunConfig config) {
  StagesSection& stages = config.stages;
  for (ParallelSection* mesh : {&config.parallel, &stages.align.parallel, &stages.select.parallel, &stages.distill.parallel,
                                &stages.finetune.parallel, &stages.evaluate.parallel})
    *mesh = {};
  const std::string text = config.to_yaml();
  return sha256_of_bytes(text.data(), text.size());
}

std::string file_text(const std::filesystem::path& file) {
  std::stringstream text;
  text << std::ifstream(file).rdbuf();
  return text.str();
}

// The lines of `now` that `before` does not have, as "key: value; key: value".
std::string changed_lines(const std::string& before, const std::string& now) {
  std::set<std::string> old_lines;
  std::string line, changed;
  for (std::istringstream in(before); std::getline(in, line);) old_lines.insert(line);
  for (std::istringstream in(now); std::getline(in, line);) {
    if (old_lines.contains(line)) continue;
    line.erase(0, line.find_first_not_of(' '));
    changed += (changed.empty() ? "" : "; ") + line;
  }
  return changed;
}

// The nearest folder on the way up that exists.
std::filesystem::path existing_ancestor(std::filesystem::path folder) {
  folder = std::filesystem::absolute(folder);
  while (!std::filesystem::exists(folder) && folder.has_relative_path()) folder = folder.parent_path();
  return folder;
}

}  // namespace

RunFolder::RunFolder(const RunConfig& config) : path_(std::filesystem::path(config.run.dir) / config.run.name) {}

void RunFolder::check(const RunConfig& config, const std::string& source_hash) const {
  const std::filesystem::path base = existing_ancestor(path_);
  if (!std::filesystem::is_directory(base))
    throw BadInput(path_.string(), "cannot be made: " + base.string() + " is not a folder");
  if (access(base.c_str(), W_OK) != 0)
    throw BadInput(path_.string(), base.string() + " is not writable; give another run.dir");
  if (!std::filesystem::exists(state_file())) return;

  proto::RunState state;
  read_message(state_file(), state);
  if (state.config_hash() != config_hash(config)) {
    const std::string changed = changed_lines(file_text(config_file()), config.to_yaml());
    throw BadInput(path_.string(), "holds a run of another configuration; this one asks for: " + changed +
                                       " (use --fresh to move the old run aside, or another run.name)");
  }
  if (state.source_hash() != source_hash)
    throw BadInput(path_.string(), "was made from another teacher than " + config.model.path +
                                       " holds now (use --fresh to move the old run aside, or another run.name)");
}

void RunFolder::open(const RunConfig& config, const std::string& source_hash) {
  if (std::filesystem::exists(state_file())) {
    read_message(state_file(), state_);
    write_file_atomically(config_file(), config.to_yaml());  // its mesh may be another one
    return;
  }
  std::filesystem::create_directories(path_);
  write_file_atomically(config_file(), config.to_yaml());
  state_.set_config_hash(config_hash(config));
  state_.set_source_hash(source_hash);
  write_message(state_file(), state_);
}

std::filesystem::path RunFolder::move_aside() const {
  if (!std::filesystem::exists(path_)) return {};
  for (int number = 1;; ++number) {
    const std::filesystem::path aside = path_.string() + "." + std::to_string(number);
    if (std::filesystem::exists(aside)) continue;
    std::filesystem::rename(path_, aside);
    return aside;
  }
}

bool RunFolder::finished(const std::string& stage) const {
  return std::any_of(state_.finished().begin(), state_.finished().end(),
                     [&](const proto::StageResult& result) { return result.stage() == stage; });
}

void RunFolder::finish(const proto::StageResult& result, const std::string& plan_hash) {
  *state_.add_finished() = result;
  state_.set_plan_hash(plan_hash);
  write_message(state_file(), state_);
}

}  // namespace flashmorph
