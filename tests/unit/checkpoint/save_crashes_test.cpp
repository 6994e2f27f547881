#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <functional>
#include <set>
#include <system_error>

#include "tests/unit/checkpoint/trained.h"

// A save is broken off at every one of its file operations: the process dies there, or the disk refuses. This prints
// the table of docs/faults.md:
//   build/tests/unit/checkpoint/test_distributed_checkpoint --gtest_filter='SaveCrash.*'

namespace flashmorph {
namespace {

using test::progress_at;
using test::save_two;
using test::SmallStage;
using test::TemporaryFolder;

enum class Moment { before, within, after };
constexpr Moment kMoments[] = {Moment::before, Moment::within, Moment::after};
const char* text_of(Moment moment) {
  return moment == Moment::before ? "before" : moment == Moment::within ? "within" : "after";
}

// Calls `fault` at one moment of one operation; otherwise does and notes what is asked for.
class FaultyFiles : public FileOperations {
 public:
  FaultyFiles(size_t operation, Moment moment, std::function<void(const std::filesystem::path&)> fault)
      : operation_(operation), moment_(moment), fault_(std::move(fault)) {}

  void make_folder(const std::filesystem::path& folder) override {
    at("make folder", folder, [&] { FileOperations::make_folder(folder); });
  }
  void write(const std::filesystem::path& file, const std::vector<std::string_view>& pieces) override {
    unsynced_.insert(file);
    const auto half = [&] { FileOperations::write(file, {pieces[0].substr(0, pieces[0].size() / 2)}); };
    at(
        "write", file, [&] { FileOperations::write(file, pieces); }, half);
  }
  void sync(const std::filesystem::path& path) override {
    at("sync", path, [&] { FileOperations::sync(path); });
    unsynced_.erase(path);
  }
  void rename(const std::filesystem::path& from, const std::filesystem::path& to) override {
    at("rename", to, [&] { FileOperations::rename(from, to); });
  }
  void remove(const std::filesystem::path& path) override {
    const auto half = [&] { FileOperations::remove(path / "index.pb"); };
    at(
        "remove", path, [&] { FileOperations::remove(path); }, half);
  }

  // A power failure takes what was written and not yet synced.
  void lose_unsynced() const {
    for (const std::filesystem::path& file : unsynced_)
      if (std::filesystem::exists(file)) std::filesystem::resize_file(file, std::filesystem::file_size(file) / 3);
  }

  std::vector<std::string> operations;

 private:
  void at(
      const char* what, const std::filesystem::path& path, const std::function<void()>& work,
      const std::function<void()>& half = [] {}) {
    const bool is_it = operations.size() == operation_;
    operations.push_back(std::string(what) + " " + path.filename().string());
    if (is_it && moment_ == Moment::before) fault_(path);
    if (is_it && moment_ == Moment::within) half();
    if (is_it && moment_ == Moment::within) fault_(path);
    work();
    if (is_it && moment_ == Moment::after) fault_(path);
  }

  size_t operation_;
  Moment moment_;
  std::function<void(const std::filesystem::path&)> fault_;
  std::set<std::filesystem::path> unsynced_;
};

constexpr size_t kNever = 1000;

// Checkpoints of steps 10 and 20 are on disk; `files` does what the save of step 30 asks for, which also removes
// step 10.
std::string save_third(const std::filesystem::path& folder, FileOperations& files, std::vector<std::string>& warnings) {
  SmallStage stage(folder, {.every = 10, .keep = 2}, files);
  stage.checkpoints.resume();
  const std::string outcome = stage.save(30);
  EXPECT_EQ(stage.saved_steps.size(), outcome.starts_with("it is in") ? 1U : 0U) << outcome;
  warnings = stage.warnings;
  return outcome;
}

std::vector<std::string> operations_of_a_save() {
  const TemporaryFolder run;
  const std::filesystem::path folder = run.path() / "checkpoints";
  save_two(folder);
  FaultyFiles files(kNever, Moment::before, [](const auto&) {});
  std::vector<std::string> warnings;
  save_third(folder, files, warnings);
  EXPECT_TRUE(warnings.empty());
  return files.operations;
}

// What a new start goes on from: a whole checkpoint, without a warning; and its own save works.
int64_t step_after(const std::filesystem::path& folder) {
  SmallStage stage(folder);
  const int64_t step = stage.checkpoints.resume().step();
  EXPECT_TRUE(stage.trained.is_at(step)) << "step " << step;
  EXPECT_TRUE(stage.warnings.empty()) << stage.warnings[0];
  EXPECT_NE(stage.save(40).find("distill-uniform-40"), std::string::npos);
  EXPECT_TRUE(stage.warnings.empty()) << stage.warnings[0];
  EXPECT_EQ((StageFolders{folder, "distill uniform"}.steps()), (std::vector<int64_t>{40, step}));
  return step;
}

TEST(SaveCrash, TheNewestCheckpointIsWholeWhereverTheProcessDies) {
  const std::vector<std::string> operations = operations_of_a_save();
  ASSERT_GE(operations.size(), 12U);
  std::printf("| operation of the save of step 30 | before | within | after |\n|---|---|---|---|\n");
  for (size_t operation = 0; operation < operations.size(); ++operation) {
    std::printf("| %s", operations[operation].c_str());
    for (const Moment moment : kMoments) {
      SCOPED_TRACE(operations[operation] + ", " + text_of(moment));
      const TemporaryFolder run;
      const std::filesystem::path folder = run.path() / "checkpoints";
      save_two(folder);
      std::fflush(stdout);
      const pid_t child = fork();
      if (child == 0) {
        FaultyFiles* files = nullptr;
        FaultyFiles dying(operation, moment, [&](const auto&) {
          files->lose_unsynced();
          _exit(9);
        });
        files = &dying;
        std::vector<std::string> warnings;
        save_third(folder, dying, warnings);
        _exit(0);
      }
      int status = 0;
      ASSERT_EQ(waitpid(child, &status, 0), child);
      ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 9) << "it was to die there";
      const int64_t step = step_after(folder);
      EXPECT_TRUE(step == 20 || step == 30);
      std::printf(" | step %ld", step);
    }
    std::printf(" |\n");
  }
}

TEST(SaveCrash, AFullDiskIsAWarningAndTheLastGoodCheckpointStays) {
  const std::vector<std::string> operations = operations_of_a_save();
  for (size_t operation = 0; operation < operations.size(); ++operation)
    for (const Moment moment : kMoments) {
      SCOPED_TRACE(operations[operation] + ", " + text_of(moment));
      const TemporaryFolder run;
      const std::filesystem::path folder = run.path() / "checkpoints";
      save_two(folder);
      FaultyFiles full(operation, moment, [](const std::filesystem::path& path) {
        throw std::system_error(ENOSPC, std::generic_category(), path.string() + ": write");
      });
      std::vector<std::string> warnings;
      try {
        save_third(folder, full, warnings);
      } catch (const std::exception& failure) {  // when the folder itself cannot be made, at the start
        EXPECT_EQ(operations[operation], "make folder checkpoints");
        continue;
      }
      ASSERT_EQ(warnings.size(), 1U);
      EXPECT_NE(warnings[0].find("the checkpoint after step 30 could not be written"), std::string::npos)
          << warnings[0];
      EXPECT_NE(warnings[0].find("No space left on device"), std::string::npos) << warnings[0];
      EXPECT_NE(warnings[0].find("the one after step 20 stays"), std::string::npos) << warnings[0];
      step_after(folder);
    }
}

}  // namespace
}  // namespace flashmorph
