#include "core/data/tokenize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>
#include <zstd.h>

#include <fstream>
#include <iterator>
#include <stdexcept>

#include "core/base/bad_input.h"
#include "core/data/token_files.h"
#include "core/data/token_writer.h"
#include "tests/support/temporary_folder.h"
#include "tests/unit/data/plays.h"
#include "tests/unit/data/token_files.h"

namespace flashmorph {
namespace {

using testing::HasSubstr;

std::string content_of(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

struct Killed {};

class Tokenize : public testing::Test {
 protected:
  std::filesystem::path holding(const std::string& name, const std::string& content) {
    test::write_file(folder_.path() / name, content);
    return folder_.path() / name;
  }
  TokenizeJob job(std::vector<std::filesystem::path> inputs, const std::string& name, const std::string& field = "") {
    return {.inputs = std::move(inputs), .prefix = (folder_.path() / name).string(), .field = field};
  }
  // The three files' bytes.
  static std::string bytes_of(const TokenizeJob& job) {
    const TokenFiles files = TokenFiles::of(job.prefix);
    return content_of(files.bin) + "|" + content_of(files.idx) + "|" + content_of(files.json);
  }
  static TokenizeProgress run(const TokenizeJob& job) {
    return tokenize(job, test::tokenizer(), [](const auto&) {});
  }
  static std::string fault_of(const TokenizeJob& job) {
    try {
      run(job);
    } catch (const BadInput& fault) {
      return fault.what();
    }
    return "no fault";
  }
  // Starts the job again and again, each time stopped at the same report.
  static int starts_until_done(TokenizeJob job, uint64_t commit_bytes, int last_report) {
    job.commit_bytes = commit_bytes;
    for (int starts = 1;; ++starts) {
      int reports = 0;
      try {
        tokenize(job, test::tokenizer(), [&](const auto&) {
          if (++reports == last_report) throw Killed();
        });
        return starts;
      } catch (const Killed&) {
        EXPECT_FALSE(std::filesystem::exists(TokenFiles::of(job.prefix).json)) << "nothing is there before all is";
      }
    }
  }
  size_t files_in_folder() const {
    return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(folder_.path()), {}));
  }

  test::TemporaryFolder folder_;
};

TEST_F(Tokenize, ATextIsOneDocumentThatReadsBackAsItself) {
  const TokenizeJob plays = job({test::kPlays}, "plays");
  const TokenizeProgress progress = run(plays);
  EXPECT_EQ(progress.tokens, 472001u);
  EXPECT_EQ(progress.documents, 1u);
  EXPECT_EQ(progress.bytes, progress.bytes_in_all);
  const MappedTokens tokens(plays.prefix, test::tokenizer());
  EXPECT_EQ(test::tokenizer().decode(tokens.all().tokens()), content_of(test::kPlays));
  EXPECT_EQ(std::filesystem::file_size(TokenFiles::of(plays.prefix).bin), 2 * 472001u) << "uint16";
}

TEST_F(Tokenize, AFilesNameMayBeAnyBytes) {
  const TokenizeJob odd = job({holding("a\xff.txt", "one")}, "odd");
  EXPECT_FALSE(run(odd).done_before);
  EXPECT_TRUE(run(odd).done_before);
}

TEST_F(Tokenize, ALargeVocabularyIsWrittenInFourBytes) {
  const std::string prefix = (folder_.path() / "wide").string();
  for (const int64_t vocabulary : {65499, 65500}) {
    TokenWriter writer(prefix, vocabulary, {});
    writer.append(std::vector<int32_t>{1, 65498});
    writer.end_document("x");
    writer.write_rest("{}");
    TokenWriter::move_into_place(prefix);
    EXPECT_EQ(content_of(TokenFiles::of(prefix).bin), vocabulary == 65499
                                                          ? test::bytes_of(std::vector<uint16_t>{1, 65498})
                                                          : test::bytes_of(std::vector<int32_t>{1, 65498}));
    EXPECT_EQ(content_of(TokenFiles::of(prefix).idx)[17], vocabulary == 65499 ? 8 : 4);
  }
}

TEST_F(Tokenize, JsonLinesAreADocumentEachWithItsEnd) {
  TokenizeJob lines = job({holding("a.jsonl", "{\"t\": \"one\"}\n{\"t\": \"\"}\n{\"t\": \"two words\"}\n"),
                           holding("b.jsonl", "{\"t\": \"three\"}")},
                          "lines", "t");
  lines.append_end = true;
  EXPECT_EQ(run(lines).documents, 3u);
  const MappedTokens tokens(lines.prefix, test::tokenizer());
  EXPECT_EQ(test::tokenizer().decode(tokens.all().tokens()),
            "one<|endoftext|>two words<|endoftext|>three<|endoftext|>");
  EXPECT_EQ(tokens.documents(), 3u);
  EXPECT_EQ(tokens.all().tokens()[static_cast<size_t>(tokens.all().document_starts().at(0)) - 1], 1021);
}

TEST_F(Tokenize, KilledAtAnyReportItGoesOnToTheSameBytes) {
  std::string text, lines;
  for (int i = 0; i < 40; ++i) text += content_of(test::kPlays).substr(0, 200'000);
  for (int i = 0; i < 25; ++i) lines += "{\"text\": \"" + std::string(static_cast<size_t>(i), 'x') + " words\\n\"}\n";
  const auto long_text = holding("long.txt", text), short_text = holding("short.txt", "short");
  const auto json = holding("lines.jsonl", lines);
  struct Case {
    std::vector<std::filesystem::path> inputs;
    const char* field;
    uint64_t commit_bytes;
    int last_report, starts;
  };
  for (const Case& each :
       {Case{{long_text, short_text}, "", 1, 2, 5}, Case{{long_text, short_text}, "", 2'000'000, 4, 2},
        Case{{json, json}, "text", 1, 2, 25}, Case{{json, json}, "text", 60, 5, 10}}) {
    const TokenizeJob at_once = job(each.inputs, "once", each.field), killed = job(each.inputs, "killed", each.field);
    run(at_once);
    EXPECT_GE(starts_until_done(killed, each.commit_bytes, each.last_report), each.starts);
    EXPECT_EQ(bytes_of(killed), bytes_of(at_once));
    for (const TokenizeJob& done : {at_once, killed}) std::filesystem::remove(TokenFiles::of(done.prefix).json);
  }
}

TEST_F(Tokenize, ADoneJobIsNotDoneAgainAndLeavesNothingBeside) {
  const TokenizeJob text = job({holding("text", "some words")}, "corpus");
  EXPECT_FALSE(run(text).done_before);
  EXPECT_EQ(files_in_folder(), 4u);
  const auto written = std::filesystem::last_write_time(TokenFiles::of(text.prefix).bin);
  EXPECT_TRUE(run(text).done_before);
  EXPECT_EQ(std::filesystem::last_write_time(TokenFiles::of(text.prefix).bin), written);
}

TEST_F(Tokenize, AnotherJobsFilesAreNotTouchedUnlessAsked) {
  const auto one = holding("one", "some words"), other = holding("other", "other words, a few");
  TokenizeJob first = job({one}, "corpus"), second = job({other}, "corpus");
  run(first);
  const std::string before = bytes_of(first);
  EXPECT_THAT(fault_of(second), HasSubstr("is there already"));
  EXPECT_EQ(bytes_of(first), before);
  second.fresh = true;
  EXPECT_EQ(fault_of(second), "no fault");
  EXPECT_NE(bytes_of(first), before);
}

TEST_F(Tokenize, AnUnfinishedJobOfOtherSettingsIsRefused) {
  const auto text = holding("lines", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
  TokenizeJob unfinished = job({text}, "corpus", "text");
  unfinished.commit_bytes = 1;
  EXPECT_THROW(tokenize(unfinished, test::tokenizer(), [](const auto&) { throw Killed(); }), Killed);
  TokenizeJob other = unfinished;
  other.append_end = true;
  EXPECT_THAT(fault_of(other), HasSubstr("an unfinished job of other inputs or settings"));
  EXPECT_EQ(fault_of(unfinished), "no fault");
}

TEST_F(Tokenize, AStateThatWasTamperedWithIsRefused) {
  TokenizeJob unfinished = job({holding("lines", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n")}, "corpus", "text");
  unfinished.commit_bytes = 1;
  EXPECT_THROW(tokenize(unfinished, test::tokenizer(), [](const auto&) { throw Killed(); }), Killed);
  const auto state = folder_.path() / ".corpus.tokenize.json";
  std::string content = content_of(state);
  content.replace(content.find("\"position\": 14"), 14, "\"position\": -1");
  test::write_file(state, content);
  EXPECT_THAT(fault_of(unfinished), HasSubstr(".corpus.tokenize.json: position: is -1; --fresh starts anew"));
}

TEST_F(Tokenize, BadInputsAreNamedAndLeaveNoCorpus) {
  EXPECT_THAT(fault_of(job({folder_.path() / "none"}, "corpus")), HasSubstr("none: is not a regular file"));
  EXPECT_THAT(fault_of(job({holding("bad", "ab\xff")}, "corpus")), HasSubstr("bad: is not UTF-8 text: see byte 2"));
  EXPECT_THAT(fault_of(job({holding("text", "a")}, "none/corpus")), HasSubstr("none: is not a folder"));
  EXPECT_EQ(files_in_folder(), 2u) << "the inputs";
}

std::string packed_gzip(const std::string& content) {
  std::string packed(compressBound(content.size()) + 64, '\0');
  z_stream stream{};
  deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(content.data()));
  stream.avail_in = static_cast<uInt>(content.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  deflate(&stream, Z_FINISH);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}

std::string packed_zstd(const std::string& content) {
  std::string packed(ZSTD_compressBound(content.size()), '\0');
  packed.resize(ZSTD_compress(packed.data(), packed.size(), content.data(), content.size(), 3));
  return packed;
}

TEST_F(Tokenize, PackedFilesGiveTheTokensOfTheirContent) {
  const std::string plays = content_of(test::kPlays);
  const std::string half = plays.substr(0, 300'000), rest = plays.substr(300'000);
  const MappedTokens* expected = nullptr;
  const TokenizeJob plain = job({test::kPlays}, "plain");
  run(plain);
  const MappedTokens tokens(plain.prefix, test::tokenizer());
  expected = &tokens;
  for (const auto& [name, content] : {std::pair("gzip", packed_gzip(plays)),
                                      {"members", packed_gzip(half) + packed_gzip(rest)},
                                      {"zstd", packed_zstd(plays)},
                                      {"frames", packed_zstd(half) + packed_zstd(rest)}}) {
    TokenizeJob packed = job({holding(std::string(name) + ".packed", content)}, name);
    EXPECT_GE(starts_until_done(packed, 1, 1), 2) << name;
    EXPECT_EQ(MappedTokens(packed.prefix, test::tokenizer()).all().tokens(), expected->all().tokens()) << name;
    EXPECT_THAT(fault_of(job({holding("short", content.substr(0, content.size() / 2))}, "none")),
                HasSubstr("cut short"));
  }
  EXPECT_THAT(fault_of(job({holding("x",
                                    "\xFD"
                                    "7zXZ")},
                           "none")),
              HasSubstr("is xz"));
  EXPECT_THAT(fault_of(job({holding("lfs", "version https://git-lfs.github.com/spec/v1\noid")}, "none")),
              HasSubstr("git lfs pull"));
}

TEST_F(Tokenize, AByteOrderMarkIsNoToken) {
  const std::string plays = content_of(test::kPlays) + content_of(test::kPlays);
  const TokenizeJob plain = job({holding("plain", plays)}, "plain"),
                    marked = job({holding("marked", "\xEF\xBB\xBF" + plays)}, "marked");
  run(plain);
  EXPECT_GE(starts_until_done(marked, 1, 1), 2);
  EXPECT_EQ(MappedTokens(marked.prefix, test::tokenizer()).all().tokens(),
            MappedTokens(plain.prefix, test::tokenizer()).all().tokens());
}

TEST_F(Tokenize, BadLinesArePassedOverWhenAskedAndWhatWasDoneIsKept) {
  const auto lines = holding(
      "lines.jsonl", "{\"text\": \"one\"}\n{\"text\": \"two\"}\n{\"text\":\"cut of\n[3]\n{\"text\": \"three\"}\n");
  TokenizeJob bad = job({lines}, "bad", "text");
  EXPECT_THAT(fault_of(bad), testing::AllOf(HasSubstr("line 3"), HasSubstr("--skip-bad-lines")));
  bad.skip_bad_lines = true;
  const TokenizeProgress progress = run(bad);
  EXPECT_GT(progress.bytes_before, 0u) << "it went on";
  EXPECT_EQ(progress.bad_lines, 2u);
  EXPECT_EQ(test::tokenizer().decode(MappedTokens(bad.prefix, test::tokenizer()).all().tokens()), "onetwothree");
}

}  // namespace
}  // namespace flashmorph
