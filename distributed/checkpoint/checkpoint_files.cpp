#include "distributed/checkpoint/checkpoint_files.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <future>

#include "core/base/sha256.h"
#include "core/io/atomic_file.h"
#include "core/io/safetensors_content.h"
#include "distributed/checkpoint/messages.h"

namespace flashmorph {
namespace {

std::string folder_name(std::string stage, int64_t step) {
  std::replace(stage.begin(), stage.end(), ' ', '-');
  return stage + "-" + std::to_string(step);
}

constexpr const char* kAside = "unusable-";

// The step of a folder's name; -1 when it is not `stage`'s.
int64_t step_in(const std::string& name, const std::string& stage) {
  const std::string start = folder_name(stage, 0).substr(0, stage.size() + 1);
  int64_t step = -1;
  if (!name.starts_with(start)) return -1;
  const auto [end, error] = std::from_chars(name.data() + start.size(), name.data() + name.size(), step);
  return error == std::errc() && end == name.data() + name.size() && folder_name(stage, step) == name ? step : -1;
}

std::vector<std::filesystem::path> entries_of(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> entries;
  std::error_code missing;
  for (const auto& entry : std::filesystem::directory_iterator(folder, missing)) entries.push_back(entry.path());
  return entries;
}

}  // namespace

std::filesystem::path StageFolders::whole(int64_t step) const { return root / folder_name(stage, step); }
std::filesystem::path StageFolders::hidden(int64_t step) const { return hidden_sibling(whole(step), ""); }
std::filesystem::path StageFolders::aside(int64_t step) const { return root / (kAside + folder_name(stage, step)); }

std::vector<int64_t> StageFolders::steps() const {
  std::vector<int64_t> steps;
  for (const std::filesystem::path& entry : entries_of(root))
    if (const int64_t step = step_in(entry.filename(), stage); step >= 0) steps.push_back(step);
  std::sort(steps.begin(), steps.end(), std::greater<>());
  return steps;
}

int64_t StageFolders::latest_step() const {
  std::string name;
  std::ifstream(latest()) >> name;
  return std::max<int64_t>(0, step_in(name, stage));
}

void StageFolders::remove_hidden() const {
  std::error_code ignored;
  for (const std::filesystem::path& entry : entries_of(root))
    if (const std::string name = entry.filename(); name.starts_with('.') && step_in(name.substr(1), stage) >= 0)
      std::filesystem::remove_all(entry, ignored);
}

void StageFolders::remove_all() const {
  remove_hidden();
  for (const std::filesystem::path& entry : entries_of(root)) {
    std::string name = entry.filename();
    if (name.starts_with(kAside)) name.erase(0, std::string(kAside).size());
    if (step_in(name, stage) >= 0) std::filesystem::remove_all(entry);
  }
  if (std::ranges::none_of(entries_of(root), [](const auto& entry) { return std::filesystem::is_directory(entry); }))
    std::filesystem::remove_all(root);
}

proto::CheckpointShard write_shard(FileOperations& files, const std::filesystem::path& hidden, int rank,
                                   const ShardCopy& shard) {
  proto::CheckpointShard written;
  if (shard.slices.empty()) return written;
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (size_t i = 0; i < shard.slices.size(); ++i) {
    tensors.emplace_back(key_of(shard.slices[i]), shard.values[i]);
    *written.add_slices() = shard.slices[i];
  }
  const SafetensorsContent content(tensors);
  written.set_file("rank-" + std::to_string(rank) + ".safetensors");
  for (const std::string_view piece : content.pieces())
    written.set_bytes(written.bytes() + static_cast<int64_t>(piece.size()));
  // While the disk is at work.
  std::future<std::string> hash = std::async(std::launch::async, [&] { return sha256_of_pieces(content.pieces()); });
  files.make_folder(hidden);
  files.write(hidden / written.file(), content.pieces());
  files.sync(hidden / written.file());
  written.set_sha256(hash.get());
  return written;
}

void publish(FileOperations& files, const StageFolders& folders, const proto::CheckpointIndex& index, int64_t keep) {
  const int64_t step = index.progress().step();
  const std::filesystem::path hidden = folders.hidden(step), whole = folders.whole(step), latest = folders.latest();
  files.write(hidden / "index.pb", {sealed(index)});
  files.sync(hidden / "index.pb");
  files.sync(hidden);
  files.rename(hidden, whole);
  files.sync(folders.root);

  const std::filesystem::path pointer = hidden_sibling(latest, ".part");
  files.write(pointer, {whole.filename().string() + "\n"});
  files.sync(pointer);
  files.rename(pointer, latest);
  files.sync(folders.root);

  const std::vector<int64_t> steps = folders.steps();
  for (size_t i = static_cast<size_t>(keep); i < steps.size(); ++i) {
    files.rename(folders.whole(steps[i]), folders.hidden(steps[i]));  // what is half removed is not to be seen
    files.remove(folders.hidden(steps[i]));
  }
}

}  // namespace flashmorph
