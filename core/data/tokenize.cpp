#include "core/data/tokenize.h"

#include <chrono>
#include <nlohmann/json.hpp>

#include "core/base/bad_input.h"
#include "core/data/documents.h"
#include "core/data/token_files.h"
#include "core/data/token_writer.h"
#include "core/io/atomic_file.h"
#include "core/io/json_input.h"
#include "core/io/output_file.h"
#include "core/tokenizer/text_encoder.h"

namespace flashmorph {
namespace {

using nlohmann::ordered_json;

// How far the job is: all that a new process needs.
struct State {
  size_t input = 0;
  uint64_t position = 0, line = 0;  // in its content
  uint64_t bytes_read = 0;          // of its file
  uint64_t bad_lines = 0;           // in all inputs
  TextEncoder::State encoder;
  TokenWriter::Written written;
  bool all_written = false;  // only the move is left
};

int64_t modified(const std::filesystem::path& file) {  // nanoseconds since 1970
  const auto time = std::chrono::file_clock::to_sys(std::filesystem::last_write_time(file));
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
}

ordered_json description_of(const TokenizeJob& job, const Tokenizer& tokenizer) {
  ordered_json inputs = ordered_json::array();
  for (const std::filesystem::path& input : job.inputs) {
    if (!std::filesystem::is_regular_file(input)) throw BadInput(input.string(), "is not a regular file");
    inputs.push_back({{"path", std::filesystem::absolute(input).lexically_normal().string()},
                      {"bytes", std::filesystem::file_size(input)},
                      {"modified", modified(input)}});
  }
  return {{"inputs", inputs},
          {"field", job.field},
          {"append_end", job.append_end},
          {"tokenizer_sha256", tokenizer.sha256()}};
}

std::filesystem::path state_file(const std::string& prefix) { return hidden_sibling(prefix, ".tokenize.json"); }

void save(const State& state, const ordered_json& job, const std::string& prefix) {
  const ordered_json content = {
      {"job", job},
      {"input", state.input},
      {"position", state.position},
      {"line", state.line},
      {"bytes_read", state.bytes_read},
      {"bad_lines", state.bad_lines},
      {"first", state.encoder.first},
      {"normalizes_anew", state.encoder.normalizes_anew},
      {"begins", state.encoder.begins},
      {"held", state.encoder.held},
      {"tokens", state.written.tokens},
      {"documents", state.written.documents},
      {"tokens_of_document", state.written.tokens_of_document},
      {"all_written", state.all_written},
  };
  write_file_atomically(state_file(prefix), content.dump(1) + "\n");
}

State saved(const ordered_json& job, const std::string& prefix) {
  const std::filesystem::path file = state_file(prefix);
  if (!std::filesystem::exists(file)) return {};
  const nlohmann::json content = read_json_file(file);
  if (part_of(content, "job") != nlohmann::json(job))
    throw BadInput(prefix, "an unfinished job of other inputs or settings lies here; --fresh starts anew");
  const auto at = [&](const char* key, auto right_kind) -> const nlohmann::json& {
    const nlohmann::json& value = part_of(content, key);
    if (!(value.*right_kind)())
      throw BadInput(file.string() + ": " + key, "is " + value.dump() + "; --fresh starts anew");
    return value;
  };
  const auto number = [&](const char* key) { return at(key, &nlohmann::json::is_number_unsigned).get<uint64_t>(); };
  const auto truth = [&](const char* key) { return at(key, &nlohmann::json::is_boolean).get<bool>(); };
  const std::string held = at("held", &nlohmann::json::is_string).get<std::string>();
  return {.input = number("input"),
          .position = number("position"),
          .line = number("line"),
          .bytes_read = number("bytes_read"),
          .bad_lines = number("bad_lines"),
          .encoder = {truth("first"), truth("normalizes_anew"), truth("begins"), held},
          .written = {number("tokens"), number("documents"), number("tokens_of_document")},
          .all_written = truth("all_written")};
}

// Keeps other processes from the same files.
class Lock {
 public:
  explicit Lock(const std::string& prefix) : path_(checked(hidden_sibling(prefix, ".lock"))), file_(path_) {
    if (!file_.try_lock()) throw BadInput(prefix, "is being written by another process");
  }
  ~Lock() {
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
  }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

 private:
  static std::filesystem::path checked(std::filesystem::path path) {
    const std::filesystem::path folder = path.parent_path();
    if (!std::filesystem::is_directory(folder)) throw BadInput(folder.string(), "is not a folder");
    return path;
  }
  std::filesystem::path path_;
  OutputFile file_;
};

class Job {
 public:
  Job(const TokenizeJob& job, const Tokenizer& tokenizer, const std::function<void(const TokenizeProgress&)>& report)
      : job_(job),
        tokenizer_(tokenizer),
        report_(report),
        description_(description_of(job, tokenizer)),
        encoder_(tokenizer) {
    for (const ordered_json& input : description_["inputs"]) progress_.bytes_in_all += input["bytes"].get<uint64_t>();
    if (job.append_end) end_ = tokenizer.end_of_text();
  }

  TokenizeProgress run() {
    const Lock lock(job_.prefix);
    if (job_.fresh) clear();
    if (!done_before()) finish();
    return progress_;
  }

 private:
  void clear() const {
    std::filesystem::remove(TokenFiles::of(job_.prefix).json);  // first: without it the others are no corpus
    std::filesystem::remove(state_file(job_.prefix));
  }

  bool done_before() {
    const std::filesystem::path file = TokenFiles::of(job_.prefix).json;
    if (std::filesystem::exists(state_file(job_.prefix)) || !std::filesystem::exists(file)) return false;
    const nlohmann::json content = read_json_file(file);
    if (part_of(content, "job") != nlohmann::json(description_))
      throw BadInput(file.string(), "is there already, from other inputs or settings; --fresh replaces it");
    progress_ = {progress_.bytes_in_all,
                 progress_.bytes_in_all,
                 progress_.bytes_in_all,
                 content.value("tokens", uint64_t{0}),
                 content.value("documents", uint64_t{0}),
                 content.value("bad_lines", uint64_t{0}),
                 true};
    return true;
  }

  void finish() {
    state_ = saved(description_, job_.prefix);
    if (!state_.all_written) write_all();
    TokenWriter::move_into_place(job_.prefix);
    std::filesystem::remove(state_file(job_.prefix));
  }

  void write_all() {
    TokenWriter writer(job_.prefix, tokenizer_.vocab_size(), state_.written);
    writer_ = &writer;
    for (size_t i = 0; i < state_.input; ++i) bytes_before_input_ += description_["inputs"][i]["bytes"].get<uint64_t>();
    progress_.bytes_before = bytes_before_input_ + state_.bytes_read;
    for (; state_.input < job_.inputs.size(); ++state_.input) {
      read_input();
      bytes_before_input_ += description_["inputs"][state_.input]["bytes"].get<uint64_t>();
      state_.position = state_.line = state_.bytes_read = 0;
    }
    const TokenWriter::Written written = writer.sync();
    ordered_json origin =
        ordered_json::parse(TokenOrigin{tokenizer_.sha256(), tokenizer_.vocab_size(), end_}.to_json());
    origin["tokens"] = written.tokens;
    origin["documents"] = written.documents;
    if (job_.skip_bad_lines) origin["bad_lines"] = state_.bad_lines;
    origin["job"] = description_;
    writer.write_rest(origin.dump(1) + "\n");
    state_.written = written;
    state_.all_written = true;
    save(state_, description_, job_.prefix);
    writer_ = nullptr;
  }

  void read_input() {
    const std::filesystem::path& input = job_.inputs[state_.input];
    DocumentReader reader(input, job_.field, job_.skip_bad_lines);
    reader.go_on_from(state_.position, state_.line);
    encoder_.go_on_from(state_.encoder, reader.position());
    const uint64_t bad_lines_before = state_.bad_lines;
    for (DocumentReader::Part part{}; next(reader, part);) {
      std::vector<int32_t> tokens;
      encoder_.write(part.text, tokens);
      if (part.ends) encoder_.finish(tokens);
      writer_->append(tokens);
      if (part.ends) end_document(input);
      // Inside a plain text it goes on behind what the encoder took, elsewhere behind the line.
      const uint64_t position = part.ends ? reader.position() : encoder_.taken();
      uncommitted_ += position - state_.position;
      state_.position = position;
      state_.line = reader.line();
      state_.bytes_read = reader.bytes_read();
      state_.bad_lines = bad_lines_before + reader.bad_lines();
      state_.encoder = encoder_.state();
      tell();
    }
    state_.bad_lines = progress_.bad_lines = bad_lines_before + reader.bad_lines();
  }

  // What was done before a fault of the input is kept, when there is any.
  bool next(DocumentReader& reader, DocumentReader::Part& part) {
    try {
      return reader.next(part);
    } catch (const BadInput& bad) {
      if (writer_->so_far().tokens == 0) {
        TokenWriter::discard(job_.prefix);
        std::filesystem::remove(state_file(job_.prefix));
        throw;
      }
      commit();
      std::vector<Fault> faults = bad.faults();
      faults.front().what +=
          "; what was read before it is kept: " +
          std::string(job_.field.empty()
                          ? ""
                          : "the same command goes on from there, past such lines with --skip-bad-lines; ") +
          "--fresh starts anew";
      throw BadInput(faults);
    }
  }

  void end_document(const std::filesystem::path& input) {
    if (end_ && writer_->so_far().tokens_of_document > 0) writer_->append(std::span(&*end_, 1));
    writer_->end_document(input);
  }

  void tell() {
    progress_.bytes = bytes_before_input_ + state_.bytes_read;
    progress_.tokens = writer_->so_far().tokens;
    progress_.documents = writer_->so_far().documents;
    progress_.bad_lines = state_.bad_lines;
    if (uncommitted_ >= job_.commit_bytes) commit();
    report_(progress_);
  }

  void commit() {
    state_.written = writer_->sync();
    save(state_, description_, job_.prefix);
    uncommitted_ = 0;
  }

  const TokenizeJob& job_;
  const Tokenizer& tokenizer_;
  const std::function<void(const TokenizeProgress&)>& report_;
  ordered_json description_;
  TextEncoder encoder_;
  std::optional<int32_t> end_;
  TokenWriter* writer_ = nullptr;  // while something is written
  State state_;
  TokenizeProgress progress_;
  uint64_t bytes_before_input_ = 0;
  uint64_t uncommitted_ = 0;  // bytes of content
};

}  // namespace

TokenizeProgress tokenize(const TokenizeJob& job, const Tokenizer& tokenizer,
                          const std::function<void(const TokenizeProgress&)>& report) {
  return Job(job, tokenizer, report).run();
}

}  // namespace flashmorph
