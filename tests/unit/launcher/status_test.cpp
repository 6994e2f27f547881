#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "launcher/command_line.h"
#include "launcher/journal.h"
#include "tests/support/temporary_folder.h"

namespace flashmorph {
namespace {

using testing::HasSubstr;
using testing::Not;

std::string status_of(const std::filesystem::path& run, std::vector<const char*> options = {}) {
  const std::string folder = run.string();
  std::vector<const char*> argv = {"flashmorph-dist", "status", folder.c_str()};
  argv.insert(argv.end(), options.begin(), options.end());
  const ParsedCommandLine line = parse_command_line(static_cast<int>(argv.size()), argv.data());
  testing::internal::CaptureStdout();
  EXPECT_EQ(line.command(), 0);
  return testing::internal::GetCapturedStdout();
}

// A run's folder, as far as its configuration.
void start_run(const std::filesystem::path& folder) {
  std::ofstream(folder / "run.yaml") << RunConfig::from_file("configs/quickstart.yaml", {}).to_yaml();
}

TEST(Status, NamesTheNewestCheckpointOfTheStageItIsIn) {
  const test::TemporaryFolder folder;
  start_run(folder.path());
  Journal journal((RunFolder(folder.path())));
  journal.started({.stage = "align", .what = "12 linear branches", .steps = 100, .tokens = 1000});
  journal.stepped({.step = 51, .tokens = 510, .loss = 1.0, .learning_rate = 0.1, .gates = {}, .top_layers = {}});
  journal.saved(25, 0.1);
  journal.saved(50, 0.1);
  EXPECT_THAT(status_of(folder.path()), HasSubstr("\n  checkpoint after step 50, 0:0"));
  const auto answer = nlohmann::json::parse(status_of(folder.path(), {"--json"}));
  EXPECT_EQ(answer["now"]["checkpoint"]["step"], 50);
  EXPECT_GE(answer["now"]["checkpoint"]["seconds_since"].get<double>(), 0.0);

  journal.started({.stage = "select", .what = "12 gates", .steps = 100, .tokens = 1000});
  journal.stepped({.step = 1, .tokens = 10, .loss = 1.0, .learning_rate = 0.1, .gates = {}, .top_layers = {}});
  EXPECT_THAT(status_of(folder.path()), Not(HasSubstr("checkpoint"))) << "of the stage before";
}

}  // namespace
}  // namespace flashmorph
