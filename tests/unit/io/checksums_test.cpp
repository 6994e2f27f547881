#include "core/io/checksums.h"

#include <gmock/gmock.h>

#include <fstream>

#include "core/base/bad_input.h"
#include "tests/support/temporary_folder.h"

namespace flashmorph {
namespace {

using test::TemporaryFolder;
using testing::HasSubstr;

std::vector<Fault> faults_of(const std::filesystem::path& folder) {
  try {
    check_checksums(folder);
    return {};
  } catch (const BadInput& bad) {
    return bad.faults();
  }
}

void write(const std::filesystem::path& file, const std::string& content) { std::ofstream(file) << content; }

TEST(Checksums, EveryDamagedOrMissingFileIsNamed) {
  const TemporaryFolder folder;
  for (const char* name : {"a", "b", "c", "d"}) write(folder.path() / name, name);
  write_checksums(folder.path());
  EXPECT_TRUE(faults_of(folder.path()).empty());

  write(folder.path() / "b", "other");
  std::filesystem::remove(folder.path() / "c");
  std::filesystem::remove(folder.path() / "d");
  std::filesystem::create_directory(folder.path() / "d");
  const std::vector<Fault> faults = faults_of(folder.path());
  ASSERT_EQ(faults.size(), 3u);
  EXPECT_EQ(faults[0].where, folder.path() / "b");
  EXPECT_THAT(faults[0].what, HasSubstr("is damaged"));
  EXPECT_EQ(faults[1].where, folder.path() / "c");
  EXPECT_THAT(faults[1].what, HasSubstr("is missing"));
  EXPECT_EQ(faults[2].where, folder.path() / "d");
  EXPECT_THAT(faults[2].what, HasSubstr("is missing"));
}

TEST(Checksums, WhatIsNotListedPasses) {
  const TemporaryFolder folder;
  EXPECT_TRUE(faults_of(folder.path()).empty()) << "no SHA256SUMS";
  write(folder.path() / "a", "a");
  write_checksums(folder.path());
  write(folder.path() / "later", "of somebody else");
  EXPECT_TRUE(faults_of(folder.path()).empty());
}

}  // namespace
}  // namespace flashmorph
