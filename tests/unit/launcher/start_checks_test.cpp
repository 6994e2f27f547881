#include "launcher/start_checks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

Environment environment(std::map<std::string, std::string> variables) {
  return [variables](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  };
}

std::string complaint(int world_size, const std::map<std::string, std::string>& variables) {
  try {
    check_ranks_found_each_other(world_size, environment(variables));
  } catch (const BadInput& fault) {
    return fault.what();
  }
  return "none";
}

TEST(Start, RanksThatAreAloneAmongManyAreRefused) {
  EXPECT_THAT(complaint(1, {{"SLURM_NTASKS", "8"}}),
              testing::HasSubstr("SLURM_NTASKS: is 8, but this process is alone"));
  EXPECT_THAT(complaint(1, {{"SLURM_STEP_NUM_TASKS", "4"}, {"SLURM_NTASKS", "4"}}), testing::HasSubstr("mpirun -np 4"));
  EXPECT_THAT(complaint(1, {{"PMI_SIZE", "2"}}), testing::HasSubstr("PMI_SIZE"));
  EXPECT_THAT(complaint(1, {{"OMPI_COMM_WORLD_SIZE", "2"}}), testing::HasSubstr("OMPI_COMM_WORLD_SIZE"));
}

TEST(Start, RanksThatFoundEachOtherAndSingleOnesGoOn) {
  EXPECT_EQ(complaint(1, {}), "none");
  EXPECT_EQ(complaint(8, {{"SLURM_NTASKS", "8"}}), "none");
  EXPECT_EQ(complaint(1, {{"SLURM_NTASKS", "1"}}), "none");
  EXPECT_EQ(complaint(1, {{"OMPI_COMM_WORLD_SIZE", "1"}, {"SLURM_NTASKS", "8"}}), "none")
      << "mpirun -np 1 in an allocation";
}

TEST(Start, OneProcessSpeaks) {
  EXPECT_TRUE(is_first_process(environment({})));
  EXPECT_TRUE(is_first_process(environment({{"SLURM_PROCID", "0"}})));
  EXPECT_FALSE(is_first_process(environment({{"SLURM_PROCID", "3"}})));
}

}  // namespace
}  // namespace flashmorph
