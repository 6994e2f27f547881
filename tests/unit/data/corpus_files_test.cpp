#include "core/data/corpus_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/bad_input.h"
#include "core/base/sha256.h"
#include "tests/support/temporary_folder.h"
#include "tests/unit/data/token_files.h"

namespace flashmorph {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

const std::string letters = "abcdefghijklmnopqrstuvwxyz";

TEST(Samples, AreAllOfAFileThatHasFewPieces) {
  EXPECT_THAT(samples_of("", 4, 3), IsEmpty());
  EXPECT_THAT(samples_of("abc", 4, 3), ElementsAre("abc"));
  EXPECT_THAT(samples_of(letters.substr(0, 9), 4, 3), ElementsAre("abcd", "efgh", "i"));
  EXPECT_THAT(samples_of(letters.substr(0, 12), 4, 3), ElementsAre("abcd", "efgh", "ijkl"));
}

TEST(Samples, OfALongerOneAreSpreadOverItFromItsFirstToItsLastByte) {
  EXPECT_THAT(samples_of(letters.substr(0, 13), 4, 3), ElementsAre("abcd", "efgh", "jklm"));
  EXPECT_THAT(samples_of(letters, 2, 5), ElementsAre("ab", "gh", "mn", "st", "yz"));
}

TEST(CorpusFiles, AreThoseThatTheTokensComeFrom) {
  const test::TemporaryFolder folder;
  const std::string prefix = (folder.path() / "plays").string();
  test::write_file(prefix + ".bin", "tokens");
  test::write_file(prefix + ".idx", "index");
  test::write_file(prefix + ".json", "{}");
  const CorpusFile bin{prefix + ".bin", 6, sha256_of_bytes("tokens", 6)},
      idx{prefix + ".idx", 5, sha256_of_bytes("index", 5)};
  EXPECT_EQ(corpus_files({.tokens = prefix}), (std::vector{bin, idx}));
  EXPECT_EQ(corpus_files({.text = bin.path}), std::vector{bin});
  EXPECT_EQ(corpus_files({.jsonl = idx.path}), std::vector{idx});
  EXPECT_EQ(corpus_files({.sources = {{idx.path, 1.0}, {prefix, 1.0}}}), (std::vector{idx, bin, idx}));
  test::write_file(folder.path() / "odd\xff", "x");
  EXPECT_EQ(corpus_files({.text = (folder.path() / "odd*").string()}).at(0).path,
            (folder.path() / "odd\uFFFD").string());
  EXPECT_THROW(corpus_files({.text = "none"}), BadInput);
}

TEST(CorpusFiles, ABreakCanBeTakenBeforeEverySample) {
  const test::TemporaryFolder folder;
  const std::string file = (folder.path() / "text").string();
  test::write_file(file, std::string((2 << 20) + 1, 'x'));
  int samples = 0;
  corpus_files({.text = file}, [&] { ++samples; });
  EXPECT_EQ(samples, 3);
}

}  // namespace
}  // namespace flashmorph
