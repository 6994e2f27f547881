#include <gmock/gmock.h>

#include <csignal>
#include <functional>

#include "core/io/checksums.h"
#include "distributed/coordinator/coordinator.h"
#include "distributed/run/run_record.h"
#include "tests/faults/scratch.h"

// A run that was stopped in align, and everything that can be wrong with its checkpoints. None of it ends the next
// start: it names in warnings what cannot be used, goes on from what can, and ends with the same branches as an
// undisturbed run.

namespace flashmorph {
namespace {

namespace fs = std::filesystem;
using test::read;
using test::Scratch;
using test::write;
using testing::ElementsAreArray;
using testing::HasSubstr;

// Asks its own process to stop after the third step.
struct Stopper : StageObserver {
  void stepped(const StepReport& report) override {
    if (report.step == 3) std::raise(SIGTERM);
  }
};

Scratch five_steps() {
  return Scratch({"stages.align.tokens=640", "checkpoint.every=2", "stages.select.method=uniform"});
}

// Leaves the checkpoints of steps 2, which was due, and 3, where it was stopped.
void stop_in_align(const Scratch& scratch) {
  const RunConfig config = scratch.config();
  const auto world = single_communicator();
  const ModelFiles teacher = ModelFiles::open(config.model.path);
  const ModelSpec spec = ModelSpec::open(config.model.path);
  const Tokenizer tokenizer = Tokenizer::of_model(config.model.path, spec.vocabulary);
  const Corpus corpus = Corpus::open(config.data, tokenizer, 65);
  const PasskeyTask passkeys(tokenizer);
  RunFolder folder(config);
  folder.open(config, {hash_of_model(config.model.path, teacher), corpus_files(config.data)});
  PlacedModel placed(*world, config, spec, teacher, at::kFloat);
  Stopper observer;
  StopSignal stop;
  Watchdog watchdog(config.health, *world, {"host"}, std::_Exit);
  const proto::LayerLatency latency;
  RunUnderWay run{{config, corpus, passkeys, observer, stop, watchdog}, latency, *world, placed, folder};
  EXPECT_THROW(run_stages(run), Stopped);
  ASSERT_EQ((StageFolders{folder.checkpoints_folder(), "align"}.steps()), (std::vector<int64_t>{3, 2}));
}

// What align makes when nothing disturbs it.
const std::string& undisturbed_branches() {
  static const std::string branches = [] {
    const Scratch scratch = five_steps();
    scratch.start();
    return read(scratch.run("branches/branches.safetensors"));
  }();
  return branches;
}

struct BadCheckpointRow {
  const char* name;
  std::function<void(const fs::path& checkpoints)> damage;
  int64_t goes_on_after;              // step; 0: the stage starts over
  std::vector<const char*> warnings;  // parts of them, in order
};

void PrintTo(const BadCheckpointRow& row, std::ostream* out) { *out << row.name; }

class BadCheckpoints : public testing::TestWithParam<BadCheckpointRow> {};

TEST_P(BadCheckpoints, AreNamedAndTheOneBeforeIsUsed) {
  const Scratch scratch = five_steps();
  stop_in_align(scratch);
  if (HasFatalFailure()) return;
  GetParam().damage(scratch.run("checkpoints"));
  EXPECT_EQ(scratch.start(), 0);

  std::vector<std::string> warnings;
  int64_t went_on_after = 0;
  for (const nlohmann::json& event : RunRecord::open(scratch.run("")).events) {
    if (event["event"] == "warning") warnings.push_back(event["detail"]);
    if (event["event"] == "stage_resumed") went_on_after = event["step"];
  }
  EXPECT_EQ(went_on_after, GetParam().goes_on_after);
  std::vector<testing::Matcher<std::string>> expected;
  for (const char* part : GetParam().warnings) expected.push_back(HasSubstr(part));
  EXPECT_THAT(warnings, ElementsAreArray(expected));
  EXPECT_EQ(read(scratch.run("branches/branches.safetensors")), undisturbed_branches());
}

void flip_last_bit(const fs::path& file) {
  std::string content = read(file);
  content.back() = static_cast<char>(content.back() ^ 1);
  write(file, content);
}

void copy_over(const fs::path& from, const fs::path& to) {
  fs::remove_all(to);
  fs::copy(from, to, fs::copy_options::recursive);
}

// Damages a file of the newest checkpoint, which then is not used.
BadCheckpointRow newest(const char* name, const char* file, const std::function<void(const fs::path&)>& damage,
                        const char* warning) {
  return {name, [=](const fs::path& checkpoints) { damage(checkpoints / "align-3" / file); }, 2, {warning}};
}

void make_empty(const fs::path& file) { write(file, ""); }
void cut_short(const fs::path& file) { fs::resize_file(file, 100); }
void take_away(const fs::path& file) { fs::remove_all(file); }
void make_a_folder(const fs::path& file) {
  fs::remove(file);
  fs::create_directory(file);
}

INSTANTIATE_TEST_SUITE_P(
    Table, BadCheckpoints,
    testing::Values(
        newest("ShardIsFlipped", "rank-0.safetensors", flip_last_bit,
               "align-3/rank-0.safetensors: does not have its checksum: it was damaged; moved to "),
        newest("ShardIsCutShort", "rank-0.safetensors", cut_short,
               "align-3/rank-0.safetensors: is 100 bytes long, expected "),
        newest("ShardIsEmpty", "rank-0.safetensors", make_empty,
               "align-3/rank-0.safetensors: is 0 bytes long, expected "),
        newest("ShardIsGone", "rank-0.safetensors", take_away,
               "align-3/rank-0.safetensors: cannot be read: No such file"),
        newest("ShardIsAFolder", "rank-0.safetensors", make_a_folder,
               "align-3/rank-0.safetensors: cannot be read: Is a directory"),
        newest("IndexIsFlipped", "index.pb", flip_last_bit,
               "align-3/index.pb: is not a flashmorph.proto.CheckpointIndex; it was damaged or edited"),
        newest("IndexIsCutShort", "index.pb", cut_short,
               "align-3/index.pb: is not a flashmorph.proto.CheckpointIndex; it was damaged or edited"),
        newest("IndexIsEmpty", "index.pb", make_empty,
               "align-3/index.pb: is not a flashmorph.proto.CheckpointIndex; it was damaged or edited"),
        newest("IndexIsGone", "index.pb", take_away, "align-3/index.pb: cannot be read"),
        newest(
            "IndexIsText", "index.pb", [](const fs::path& file) { write(file, "step: 3\n"); },
            "align-3/index.pb: is not a flashmorph.proto.CheckpointIndex"),
        BadCheckpointRow{"NewestIsAFile",
                         [](const fs::path& checkpoints) {
                           fs::remove_all(checkpoints / "align-3");
                           write(checkpoints / "align-3", "");
                         },
                         2,
                         {"align-3/index.pb: cannot be read"}},
        BadCheckpointRow{
            "NewestIsOfAnotherStep",
            [](const fs::path& checkpoints) { copy_over(checkpoints / "align-2", checkpoints / "align-3"); },
            2,
            {"align-3: is of align, step 2; moved to "}},
        BadCheckpointRow{
            "NewestIsOfAnotherStage",
            [](const fs::path& checkpoints) { fs::rename(checkpoints / "align-3", checkpoints / "distill-uniform-3"); },
            2,
            {"align-3 is missing, which ", "distill-uniform-3: is of align, step 3; moved to ",
             "distill uniform: no whole checkpoint is left; the stage starts over"}},
        BadCheckpointRow{"NewestIsGone",
                         [](const fs::path& checkpoints) { fs::remove_all(checkpoints / "align-3"); },
                         2,
                         {"align-3 is missing, which "}},
        BadCheckpointRow{
            "LatestIsGone", [](const fs::path& checkpoints) { fs::remove(checkpoints / "latest"); }, 3, {}},
        BadCheckpointRow{"LatestIsText",
                         [](const fs::path& checkpoints) { write(checkpoints / "latest", "none of them\n"); },
                         3,
                         {}},
        BadCheckpointRow{"LatestNamesAnOldOne",
                         [](const fs::path& checkpoints) { write(checkpoints / "latest", "align-2\n"); },
                         3,
                         {}},
        BadCheckpointRow{
            "ASaveWasBrokenOff",
            [](const fs::path& checkpoints) { fs::copy(checkpoints / "align-3", checkpoints / ".align-4"); },
            3,
            {}},
        BadCheckpointRow{"OneWasSetAsideBefore",
                         [](const fs::path& checkpoints) {
                           fs::copy(checkpoints / "align-2", checkpoints / "unusable-align-3");
                           cut_short(checkpoints / "align-3" / "index.pb");
                         },
                         2,
                         {"align-3/index.pb: is not a flashmorph.proto.CheckpointIndex"}},
        BadCheckpointRow{"AllAreDamaged",
                         [](const fs::path& checkpoints) {
                           flip_last_bit(checkpoints / "align-3" / "rank-0.safetensors");
                           take_away(checkpoints / "align-2" / "index.pb");
                         },
                         0,
                         {"align-3/rank-0.safetensors: does not have its checksum", "align-2/index.pb: cannot be read",
                          "align: no whole checkpoint is left; the stage starts over"}},
        BadCheckpointRow{"AllAreGone", [](const fs::path& checkpoints) { fs::remove_all(checkpoints); }, 0, {}}),
    [](const testing::TestParamInfo<BadCheckpointRow>& info) { return info.param.name; });

}  // namespace
}  // namespace flashmorph
