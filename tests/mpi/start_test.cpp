#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/bad_input.h"
#include "core/io/checksums.h"
#include "distributed/run/run_folder.h"
#include "launcher/start_checks.h"
#include "tests/mpi/world.h"

namespace flashmorph {
namespace {

using test::world;

// What every rank hears when the last one starts with other facts.
std::string complaint(const StartFacts& last) {
  const StartFacts usual{"1.0 (build abc)", "run.yaml", "123"};
  try {
    check_same_start(world().rank() == world().size() - 1 ? last : usual, world());
  } catch (const BadInput& fault) {
    return fault.what();
  }
  return "none";
}

TEST(Start, AnotherProgramConfigOrArgumentOnOneRankIsRefusedByAll) {
  const std::string last = "rank " + std::to_string(world().size() - 1);
  if (world().size() == 1) return;
  EXPECT_THAT(complaint({"1.1 (build abc)", "run.yaml", "123"}),
              testing::HasSubstr("flashmorph-dist: " + last +
                                 " has the program 1.1 (build abc), expected that of rank 0, 1.0"));
  EXPECT_THAT(complaint({"1.0 (build abc)", "run.yaml --set run.seed=2", "123"}),
              testing::HasSubstr("--set run.seed=2"));
  EXPECT_THAT(complaint({"1.0 (build abc)", "run.yaml", "456"}), testing::HasSubstr("config file: " + last));
}

TEST(Start, AFileThatOneRankCannotSeeIsNoFault) { EXPECT_EQ(complaint({"1.0 (build abc)", "run.yaml", ""}), "none"); }

TEST(Start, RanksTogetherHashATeacherAsOneAlone) {
  RunConfig config;
  config.model.path = "tests/data/passkey-teacher";
  config.data.text = "tests/data/text/tinyshakespeare.txt";
  const RunSources sources = RunSourcesAhead(config, world(), [] {}).agreed(world());
  EXPECT_EQ(sources.teacher, hash_of_model(config.model.path, ModelFiles::open(config.model.path)));
  EXPECT_EQ(sources.corpus.size(), world().rank() == 0 ? 1 : 0);
}

TEST(Start, ATeacherThatCannotBeReadIsRefusedByAll) {
  RunConfig config;
  config.model.path = "tests/data/none";
  EXPECT_THROW(RunSourcesAhead(config, world(), [] {}).agreed(world()), BadInput);
}

}  // namespace
}  // namespace flashmorph
