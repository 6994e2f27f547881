#include "distributed/checkpoint/stage_checkpoints.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "distributed/checkpoint/messages.h"
#include "tests/unit/checkpoint/trained.h"

namespace flashmorph {
namespace {

using test::progress_at;
using test::save_two;
using test::SmallStage;
using test::TemporaryFolder;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const std::vector<int64_t> none;

std::vector<int64_t> steps_in(const std::filesystem::path& folder) {
  return StageFolders{folder, "distill uniform"}.steps();
}

std::string text_in(const std::filesystem::path& file) {
  std::stringstream text;
  text << std::ifstream(file).rdbuf();
  return text.str();
}

// What a new start finds, with what it warned of.
struct Found {
  explicit Found(const std::filesystem::path& folder) {
    SmallStage stage(folder);
    stage.trained.become(-1);
    progress = stage.checkpoints.resume();
    is_that = progress.step() == 0 ? stage.trained.is_at(-1) : stage.trained.is_at(progress.step());
    warnings = stage.warnings;
  }
  proto::StageProgress progress;
  bool is_that = false;
  std::vector<std::string> warnings;
};

TEST(StageCheckpoints, NothingOnDiskIsStepZero) {
  const TemporaryFolder folder;
  const Found found(folder.path() / "checkpoints");
  EXPECT_EQ(found.progress.step(), 0);
  EXPECT_TRUE(found.is_that) << "nothing may be overwritten";
  EXPECT_THAT(found.warnings, IsEmpty());
}

TEST(StageCheckpoints, GoesOnFromTheNewest) {
  const TemporaryFolder folder;
  save_two(folder.path());
  const Found found(folder.path());
  EXPECT_EQ(found.progress.SerializeAsString(), progress_at(20).SerializeAsString());
  EXPECT_TRUE(found.is_that);
  EXPECT_THAT(found.warnings, IsEmpty());
  EXPECT_EQ(text_in(folder.path() / "latest"), "distill-uniform-20\n");
}

TEST(StageCheckpoints, SavesWhenDueInTheBackgroundAndKeepsTheNewest) {
  const TemporaryFolder folder;
  SmallStage stage(folder.path(), {.every = 10, .keep = 2});
  stage.checkpoints.resume();
  for (int64_t step = 1; step <= 45; ++step) {
    stage.trained.become(step);
    stage.checkpoints.save_when_due(progress_at(step));
    if (step % 10 == 5) stage.checkpoints.save(progress_at(step - 5));  // waits for the one under way
  }
  EXPECT_THAT(steps_in(folder.path()), ElementsAre(40, 30));
  EXPECT_THAT(stage.saved_steps, ElementsAre(10, 20, 30, 40)) << "each told once it was on disk";
  EXPECT_THAT(stage.warnings, IsEmpty());
  const Found found(folder.path());
  EXPECT_EQ(found.progress.step(), 40) << "what was copied at step 40, not what it became since";
  EXPECT_TRUE(found.is_that);
}

TEST(StageCheckpoints, EveryZeroSavesOnlyWhenAsked) {
  const TemporaryFolder folder;
  SmallStage stage(folder.path(), {.every = 0, .keep = 1});
  stage.checkpoints.resume();
  for (int64_t step = 1; step <= 200; ++step) stage.checkpoints.save_when_due(progress_at(step));
  EXPECT_THAT(steps_in(folder.path()), IsEmpty());
  EXPECT_THAT(stage.save(200), HasSubstr("distill-uniform-200"));
  EXPECT_THAT(steps_in(folder.path()), ElementsAre(200));
}

TEST(StageCheckpoints, WithoutAPlaceNothingIsDone) {
  SmallStage stage("");
  EXPECT_EQ(stage.checkpoints.resume().step(), 0);
  stage.checkpoints.save_when_due(progress_at(10));
  EXPECT_EQ(stage.save(10), "nothing was to be saved");
}

TEST(StageCheckpoints, OneThatCannotBeUsedIsNamedAndTheOneBeforeIs) {
  struct Damage {
    const char* warning;
    std::function<void(const std::filesystem::path&)> inflict;
  };
  const auto overwrite = [](const std::filesystem::path& file, int64_t place) {
    std::fstream bytes(file, std::ios::in | std::ios::out | std::ios::binary);
    bytes.seekp(place, place < 0 ? std::ios::end : std::ios::beg);
    bytes.put('\x7e');
  };
  const std::vector<Damage> all = {
      {"rank-0.safetensors: does not have its checksum",
       [&](const auto& whole) { overwrite(whole / "rank-0.safetensors", -100); }},
      {"rank-0.safetensors: does not have its checksum",
       [&](const auto& whole) { overwrite(whole / "rank-0.safetensors", 3); }},
      {"bytes long, expected",
       [](const auto& whole) { std::filesystem::resize_file(whole / "rank-0.safetensors", 1000); }},
      {"rank-0.safetensors: cannot be read",
       [](const auto& whole) { std::filesystem::remove(whole / "rank-0.safetensors"); }},
      {"index.pb: cannot be read", [](const auto& whole) { std::filesystem::remove(whole / "index.pb"); }},
      {"index.pb", [&](const auto& whole) { overwrite(whole / "index.pb", 20); }},
      {"index.pb", [](const auto& whole) { std::filesystem::resize_file(whole / "index.pb", 30); }},
      {"is of distill uniform, step 10",
       [](const auto& whole) {
         std::filesystem::copy(
             whole.parent_path() / "distill-uniform-10", whole,
             std::filesystem::copy_options::overwrite_existing | std::filesystem::copy_options::recursive);
       }},
      {"has 0 of its 300 elements", [](const auto& whole) {  // a sound seal around an unsound index
         proto::CheckpointIndex index;
         read_message(whole / "index.pb", index);
         index.mutable_shards(0)->mutable_slices(1)->set_rows(0);
         write_message(whole / "index.pb", index);
       }}};
  for (const Damage& damage : all) {
    SCOPED_TRACE(damage.warning);
    const TemporaryFolder folder;
    save_two(folder.path());
    damage.inflict(folder.path() / "distill-uniform-20");
    const Found found(folder.path());
    EXPECT_EQ(found.progress.step(), 10);
    EXPECT_TRUE(found.is_that);
    ASSERT_EQ(found.warnings.size(), 1U);
    EXPECT_THAT(found.warnings[0],
                HasSubstr(damage.warning == std::string("has 0 of its 300 elements") ? "tensor bias" : damage.warning));
    EXPECT_THAT(steps_in(folder.path()), ElementsAre(10));
    EXPECT_TRUE(std::filesystem::exists(folder.path() / "unusable-distill-uniform-20")) << "nothing is thrown away";
  }
}

TEST(StageCheckpoints, WithNoneLeftTheStageStartsOverAndSaysSo) {
  const TemporaryFolder folder;
  save_two(folder.path());
  for (const char* name : {"distill-uniform-10", "distill-uniform-20"})
    std::filesystem::remove(folder.path() / name / "index.pb");
  const Found found(folder.path());
  EXPECT_EQ(found.progress.step(), 0);
  EXPECT_TRUE(found.is_that);
  ASSERT_EQ(found.warnings.size(), 3U);
  EXPECT_THAT(found.warnings[2], HasSubstr("distill uniform: no whole checkpoint is left; the stage starts over"));
}

TEST(StageCheckpoints, OneOfOtherInputsIsNotUsed) {
  const TemporaryFolder folder;
  save_two(folder.path());
  const auto world = single_communicator();
  Mesh mesh(*world, {1, 1, 1});
  struct : CheckpointListener {
    std::vector<std::string> warnings;
    void warn(const std::string& warning) override { warnings.push_back(warning); }
  } listener;
  StageCheckpoints checkpoints({.folder = folder.path(), .stage = "distill uniform", .frozen = {{"teacher", "other"}}},
                               {}, mesh, test::Trained().regions(), listener);
  EXPECT_EQ(checkpoints.resume().step(), 0);
  ASSERT_EQ(listener.warnings.size(), 3U);
  EXPECT_THAT(listener.warnings[0], HasSubstr("was trained from another teacher"));
}

TEST(StageCheckpoints, AMissingNewestIsNamed) {
  const TemporaryFolder folder;
  save_two(folder.path());
  std::filesystem::remove_all(folder.path() / "distill-uniform-20");
  const Found found(folder.path());
  EXPECT_EQ(found.progress.step(), 10);
  ASSERT_EQ(found.warnings.size(), 1U);
  EXPECT_THAT(found.warnings[0], HasSubstr("distill-uniform-20 is missing"));
}

TEST(StageFolders, AStageHasItsOwnAndGoesWhole) {
  const TemporaryFolder folder;
  for (const char* name : {"distill-5", "distill-uniform-5", ".distill-uniform-7", "unusable-distill-uniform-6",
                           "distill-uniform-x", "distill-uniform-05", "distill-uniform-"})
    std::filesystem::create_directory(folder.path() / name);
  const StageFolders uniform{folder.path(), "distill uniform"}, plain{folder.path(), "distill"};
  EXPECT_THAT(uniform.steps(), ElementsAre(5));
  EXPECT_THAT(plain.steps(), ElementsAre(5));
  uniform.remove_all();
  EXPECT_THAT(uniform.steps(), IsEmpty());
  EXPECT_THAT(plain.steps(), ElementsAre(5));
  EXPECT_FALSE(std::filesystem::exists(folder.path() / ".distill-uniform-7"));
  EXPECT_FALSE(std::filesystem::exists(folder.path() / "unusable-distill-uniform-6"));
  EXPECT_TRUE(std::filesystem::exists(folder.path() / "distill-uniform-x")) << "not ours";
}

}  // namespace
}  // namespace flashmorph
