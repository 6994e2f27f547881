#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <random>

#include "core/base/bad_input.h"
#include "core/export/describe.h"
#include "core/export/export_format.h"
#include "core/io/checksums.h"
#include "core/io/tokenizer.h"
#include "distributed/checkpoint/run_folder.h"
#include "tests/support/temporary_folder.h"
#include "tests/unit/export/small_hybrid.h"

// One bit after another of a model's files, at random places. Whoever reads them says BadInput or reads what it can; no
// flip may bring the program down, and none may go unnoticed where the file is compared with what it was.

namespace flashmorph {
namespace {

namespace fs = std::filesystem;
using test::TemporaryFolder;

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
  MorphableModel::load(Checkpoint::open(folder), spec, {}, whole);
  Tokenizer::of_model(folder, spec.vocabulary);
}

TEST(BitFlips, ARunDoesNotGoOnWithATeacherThatIsNotWhatItWas) {
  const TemporaryFolder folder;
  const fs::path teacher = folder.path() / "teacher";
  fs::create_directories(teacher);
  test::write_small_model(teacher, {.vocabulary = 1024});
  fs::copy_file("tests/data/passkey-teacher/tokenizer.json", teacher / "tokenizer.json", fs::copy_options::overwrite_existing);
  const RunConfig config = RunConfig::from_yaml("run: {dir: " + (folder.path() / "runs").string() + "}\nmodel: {path: " + teacher.string() +
                                                    "}\nbudget: {full_layers: 1}\ndata: {text: text}\n"
                                                    "stages: {align: {tokens: 8K}, select: {tokens: 8K}}\n",
                                                "test");
  RunFolder run(config);
  run.open(config, hash_of_model(teacher, Checkpoint::open(teacher)));
  ASSERT_NO_THROW(run.check(config, hash_of_model(teacher, Checkpoint::open(teacher))));

  const std::vector<fs::path> files = {teacher / "config.json", teacher / "model.safetensors", teacher / "tokenizer.json"};
  std::mt19937_64 random(2);
  int read_without_a_fault = 0;
  for (int i = 0; i < kFlips; ++i) {
    const BitFlip flip(files[random() % files.size()], random);
    SCOPED_TRACE(flip.where());
    if (!refuses([&] { read_teacher(teacher); })) ++read_without_a_fault;
    EXPECT_TRUE(refuses([&] { run.check(config, hash_of_model(teacher, Checkpoint::open(teacher))); }));
  }
  EXPECT_GT(read_without_a_fault, 0) << "a flipped number is a number: only the hash tells";
}

}  // namespace
}  // namespace flashmorph
