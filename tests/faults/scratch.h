#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "core/config/run_config.h"
#include "core/data/token_files.h"
#include "distributed/checkpoint/messages.h"
#include "launcher/run.h"
#include "proto/run.pb.h"
#include "tests/support/small_model.h"
#include "tests/support/temporary_folder.h"
#include "tests/unit/data/token_files.h"

namespace flashmorph::test {

namespace fs = std::filesystem;
using nlohmann::json;

inline std::string read(const fs::path& file) {
  std::stringstream text;
  text << std::ifstream(file, std::ios::binary).rdbuf();
  return text.str();
}

inline void write(const fs::path& file, const std::string& text) { std::ofstream(file, std::ios::binary) << text; }

inline void edit(const fs::path& file, const std::string& from, const std::string& to) {
  std::string text = read(file);
  const size_t at = text.find(from);
  ASSERT_NE(at, std::string::npos) << from << " is not in " << file;
  write(file, text.replace(at, from.size(), to));
}

// A folder with all that a small run needs, and the run.
struct Scratch {
  TemporaryFolder folder;
  std::vector<std::string> set;  // on the command line

  fs::path path(const std::string& name) const { return folder.path() / name; }
  fs::path teacher(const std::string& name) const { return path("teacher") / name; }
  fs::path run(const std::string& name) const { return path("runs") / "run" / name; }

  explicit Scratch(std::vector<std::string> set_keys = {}) : set(std::move(set_keys)) {
    fs::create_directories(path("teacher"));
    write_small_model(path("teacher"), {.vocabulary = 1024});
    fs::copy("tests/data/passkey-teacher/tokenizer.json", teacher("tokenizer.json"));
    write(path("text.txt"), read("tests/data/text/tinyshakespeare.txt").substr(0, 60000));
    const std::string data = "data: {lengths: 64, passkeys: 1, words: 2}}\n";
    write(path("run.yaml"),
          "run: {dir: " + path("runs").string() + "}\nmodel: {path: " + path("teacher").string() +
              "}\nbudget: {full_layers: 1}\nmetrics: {listen: \"off\"}\ndata: {text: " + path("text.txt").string() +
              "}\nstages:\n  align: {tokens: 128, batch_tokens: 128, " + data +
              "  select: {tokens: 128, batch_tokens: 128, polish: 0, " + data +
              "  distill: {tokens: 128, batch_tokens: 128, " + data +
              "  evaluate: {compare: [], lengths: [64], passkeys: 1, words: 2, samples: 1, greedy_samples: 0, "
              "perplexity_tokens: 64, perplexity_length: 64}\n");
  }

  RunConfig config() const { return RunConfig::from_file(path("run.yaml"), set); }
  int start() const { return flashmorph::run({path("run.yaml").string(), set}, *single_communicator()); }

  // Another corpus than the text: its beginning as JSON lines, or 12000 ids that count up from `id`, in three
  // sequences.
  void use_json_lines() {
    const std::string text = read(path("text.txt"));
    std::string lines;
    for (size_t start = 0; start < text.size(); start += 1000)
      lines += json{{"text", text.substr(start, 1000)}}.dump() + "\n";
    write(path("lines.jsonl"), lines);
    set = {"data={jsonl: " + path("lines.jsonl").string() + "}"};
  }
  void use_tokens(const std::vector<int64_t>& first_sequences_of_documents, int32_t id) {
    const TokenFiles files = TokenFiles::of(path("tokens").string());
    std::vector<int32_t> ids(12000);
    for (int32_t& each : ids) each = id++ % 1000;
    write(files.bin, bytes_of(ids));
    write(files.idx,
          IndexBytes{
              .lengths = {4000, 4000, 4000}, .offsets = {0, 16000, 32000}, .documents = first_sequences_of_documents}
              .content());
    const Tokenizer tokenizer = Tokenizer::open(teacher("tokenizer.json"));
    write(files.json, TokenOrigin{tokenizer.sha256(), tokenizer.vocab_size(), std::nullopt}.to_json());
    set = {"data={tokens: " + path("tokens").string() + "}"};
  }

  void change_config(const std::string& key, const json& value) const {
    json config = json::parse(read(teacher("config.json")));
    value.is_null() ? (void)config.erase(key) : (void)(config[key] = value);
    write(teacher("config.json"), config.dump());
  }

  // A run that was stopped before this stage.
  void stop_before(const std::string& stage) const {
    start();
    proto::RunState state;
    read_message(run("state.pb"), state);
    int kept = 0;
    while (kept < state.finished_size() && state.finished(kept).stage() != stage) ++kept;
    ASSERT_LT(kept, state.finished_size()) << stage;
    state.mutable_finished()->DeleteSubrange(kept, state.finished_size() - kept);
    if (stage == "select" || stage == "discretize") state.clear_plan_hash();
    write_message(run("state.pb"), state);
  }

  // Every file with its content, but for what each start appends or makes anew.
  std::set<std::string> disk() const {
    std::set<std::string> files;
    for (const auto& entry : fs::recursive_directory_iterator(folder.path())) {
      const std::string name = entry.path().lexically_relative(folder.path()).string();
      if (name.find("/health") != std::string::npos || name.ends_with(".jsonl")) continue;
      files.insert(name + (entry.is_regular_file() ? ": " + read(entry.path()) : ""));
    }
    return files;
  }
};

}  // namespace flashmorph::test
