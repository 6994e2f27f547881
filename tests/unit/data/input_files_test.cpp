#include "core/data/input_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/bad_input.h"
#include "tests/support/temporary_folder.h"
#include "tests/unit/data/token_files.h"

namespace flashmorph {
namespace {

TEST(InputFiles, AreThoseOfAFolderAPatternOrAPath) {
  const test::TemporaryFolder folder;
  const std::filesystem::path root = folder.path();
  std::filesystem::create_directories(root / "b" / ".hidden");
  std::filesystem::create_directories(root / "empty");
  for (const char* name : {"c.txt", "a.txt", "b/d.txt", "b/e.md", ".hidden.txt", "b/.hidden/f.txt", "[x].txt"})
    test::write_file(root / name, "x");
  using testing::ElementsAre;
  EXPECT_THAT(input_files(root),
              ElementsAre(root / "[x].txt", root / "a.txt", root / "b/d.txt", root / "b/e.md", root / "c.txt"));
  EXPECT_THAT(input_files(root / "*.txt"), ElementsAre(root / "[x].txt", root / "a.txt", root / "c.txt"));
  EXPECT_THAT(input_files(root / "*"), ElementsAre(root / "[x].txt", root / "a.txt", root / "c.txt"));
  EXPECT_THAT(input_files(root / "[x].txt"), ElementsAre(root / "[x].txt"));
  EXPECT_THAT(input_files(root / "none.txt"), ElementsAre(root / "none.txt")) << "whoever reads it says so";
  EXPECT_THROW(input_files(root / "*.none"), BadInput);
  EXPECT_THROW(input_files(root / "empty"), BadInput);
}

}  // namespace
}  // namespace flashmorph
