#include "core/data/corpus.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <sstream>

#include "core/base/bad_input.h"
#include "tests/support/temporary_folder.h"
#include "tests/unit/data/plays.h"

namespace flashmorph {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::StartsWith;

std::string fault_of(const DataSection& data, int64_t least_tokens = 1) {
  try {
    Corpus::open(data, test::tokenizer(), least_tokens);
  } catch (const BadInput& fault) {
    return fault.what();
  }
  return "no fault";
}

class CorpusFile : public testing::Test {
 protected:
  DataSection text(const std::string& content) { return {.text = holding("text.txt", content)}; }
  DataSection lines(const std::string& content) { return {.jsonl = holding("lines.jsonl", content)}; }
  std::string holding(const std::string& name, const std::string& content) {
    std::ofstream(folder_.path() / name, std::ios::binary) << content;
    return (folder_.path() / name).string();
  }
  test::TemporaryFolder folder_;
};

TEST(Corpus, ItsTwoPartsAreTheTextOnce) {
  std::vector<int32_t> all = test::training(test::plays()).tokens();
  const std::vector<int32_t> held_out = test::held_out(test::plays()).tokens();
  all.insert(all.end(), held_out.begin(), held_out.end());
  EXPECT_EQ(all.size(), 472001U);
  EXPECT_EQ(held_out.size(), 47200U);
  std::stringstream text;
  text << std::ifstream(test::kPlays).rdbuf();
  EXPECT_EQ(test::tokenizer().decode(all), text.str());
  EXPECT_THAT(test::training(test::plays()).document_starts(), IsEmpty());
}

TEST_F(CorpusFile, ReadingCanBeBrokenOffBeforeEachPart) {
  const auto parts_of = [](const DataSection& data) {
    int parts = 0;
    Corpus::open(data, test::tokenizer(), 0, [&] { ++parts; });
    return parts;
  };
  EXPECT_EQ(parts_of(lines("{\"text\": \"one\"}\n{\"text\": \"two\"}\n{\"text\": \"three\"}\n")), 3);
  EXPECT_EQ(parts_of(text(std::string((1 << 20) + 1, '\n'))), 2) << "a MiB each";
  EXPECT_THROW(Corpus::open(text("one"), test::tokenizer(), 1, [] { throw std::domain_error("enough"); }),
               std::domain_error);
}

TEST_F(CorpusFile, HoldsOutTheAskedShareOfItsEnd) {
  DataSection data = text("\n\n\n\n\n\n\n\n a");
  data.held_out = 0.25;
  const Corpus corpus = Corpus::open(data, test::tokenizer(), 2);
  EXPECT_EQ(test::training(corpus).size(), 7U);
  EXPECT_EQ(test::held_out(corpus).size(), 2U);
  EXPECT_EQ(test::held_out(corpus).tokens()[1], test::tokenizer().encode(" a").at(0));
}

TEST_F(CorpusFile, OneThatCannotBeReadIsNamed) {
  EXPECT_THAT(fault_of({.text = (folder_.path() / "none.txt").string()}),
              AllOf(HasSubstr("none.txt"), HasSubstr("opened")));
  EXPECT_THAT(fault_of({.text = folder_.path().string()}), HasSubstr("is a folder without files"));
}

TEST_F(CorpusFile, AnEmptyOneIsRefused) {
  EXPECT_THAT(fault_of(text("")), HasSubstr("is empty"));
  EXPECT_THAT(fault_of(lines("\n")), HasSubstr("is empty"));
  EXPECT_THAT(fault_of(lines("{\"text\": \"\"}\n")), HasSubstr("is empty"));
}

TEST_F(CorpusFile, OneThatIsNotUtf8IsRefused) {
  const std::string sound(200, 'a');
  EXPECT_EQ(fault_of(text(sound + "\xC3\xA9\n")), "no fault");
  for (const char* broken :
       {"\xff", "\xC3", "\xC0\x80", "\xED\xA0\x80"})  // no lead byte, cut short, overlong, surrogate
    EXPECT_THAT(fault_of(text(sound + broken)), HasSubstr("is not UTF-8 text: see byte 200"));
}

TEST_F(CorpusFile, OneWithAPartTooShortSaysWhichAndByHowMuch) {
  const DataSection data = text(std::string(100, '\n'));
  EXPECT_EQ(fault_of(data, 10), "no fault");
  EXPECT_THAT(fault_of(data, 11), AllOf(HasSubstr("held-out part has 10 tokens"), HasSubstr("needs 11")));
  EXPECT_THAT(fault_of(data, 91), AllOf(HasSubstr("training part has 90 tokens"), HasSubstr("needs 91")));
}

TEST_F(CorpusFile, JsonLinesAreDocumentsApart) {
  DataSection data =
      lines("{\"text\": \"\\n\\n\"}\r\n\n{\"id\": 3, \"text\": \"\"}\n{\"text\": \"\\n a\"}\n{\"text\": \" a\"}");
  data.held_out = 0.001;
  data.shuffle = 0;
  const Corpus corpus = Corpus::open(data, test::tokenizer(), 0);
  const int32_t newline = test::task().newline(), a = test::tokenizer().encode(" a").at(0);
  const TokenView training = test::training(corpus);
  EXPECT_THAT(training.tokens(), ElementsAre(newline, newline, newline, a, a));
  EXPECT_THAT(training.document_starts(), ElementsAre(2, 4));
  EXPECT_THAT(training.subspan(2, 3).document_starts(), ElementsAre(2));
  EXPECT_THAT(training.subspan(1, 3).document_starts(), ElementsAre(1));
  EXPECT_THAT(training.subspan(2, 2).document_starts(), IsEmpty());
}

TEST_F(CorpusFile, JsonLinesAreReadAtTheirField) {
  DataSection data = lines("{\"text\": 5, \"body\": \"\\n\\n\\n\\n\"}");
  EXPECT_THAT(fault_of(data),
              AllOf(StartsWith("data.jsonl: "), HasSubstr("lines.jsonl: line 1: has no text at \"text\"")));
  data.field = "body";
  data.held_out = 0.5;
  EXPECT_EQ(fault_of(data), "no fault");
}

TEST_F(CorpusFile, ALineThatIsNotJsonIsNamed) {
  EXPECT_THAT(fault_of(lines("{\"text\": \"a\"}\n\n{\"text\": \"a\"\n")), HasSubstr("line 3: is not valid JSON"));
  EXPECT_THAT(fault_of(lines("[]\n")), HasSubstr("line 1: is not a JSON object"));
  EXPECT_THAT(fault_of(lines("{\"text\": \"\xff\"}\n")), HasSubstr("line 1: is not UTF-8 text at"));
}

TEST_F(CorpusFile, ItsDocumentsComeInAnOrderOfTheSeed) {
  std::string content;
  for (int i = 0; i < 60; ++i) {
    std::string newlines;
    for (int n = 0; n < i % 7; ++n) newlines += "\\n";
    content += "{\"text\": \"" + newlines + " a\"}\n";
  }
  DataSection data = lines(content);
  const auto documents_of = [&](int64_t shuffle) {
    data.shuffle = shuffle;
    data.held_out = 0.3;
    const Corpus corpus = Corpus::open(data, test::tokenizer(), 1);
    std::vector<int32_t> tokens = test::training(corpus).tokens();
    const std::vector<int32_t> rest = test::held_out(corpus).tokens();
    tokens.insert(tokens.end(), rest.begin(), rest.end());
    std::vector<std::vector<int32_t>> documents = {{}};
    std::vector<int64_t> starts = test::training(corpus).first(test::training(corpus).size()).document_starts();
    for (const int32_t token : tokens) {
      documents.back().push_back(token);
      if (token == tokens.back()) documents.emplace_back();  // " a" ends each
    }
    documents.pop_back();
    int64_t start = 0;
    for (size_t i = 0; i < starts.size(); ++i) EXPECT_EQ(starts[i], start += static_cast<int64_t>(documents[i].size()));
    return documents;
  };
  auto in_order = documents_of(0), shuffled = documents_of(1);
  EXPECT_EQ(in_order.size(), 60U);
  EXPECT_EQ(documents_of(1), shuffled);
  EXPECT_NE(in_order, shuffled);
  EXPECT_NE(documents_of(2), shuffled);
  std::ranges::sort(in_order);
  std::ranges::sort(shuffled);
  EXPECT_EQ(in_order, shuffled);
}

// Three texts, each of one token over and over.
class Mixture : public CorpusFile {
 protected:
  const std::string a_ = holding("a.txt", repeated(" alpha", 300)), b_ = holding("b.md", repeated(" bravo", 200));
  const std::string c_ = holding("c.jsonl", "{\"text\": \"" + repeated(" kilo", 400) + "\"}\n");

  static std::string repeated(const std::string& word, int count) {
    std::string text;
    for (int i = 0; i < count; ++i) text += word;
    return text;
  }
  Corpus open(std::vector<DataSource> sources) const {
    return Corpus::open({.sources = std::move(sources), .held_out = 0.2}, test::tokenizer(), 16);
  }
  static std::string word_of(TokenView view) { return test::tokenizer().decode({view.tokens().at(0)}); }
};

TEST_F(Mixture, WindowsAreDrawnByWeight) {
  const Corpus corpus = open({{a_, 1.0}, {b_, 2.0}, {c_, 5.0}});
  std::map<std::string, int> drawn;
  const TextMixture training = corpus.training();
  for (uint64_t sample = 0; sample < 8000; ++sample) {
    KeyedRandom random{7, sample};
    ++drawn[word_of(training.drawn(random))];
  }
  EXPECT_NEAR(drawn[" alpha"], 1000, 100);  // three deviations of the binomial distribution are 89, 116 and 130
  EXPECT_NEAR(drawn[" bravo"], 2000, 130);
  EXPECT_NEAR(drawn[" kilo"], 5000, 145);
}

TEST_F(Mixture, EverySourceHoldsOutItsOwnShare) {
  const Corpus corpus = open({{a_, 1.0}, {c_, 1.0}});
  const TextMixture held_out = corpus.held_out(), training = corpus.training();
  ASSERT_EQ(held_out.texts().size(), 2U);
  for (const size_t i : {0, 1}) {
    const size_t size = held_out.texts()[i].tokens.size(), rest = training.texts()[i].tokens.size();
    EXPECT_EQ(size, (size + rest) / 5);
  }
}

TEST_F(Mixture, HeldOutWindowsAreDealtOutByWeightFromTheStartsUntilOneTextEnds) {
  const TokenList first(std::vector<int32_t>(100, 1)), second(std::vector<int32_t>(40, 2));
  const TextMixture mixture({{first.all(), 3.0}, {second.all(), 1.0}});
  std::vector<int32_t> order;
  for (const TokenView& window : mixture.windows(10, 9)) order.push_back(window.tokens().at(9));
  EXPECT_THAT(order, ElementsAre(1, 1, 2, 1, 1, 1, 2, 1, 1));
  EXPECT_EQ(mixture.windows(10, 100).size(), 13U) << "the next is due to the first text, and it has no more";
  const TextMixture alone({{second.all(), 1.0}});
  EXPECT_EQ(alone.windows(15, 100).size(), 2U);
}

TEST_F(Mixture, ASourceThatCannotBeReadIsNamedByItsPlace) {
  const auto fault = [&](const DataSource& source) { return fault_of({.sources = {{a_, 1.0}, source}}); };
  EXPECT_EQ(fault({c_, 1.0}), "no fault");
  EXPECT_THAT(fault({"none", 1.0}),
              AllOf(StartsWith("data.sources.1.path: none: is no file or folder"), HasSubstr("none.idx")));
  EXPECT_THAT(fault({(folder_.path() / "*.none").string(), 1.0}), HasSubstr("matches no file"));
  EXPECT_THAT(fault({holding("bad.jsonl", "{\n"), 1.0}),
              AllOf(StartsWith("data.sources.1.path: "), HasSubstr("line 1")));
  EXPECT_EQ(fault({holding("bad.txt", repeated("{\n", 20)), 1.0}), "no fault") << "no JSON lines by its name";
  holding("a.txt.idx", "");
  EXPECT_THAT(fault({a_, 1.0}), HasSubstr("so are token files of that name"));
}

TEST_F(CorpusFile, FilesOfAFolderAreDocumentsEach) {
  holding("a.txt", " alpha alpha");
  holding("b.txt", "");
  holding("c.txt", " bravo bravo");
  DataSection data{.text = (folder_.path() / "*.txt").string(), .shuffle = 0};
  const Corpus corpus = Corpus::open(data, test::tokenizer(), 0);
  EXPECT_THAT(test::training(corpus).document_starts(), ElementsAre(2));
}

TEST_F(CorpusFile, TextIsReadDirectlyOnlyWhereThereIsLittleOfIt) {
  const auto fault_below = [&](const DataSection& data, uint64_t most) {
    try {
      Corpus::open(
          data, test::tokenizer(), 1, [] {}, most);
    } catch (const BadInput& fault) {
      return std::string(fault.what());
    }
    return std::string("no fault");
  };
  DataSection two = lines("{\"text\": \"" + std::string(50, 'a') + "\"}\n");
  two = {.sources = {{two.jsonl, 1.0}, {text(std::string(50, 'a')).text, 1.0}}};
  EXPECT_EQ(fault_below(two, 113), "no fault");
  EXPECT_THAT(fault_below(two, 112),
              AllOf(StartsWith("data.sources.1.path: "), HasSubstr("text.txt: makes it more than"),
                    HasSubstr("flashmorph-dist tokenize")));
  const DataSection large = text("");
  std::filesystem::resize_file(large.text, Corpus::kMostText + 1);
  EXPECT_THAT(fault_of(large), HasSubstr("makes it more than 100 MB of text"));
}

}  // namespace
}  // namespace flashmorph
