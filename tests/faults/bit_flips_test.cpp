#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <random>

#include "core/base/bad_input.h"
#include "core/export/describe.h"
#include "core/export/export_format.h"
#include "core/io/checksums.h"
#include "core/tokenizer/tokenizer.h"
#include "distributed/run/run_folder.h"
#include "tests/support/temporary_folder.h"
#include "tests/unit/checkpoint/trained.h"
#include "tests/unit/export/small_hybrid.h"

// One bit after another of a model's or a checkpoint's files, at random places. Whoever reads them says BadInput or
// reads what it can; no flip may bring the program down, and none may go unnoticed where the file is compared with what
// it was.

namespace flashmorph {
namespace {

namespace fs = std::filesystem;
using test::TemporaryFolder;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr int kFlips = 200;

std::vector<fs::path> files_in(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder)) files.push_back(entry.path());
  std::ranges::sort(files);
  return files;
}

// Flips one bit of a file while it lives.
class BitFlip {
 public:
  BitFlip(fs::path file, std::mt19937_64& random) : file_(std::move(file)) {
    std::ifstream in(file_, std::ios::binary);
    before_.assign(std::istreambuf_iterator<char>(in), {});
    std::string flipped = before_;
    byte_ = random() % flipped.size();
    if (file_.extension() == ".safetensors" && random() % 2 == 0) byte_ %= 64;  // its header is small
    flipped[byte_] = static_cast<char>(flipped[byte_] ^ (1 << random() % 8));
    write(flipped);
  }
  ~BitFlip() { write(before_); }

  const fs::path& file() const { return file_; }
  std::string where() const { return file_.filename().string() + ", byte " + std::to_string(byte_); }

 private:
  void write(const std::string& content) { std::ofstream(file_, std::ios::binary) << content; }

  fs::path file_;
  std::string before_;
  size_t byte_ = 0;
};

// Whether `read` says BadInput; anything else that it throws is a crash, and fails the test.
template <class Read>
bool refuses(Read read) {
  try {
    read();
    return false;
  } catch (const BadInput&) {
    return true;
  }
}

TEST(BitFlips, EveryFlipOfAnExportIsFoundByItsChecksums) {
  const TemporaryFolder folder;
  fs::create_directories(folder.path() / "teacher");
  const ExportContent content = test::small_hybrid(folder.path() / "teacher");
  const fs::path place = folder.path() / "export";
  export_hugging_face(place, export_format("flashmorph", content.hybrid.model, content.hybrid.mixer), content);
  ASSERT_NO_THROW(check_checksums(place));
  const std::vector<fs::path> files = files_in(place);
  std::mt19937_64 random(1);
  for (int i = 0; i < kFlips; ++i) {
    const BitFlip flip(files[random() % files.size()], random);
    SCOPED_TRACE(flip.where());
    refuses([&] { describe(place); });
    EXPECT_TRUE(refuses([&] { check_checksums(place); }));
  }
  EXPECT_NO_THROW(check_checksums(place)) << "nothing was changed for good";
}

// All that a run reads of its teacher.
void read_teacher(const fs::path& folder) {
  const ModelSpec spec = ModelSpec::open(folder);
  Shard whole;
  MorphableModel::load(ModelFiles::open(folder), spec, {}, whole);
  Tokenizer::of_model(folder, spec.vocabulary);
}

TEST(BitFlips, ARunDoesNotGoOnWithATeacherOrACorpusThatIsNotWhatItWas) {
  const TemporaryFolder folder;
  const fs::path teacher = folder.path() / "teacher", text = folder.path() / "text.txt";
  fs::create_directories(teacher);
  test::write_small_model(teacher, {.vocabulary = 1024});
  fs::copy_file("tests/data/passkey-teacher/tokenizer.json", teacher / "tokenizer.json",
                fs::copy_options::overwrite_existing);
  std::ofstream(text) << std::string(10000, 'a');
  const RunConfig config =
      RunConfig::from_yaml("run: {dir: " + (folder.path() / "runs").string() + "}\nmodel: {path: " + teacher.string() +
                               "}\nbudget: {full_layers: 1}\ndata: {text: " + text.string() +
                               "}\nstages: {align: {tokens: 8K}, select: {tokens: 8K}}\n",
                           "test");
  const auto sources = [&] {
    return RunSources{hash_of_model(teacher, ModelFiles::open(teacher)), corpus_files(config.data)};
  };
  RunFolder run(config);
  run.open(config, sources());
  ASSERT_NO_THROW(run.check(config, sources()));

  const std::vector<fs::path> files = {teacher / "config.json", teacher / "model.safetensors",
                                       teacher / "tokenizer.json", text};
  std::mt19937_64 random(2);
  int read_without_a_fault = 0;
  for (int i = 0; i < kFlips; ++i) {
    const BitFlip flip(files[random() % files.size()], random);
    SCOPED_TRACE(flip.where());
    if (!refuses([&] { read_teacher(teacher); }) && flip.file() != text) ++read_without_a_fault;
    EXPECT_TRUE(refuses([&] { run.check(config, sources()); }));
  }
  EXPECT_GT(read_without_a_fault, 0) << "a flipped number is a number: only the hash tells";
}

TEST(BitFlips, OfWhatAStageWroteAndOfTheRunsStateEndTheStart) {
  const TemporaryFolder folder;
  RunFolder run(folder.path());
  run.open(RunConfig(), {.teacher = "teacher"});
  const std::vector<fs::path> files = {run.gates_file(), run.branches_file(), run.hybrid_file("uniform", "distill")};
  for (const fs::path& file : files) {
    fs::create_directories(file.parent_path());
    write_safetensors(file, test::tensors_of({}));
  }
  run.finish(proto::StageResult(), files, "");
  std::mt19937_64 random(4);
  for (int i = 0; i < kFlips; ++i) {
    const BitFlip flip(files[random() % files.size()], random);
    SCOPED_TRACE(flip.where());
    RunFolder again(folder.path());
    again.open(RunConfig(), {.teacher = "teacher"});
    for (const fs::path& file : files) EXPECT_EQ(refuses([&] { again.require_as_written(file); }), file == flip.file());
  }
  for (int i = 0; i < kFlips; ++i) {
    const BitFlip flip(run.state_file(), random);
    SCOPED_TRACE(flip.where());
    EXPECT_TRUE(refuses([&] { RunFolder(folder.path()).open(RunConfig(), {.teacher = "teacher"}); }));
  }
}

// As two ranks would save them: one the weights, the other one the bias.
void save_of_two_ranks(const StageFolders& folders, int64_t step) {
  test::Trained trained;
  trained.become(step);
  proto::CheckpointIndex index;
  index.set_stage(folders.stage);
  *index.mutable_progress() = test::progress_at(step);
  (*index.mutable_frozen())["teacher"] = "abc";
  int rank = 0;
  for (const Region& region : trained.regions())
    *index.add_shards() =
        write_shard(real_files(), folders.hidden(step), rank++, {{slice_of(region)}, {region.values}});
  publish(real_files(), folders, index, /*keep=*/2);
}

TEST(BitFlips, OfACheckpointAreNamedAndTheOneBeforeIsUsed) {
  const TemporaryFolder folder;
  const StageFolders folders{folder.path(), "distill uniform"};
  save_of_two_ranks(folders, 10);
  save_of_two_ranks(folders, 20);
  std::vector<fs::path> files = files_in(folders.whole(20));
  ASSERT_EQ(files.size(), 3U) << "two shards and their index";
  files.push_back(folders.latest());
  std::mt19937_64 random(3);
  for (int i = 0; i < kFlips; ++i) {
    const BitFlip flip(files[random() % files.size()], random);
    SCOPED_TRACE(flip.where());
    test::SmallStage stage(folder.path());
    const int64_t step = stage.checkpoints.resume().step();
    EXPECT_TRUE(stage.trained.is_at(step)) << "step " << step;
    if (flip.file() == folders.latest()) {
      EXPECT_EQ(step, 20) << "the folders say what is there; this file can only tell that one is gone";
      EXPECT_LE(stage.warnings.size(), 1U);
      continue;
    }
    EXPECT_EQ(step, 10);
    EXPECT_THAT(stage.warnings,
                ElementsAre(AllOf(HasSubstr(flip.file().string()), HasSubstr(folders.aside(20).string()))));
    fs::rename(folders.aside(20), folders.whole(20));
  }
  test::SmallStage stage(folder.path());
  EXPECT_EQ(stage.checkpoints.resume().step(), 20) << "nothing was changed for good";
  EXPECT_THAT(stage.warnings, IsEmpty());
}

}  // namespace
}  // namespace flashmorph
