#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>

#include "core/base/bad_input.h"
#include "core/base/listed.h"
#include "core/data/token_files.h"
#include "core/tasks/plays.h"
#include "distributed/parallel/model_hash.h"
#include "distributed/parallel/on_all_ranks.h"
#include "launcher/commands.h"
#include "launcher/evaluation.h"
#include "launcher/lengths.h"
#include "launcher/terminal.h"

namespace flashmorph {
namespace {

namespace fs = std::filesystem;

struct EvaluateOptions {
  std::vector<std::string> folders;
  std::string tasks, lengths;  // separated by commas
  std::string text, chat;      // files
  std::vector<std::string> choices;
  EvaluationPlan plan;  // what is said as it is; the rest by plan_of
  std::string out;
  ModelPlace place;

  std::string words() const {  // what must be the same on every rank
    return fmt::format(
        "evaluate {} --tasks {} --lengths {} --samples {} --seed {} --depths {} --perplexity {} "
        "--perplexity-length {} --perplexity-tokens {} --choices {} --answers {} --text {} --chat {} --device {} "
        "--dtype {} "
        "--tensor {} --pipeline {}",
        listed(folders, " "), tasks, lengths, plan.samples, plan.seed, plan.depths, plan.perplexity, plan.place_length,
        plan.place_tokens, listed(choices, " "), plan.answers, text, chat, place.device.kind, place.device.dtype,
        place.parallel.tensor, place.parallel.pipeline);
  }
};

std::vector<int64_t> usual_lengths(int64_t positions) {
  std::vector<int64_t> lengths;
  for (int64_t length = 1024; length <= std::min<int64_t>(positions, 8192); length *= 2) lengths.push_back(length);
  return lengths;
}

EvaluationPlan plan_of(const EvaluateOptions& options) {
  EvaluationPlan plan = options.plan;
  int64_t positions = INT64_MAX;
  std::string shortest;
  for (const std::string& folder : options.folders) {
    const int64_t own = ModelFolder::open(folder).hybrid.model.max_positions;
    if (own < positions) shortest = folder;
    positions = std::min(positions, own);
  }
  if (options.tasks == "all" || options.tasks.empty()) {
    plan.takes_all = true;
    for (const Task& task : tasks()) plan.tasks.push_back(&task);
  } else if (options.tasks != "none") {
    for (const std::string& name : cut_at_commas(options.tasks)) plan.tasks.push_back(&task_named(name));
  }
  if (!plan.tasks.empty()) plan.lengths = lengths_of(options.lengths, usual_lengths(positions));
  plan.text = options.text.empty() ? std::string(plays()) : text_in(options.text);
  if (!options.chat.empty()) plan.chat = text_in(options.chat);
  for (const std::string& file : options.choices) plan.choices.emplace_back(file, read_choices(file));
  if (plan.perplexity.empty()) {
    plan.place_length = 0;
  } else {
    if (!fs::is_regular_file(plan.perplexity) && !fs::exists(TokenFiles::of(plan.perplexity).idx))
      throw BadInput(plan.perplexity, "is neither a text file nor the prefix of .bin, .idx and .json");
    if (plan.place_length == 0) plan.place_length = std::min<int64_t>(positions, 8192);
  }
  for (const auto& [key, length] : {std::pair{"--lengths", plan.lengths.empty() ? 0 : std::ranges::max(plan.lengths)},
                                    {"--perplexity-length", plan.place_length}})
    if (length > positions)
      throw BadInput(key, fmt::format("{} tokens are beyond the {} positions of {}", length, positions, shortest));
  return plan;
}

// One line a model and task, a column a length; the mean over tasks last.
TextTable task_table(const proto::Evaluation& evaluation, const EvaluationPlan& plan) {
  TextTable table(1, {"task", "model"});
  for (const int64_t length : plan.lengths) table[0].push_back(std::to_string(length));
  const auto row_of = [&](const std::string& task, const proto::Measurement& model, const auto& value_at) {
    std::vector<std::string> row = {task, short_name(model.name())};
    for (const int64_t length : plan.lengths) row.push_back(value_at(model, length));
    table.push_back(row);
  };
  for (const Task* task : plan.tasks)
    for (const proto::Measurement& model : evaluation.measurements())
      row_of(task->name, model, [&](const proto::Measurement& measured, int64_t length) {
        for (const proto::TaskScore& score : measured.tasks())
          if (score.task() == task->name && score.length() == length)
            return fmt::format("{:.1f} ({:.1f})", 100 * score.score(), 100 * score.error());
        return std::string("-");
      });
  for (const proto::Measurement& model : evaluation.measurements())
    row_of("mean", model, [&](const proto::Measurement& measured, int64_t length) {
      double sum = 0.0;
      int64_t count = 0;
      for (const Task* task : plan.tasks)
        for (const proto::TaskScore& score : measured.tasks())
          if (score.task() == task->name && score.length() == length) sum += score.score(), ++count;
      return count == 0 ? std::string("-") : fmt::format("{:.1f}", 100 * sum / static_cast<double>(count));
    });
  return table;
}

// Of the models that it was measured of: a file may hold others.
TextTable perplexity_table(const proto::Evaluation& evaluation) {
  TextTable table;
  for (const proto::Measurement& model : evaluation.measurements()) {
    std::vector<std::string> head = {"perplexity at", "model"}, row = {"", short_name(model.name())};
    for (const proto::PerplexityAtPlace& place : model.perplexity_by_place()) {
      head.push_back(fmt::format("{}-{}", place.from(), place.to()));
      row.push_back(fmt::format("{:.2f}", place.perplexity()));
    }
    if (table.empty() && row.size() > 2) table.push_back(head);
    if (row.size() > 2) table.push_back(row);
  }
  return table;
}

TextTable choice_table(const proto::Evaluation& evaluation) {
  TextTable table(1, {"choices", "model", "questions", "accuracy", "by length"});
  for (const proto::Measurement& model : evaluation.measurements())
    for (const proto::ChoiceScore& score : model.choices())
      table.push_back({score.file(), short_name(model.name()), std::to_string(score.items()),
                       fmt::format("{:.1f} %", 100 * score.accuracy()),
                       fmt::format("{:.1f} %", 100 * score.by_length())});
  return table;
}

int evaluate_models(EvaluateOptions options, Communicator& host) {
  options.place.settle();
  CommandRanks ranks(options.place, options.words(), host);
  Communicator& world = ranks.world();

  EvaluationPlan plan;
  Measurements measurements(options.out, world);
  std::vector<proto::Measurement*> models;
  on_all_ranks(world, [&] { plan = plan_of(options); });
  for (const std::string& folder : options.folders) {
    ModelFiles files;
    on_all_ranks(world, [&] { files = ModelFiles::open(folder); });
    const std::string hash = hash_of_model(folder, files, world);
    on_all_ranks(world, [&] {
      models.push_back(
          &measurements.of(folder, plan.words(options.place.device.dtype) + ", model " + hash.substr(0, 12)));
    });
  }
  if (world.rank() == 0) fmt::print("{}; {}\n", ranks.description(), options.place.device.dtype);

  Evaluation evaluation(plan, options.place, ranks.device(), measurements, world);
  for (proto::Measurement* model : models) evaluation.measure(*model);
  evaluation.finish();
  if (world.rank() != 0) return 0;
  if (!plan.tasks.empty()) fmt::print("\n{}", aligned(task_table(measurements.all(), plan)));
  if (plan.place_length > 0) fmt::print("\n{}", aligned(perplexity_table(measurements.all())));
  if (!plan.choices.empty()) fmt::print("\n{}", aligned(choice_table(measurements.all())));
  return 0;
}

}  // namespace

RanksWork evaluate_command(CLI::App& app) {
  auto options = std::make_shared<EvaluateOptions>();
  app.add_option("folder", options->folders, "models: checkpoints of known families, exports of this program")
      ->required();
  std::string known;
  for (const Task& task : tasks()) known += fmt::format("\n  {:<15} {}", task.name, task.summary);
  app.add_option("--tasks", options->tasks, "names, separated by commas, all or none (default: all)" + known)
      ->type_name("NAMES");
  app.add_option("--lengths", options->lengths,
                 "tokens of a sample, answer included, separated by commas (default: 1024 and its doubles up to 8192, "
                 "as far as the positions go)")
      ->type_name("TOKENS");
  app.add_option("--samples", options->plan.samples, "a task and length (default: 32)")->check(CLI::PositiveNumber);
  app.add_option("--seed", options->plan.seed, "of the samples (default: 1)")->check(CLI::NonNegativeNumber);
  app.add_option("--depths", options->plan.depths, "buckets of depth in the JSON (default: 4)")
      ->check(CLI::Range(1, 100));
  app.add_option("--text", options->text, "a text of your own that hides what the tasks ask for")->type_name("FILE");
  app.add_option("--chat", options->chat,
                 "the passkey tasks as a chat's message: a file with what the model's chat template makes of {}")
      ->type_name("FILE");
  app.add_option("--perplexity", options->plan.perplexity,
                 "by where a token stands, of a text file or the prefix of .bin, .idx and .json of tokenize")
      ->type_name("FILE");
  app.add_option("--perplexity-length", options->plan.place_length,
                 "tokens of its windows (default: 8192, or the positions)")
      ->check(CLI::PositiveNumber);
  app.add_option("--perplexity-tokens", options->plan.place_tokens, "of the file, at most (default: 262144)")
      ->check(CLI::PositiveNumber);
  app.add_option("--choices", options->choices,
                 "JSON lines with context, choices and answer: multiple choice by likelihood")
      ->type_name("FILE")
      ->expected(1)
      ->take_all();
  app.add_option("--out", options->out, "measurements as JSON, written as they come; the same command goes on from it")
      ->type_name("FILE.json");
  app.add_option("--answers", options->plan.answers, "JSON lines: every sample's prompt, what was written, its score")
      ->type_name("FILE");
  app.add_option("--batch-tokens", options->plan.batch_tokens,
                 fmt::format("prompt tokens of the samples that are answered together (default: {} on cuda, {} on cpu)",
                             usual_batch_tokens(at::kCUDA), usual_batch_tokens(at::kCPU)))
      ->check(CLI::PositiveNumber);
  options->place.add_options(app);
  return [options](Communicator& world) { return evaluate_models(*options, world); };
}

}  // namespace flashmorph
