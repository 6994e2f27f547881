#include "core/data/tokenize.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "core/data/input_files.h"
#include "core/model/model_spec.h"
#include "launcher/commands.h"
#include "launcher/progress_line.h"
#include "launcher/terminal.h"

namespace flashmorph {
namespace {

struct TokenizeOptions {
  TokenizeJob job;
  std::vector<std::string> inputs;
  std::string model;
};

std::string megabytes(uint64_t bytes) { return fmt::format("{:.1f}", static_cast<double>(bytes) / 1e6); }

std::string progress_text(const TokenizeProgress& progress, double seconds) {
  constexpr int kWidth = 24;
  const double share =
      static_cast<double>(progress.bytes) / static_cast<double>(std::max<uint64_t>(progress.bytes_in_all, 1));
  const double pace =
      static_cast<double>(progress.bytes - progress.bytes_before) / std::max(seconds, 1e-9);  // bytes a second
  const auto filled = static_cast<int>(share * kWidth);
  return fmt::format("tokenize [{}{}] {:3.0f}%  {} of {} MB  {} tokens  {:.1f} MB/s  {} left",
                     std::string(static_cast<size_t>(filled), '#'),
                     std::string(static_cast<size_t>(kWidth - filled), '.'), 100 * share, megabytes(progress.bytes),
                     megabytes(progress.bytes_in_all), short_count(static_cast<int64_t>(progress.tokens)), pace / 1e6,
                     pace > 0 ? short_time(static_cast<double>(progress.bytes_in_all - progress.bytes) / pace) : "?");
}

int work(TokenizeOptions& options) {
  for (const std::string& input : options.inputs)
    for (const std::filesystem::path& file : input_files(input)) options.job.inputs.push_back(file);
  const Tokenizer tokenizer = Tokenizer::of_model(options.model, ModelSpec::open(options.model).vocabulary);
  ProgressLine line;
  const TokenizeProgress progress = tokenize(options.job, tokenizer, [&](const TokenizeProgress& now) {
    line.show([&] { return progress_text(now, line.seconds()); });
  });
  line.finish([&] { return progress_text(progress, line.seconds()); });
  const std::string& prefix = options.job.prefix;
  if (progress.done_before) {
    fmt::print("{}.bin, .idx and .json are there already, from the same inputs and settings\n", prefix);
    return 0;
  }
  fmt::print("{}.bin, .idx and .json: {} tokens in {} documents of {} MB, {:.1f} s{}\n", prefix, progress.tokens,
             progress.documents, megabytes(progress.bytes_in_all), line.seconds(),
             progress.bytes_before > 0
                 ? fmt::format(" (the first {} MB were done before)", megabytes(progress.bytes_before))
                 : "");
  if (progress.bad_lines > 0)
    fmt::print("{} lines without text at \"{}\" were passed over\n", progress.bad_lines, options.job.field);
  return 0;
}

}  // namespace

CommandWork tokenize_command(CLI::App& app) {
  auto options = std::make_shared<TokenizeOptions>();
  app.add_option("input", options->inputs,
                 "text files, a document each; with --jsonl files of JSON lines; folders of them, patterns; plain, "
                 "gzip or zstd")
      ->required();
  app.add_option("--model", options->model, "the Hugging Face folder whose tokenizer.json is used")->required();
  app.add_option("--output", options->job.prefix, "prefix of the .bin, .idx (Megatron's format) and .json to write")
      ->required()
      ->type_name("PREFIX");
  app.add_option("--jsonl", options->job.field, "each line is a JSON object with a document at this key")
      ->type_name("FIELD");
  app.add_flag("--append-eod", options->job.append_end, "put the tokenizer's end of text behind each document");
  app.add_flag("--skip-bad-lines", options->job.skip_bad_lines,
               "pass over lines that are no JSON or have no text at the field, and count them")
      ->needs("--jsonl");
  app.add_flag("--fresh", options->job.fresh, "start anew, whatever lies there (otherwise an unfinished job goes on)");
  return [options] { return work(*options); };
}

}  // namespace flashmorph
