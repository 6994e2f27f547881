#include "launcher/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

ParsedCommandLine parsed(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "flashmorph-dist");
  return parse_command_line(static_cast<int>(arguments.size()), arguments.data());
}

TEST(CommandLine, ARunIsTheDefault) {
  const ParsedCommandLine line = parsed({"run.yaml", "--set", "a=1", "--set", "b=[1, 2]", "--fresh"});
  ASSERT_TRUE(line.run);
  EXPECT_FALSE(line.command);
  EXPECT_EQ(line.run->config_file, "run.yaml");
  EXPECT_THAT(line.run->set, ElementsAre("a=1", "b=[1, 2]"));
  EXPECT_TRUE(line.run->fresh);
}

TEST(CommandLine, EveryCommandIsInTheHelpAndHasItsOwn) {
  const ParsedCommandLine help = parsed({"--help"});
  EXPECT_EQ(help.exit_code, 0);
  for (const Command& command : commands()) {
    EXPECT_THAT(help.message, HasSubstr(command.name));
    EXPECT_THAT(help.message, HasSubstr(command.summary));
    const ParsedCommandLine own = parsed({command.name, "--help"});
    EXPECT_FALSE(own.run || own.command) << command.name;
    EXPECT_EQ(own.exit_code, 0) << command.name;
    EXPECT_THAT(own.message, HasSubstr(std::string("flashmorph-dist ") + command.name));
  }
}

TEST(CommandLine, MistakesAreExitCodeTwo) {
  for (const std::vector<const char*>& arguments :
       std::vector<std::vector<const char*>>{{},
                                             {"run.yaml", "more.yaml"},
                                             {"--unknown"},
                                             {"run.yaml", "--fresh", "--resume"},
                                             {"inspect"},
                                             {"inspect", "folder", "--length", "0"},
                                             {"--set", "a=1", "inspect", "folder"},
                                             {"--fresh", "inspect", "folder"}}) {
    const ParsedCommandLine line = parsed(arguments);
    EXPECT_FALSE(line.run || line.command);
    EXPECT_EQ(line.exit_code, 2) << line.message;
    EXPECT_FALSE(line.message.empty());
  }
}

TEST(Inspect, PrintsWhatTheFolderHolds) {
  const ParsedCommandLine line = parsed({"inspect", "tests/data/passkey-teacher", "--length", "1000"});
  ASSERT_TRUE(line.command);
  testing::internal::CaptureStdout();
  EXPECT_EQ(line.command(), 0);
  const std::string text = testing::internal::GetCapturedStdout();
  EXPECT_THAT(text, HasSubstr("qwen3"));
  EXPECT_THAT(text,
              HasSubstr("hidden 128, heads 4 of 32, kv heads 2, intermediate 384, vocabulary 1024, positions 4096"));
}

TEST(Inspect, RefusesWhatIsNoModel) { EXPECT_THROW(parsed({"inspect", "tests/data/text"}).command(), BadInput); }

}  // namespace
}  // namespace flashmorph
