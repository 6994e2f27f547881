#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "core/base/bad_input.h"
#include "core/base/endings.h"
#include "core/base/host_name.h"
#include "core/base/listed.h"
#include "core/base/sha256.h"
#include "core/data/token_files.h"
#include "core/io/atomic_file.h"
#include "core/tasks/plays.h"
#include "distributed/checkpoint/messages.h"
#include "distributed/parallel/model_hash.h"
#include "distributed/parallel/on_all_ranks.h"
#include "distributed/stages/measures.h"
#include "launcher/commands.h"
#include "launcher/lengths.h"
#include "launcher/progress_line.h"
#include "launcher/ranked_models.h"
#include "launcher/terminal.h"

namespace flashmorph {
namespace {

namespace fs = std::filesystem;

struct EvaluateOptions {
  std::vector<std::string> folders;
  std::string tasks, lengths;  // separated by commas
  int64_t samples = 32, seed = 1, depths = 4, batch_tokens = 0;
  std::string text, perplexity;  // files
  int64_t perplexity_length = 0, perplexity_tokens = 262144;
  std::vector<std::string> choices;
  std::string out, answers;
  ModelPlace place;

  std::string words() const {  // what must be the same on every rank
    return fmt::format(
        "evaluate {} --tasks {} --lengths {} --samples {} --seed {} --depths {} --perplexity {} "
        "--perplexity-length {} --perplexity-tokens {} --choices {} --text {} --device {} --dtype {} "
        "--tensor {} --pipeline {}",
        listed(folders, " "), tasks, lengths, samples, seed, depths, perplexity, perplexity_length, perplexity_tokens,
        listed(choices, " "), text, place.device.kind, place.device.dtype, place.parallel.tensor,
        place.parallel.pipeline);
  }
};

std::string text_in(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::string content{std::istreambuf_iterator<char>(in), {}};
  if (!in || fs::is_directory(file)) throw BadInput(file.string(), "cannot be read");
  return content;
}

// What is measured, known before any model is loaded.
struct Plan {
  std::vector<const Task*> tasks;
  bool takes_all = false;  // no task was named
  std::vector<int64_t> lengths;
  std::string text;  // that hides what the tasks ask for
  std::vector<std::pair<std::string, std::vector<ChoiceItem>>> choices;
  int64_t place_length = 0;  // of a window for perplexity by place; 0: none

  int64_t longest() const { return std::max(place_length, lengths.empty() ? 0 : std::ranges::max(lengths)); }
};

std::vector<int64_t> usual_lengths(int64_t positions) {
  std::vector<int64_t> lengths;
  for (int64_t length = 1024; length <= std::min<int64_t>(positions, 8192); length *= 2) lengths.push_back(length);
  return lengths;
}

Plan plan_of(const EvaluateOptions& options) {
  Plan plan;
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
  for (const std::string& file : options.choices) plan.choices.emplace_back(file, read_choices(file));
  if (!options.perplexity.empty() && !fs::is_regular_file(options.perplexity) &&
      !fs::exists(TokenFiles::of(options.perplexity).idx))
    throw BadInput(options.perplexity, "is neither a text file nor the prefix of .bin, .idx and .json");
  if (!options.perplexity.empty())
    plan.place_length = options.perplexity_length > 0 ? options.perplexity_length : std::min<int64_t>(positions, 8192);
  for (const auto& [key, length] : {std::pair{"--lengths", plan.lengths.empty() ? 0 : std::ranges::max(plan.lengths)},
                                    {"--perplexity-length", plan.place_length}})
    if (length > positions)
      throw BadInput(key, fmt::format("{} tokens are beyond the {} positions of {}", length, positions, shortest));
  return plan;
}

std::string made_with(const EvaluateOptions& options, const Plan& plan, const std::string& hash_of_model) {
  return fmt::format("seed {}, {} samples, {} depths, {}, text {}, perplexity {} {} {}, model {}", options.seed,
                     options.samples, options.depths, options.place.device.dtype,
                     sha256_of_bytes(plan.text.data(), plan.text.size()).substr(0, 12), options.perplexity,
                     plan.place_length, options.perplexity_tokens, hash_of_model.substr(0, 12));
}

// A text of tokens for perplexity: PREFIX of .bin, .idx and .json, or a text file, one document.
std::unique_ptr<TokenStore> text_for_perplexity(const std::string& file, const Tokenizer& tokenizer) {
  if (fs::exists(TokenFiles::of(file).idx)) return std::make_unique<MappedTokens>(file, tokenizer);
  return std::make_unique<TokenList>(tokenizer.encode(text_in(file)));
}

// The measurements so far, kept on disk where the user asks for it, so that the same command goes on.
class Results {
 public:
  Results(const EvaluateOptions& options, Communicator& world) : file_(options.out), leads_(world.rank() == 0) {
    if (!file_.empty()) read_on_all_ranks(file_, all_, world);
  }

  // Of this model, known or new; BadInput when the file has it with other settings.
  proto::Measurement& of(const std::string& folder, const std::string& made_with) {
    for (proto::Measurement& known : *all_.mutable_measurements())
      if (known.name() == folder) {
        if (known.made_with() != made_with)
          throw BadInput(file_, fmt::format("holds {} measured with other settings ({}), expected {}; give another "
                                            "file, or remove it",
                                            folder, known.made_with(), made_with));
        return known;
      }
    proto::Measurement& added = *all_.add_measurements();
    added.set_name(folder);
    added.set_made_with(made_with);
    return added;
  }

  void save() const {
    if (leads_ && !file_.empty()) write_message(file_, all_);
  }

  const proto::Evaluation& all() const { return all_; }

 private:
  std::string file_;
  bool leads_;
  proto::Evaluation all_;
};

bool has_task(const proto::Measurement& known, const Task& task, int64_t length) {
  return std::ranges::any_of(known.tasks(), [&](const proto::TaskScore& score) {
    return score.task() == task.name && score.length() == length;
  });
}

bool has_choices(const proto::Measurement& known, const std::string& file) {
  return std::ranges::any_of(known.choices(), [&](const proto::ChoiceScore& score) { return score.file() == file; });
}

std::string short_name(const std::string& folder) {
  const fs::path path = fs::path(folder).lexically_normal();
  return path.has_filename() ? path.filename().string() : path.parent_path().filename().string();
}

// One line a model and task, a column a length; the mean over tasks last.
TextTable task_table(const proto::Evaluation& evaluation, const Plan& plan) {
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

TextTable perplexity_table(const proto::Evaluation& evaluation) {
  TextTable table(1, {"perplexity at", "model"});
  for (const proto::PerplexityAtPlace& place : evaluation.measurements(0).perplexity_by_place())
    table[0].push_back(fmt::format("{}-{}", place.from(), place.to()));
  for (const proto::Measurement& model : evaluation.measurements()) {
    std::vector<std::string> row = {"", short_name(model.name())};
    for (const proto::PerplexityAtPlace& place : model.perplexity_by_place())
      row.push_back(fmt::format("{:.2f}", place.perplexity()));
    table.push_back(row);
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

// The answers of all data ranks as JSON lines, on rank 0.
std::string answer_lines(const std::string& folder, const Task& task, int64_t length,
                         const std::vector<WrittenAnswer>& own, const Tokenizer& tokenizer, Mesh& mesh) {
  std::string lines;
  if (mesh.pipeline_rank() == 0 && mesh.tensor_rank() == 0)
    for (const WrittenAnswer& answer : own) {
      nlohmann::ordered_json line = {{"model", folder},
                                     {"task", task.name},
                                     {"length", length},
                                     {"sample", answer.sample},
                                     {"score", answer.score},
                                     {"prompt_tokens", answer.asked.prompt},
                                     {"most", answer.asked.most},
                                     {"written_tokens", answer.written},
                                     {"written", tokenizer.decode(answer.written)}};
      if (answer.asked.words.empty())
        line["references"] = answer.asked.references;
      else
        line["words"] = answer.asked.words;
      lines += line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
    }
  std::string all;
  for (const std::string& text : gather_text(lines, mesh.world())) all += text;
  return all;
}

// What one model still has to be asked, by tokens that go through it.
double work_of(const proto::Measurement& known, const Plan& plan, const EvaluateOptions& options) {
  double tokens = 0.0;
  for (const Task* task : plan.tasks)
    for (const int64_t length : plan.lengths)
      if (!has_task(known, *task, length)) tokens += static_cast<double>(length * options.samples);
  return tokens;
}

bool is_done(const proto::Measurement& known, const Plan& plan, const EvaluateOptions& options) {
  return work_of(known, plan, options) == 0.0 && (plan.place_length == 0 || known.perplexity_by_place_size() > 0) &&
         std::ranges::all_of(plan.choices, [&](const auto& file) { return has_choices(known, file.first); });
}

// Measures models one after another; all that they have in common.
class Evaluation {
 public:
  Evaluation(const EvaluateOptions& options, const Plan& plan, Results& results, const at::Device& device,
             Communicator& world)
      : options_(options),
        plan_(plan),
        results_(results),
        device_(device),
        world_(world),
        stop_(0.0, slurm_end_time()),
        watchdog_(HealthSection(), world, gather_text(host_name(), world), std::_Exit) {
    for (const proto::Measurement& known : results.all().measurements()) left_ += work_of(known, plan, options);
    on_all_ranks(world, [&] {
      if (!leads() || options.answers.empty()) return;
      answers_.open(options.answers, std::ios::app);
      if (!answers_) throw BadInput(options.answers, "cannot be written");
    });
  }

  void measure(proto::Measurement& known) {
    if (is_done(known, plan_, options_)) return;
    RankedModel model(known.name(), options_.place, device_, std::max<int64_t>(plan_.longest(), 1), world_);
    try {
      std::optional<Tokenizer> tokenizer;
      on_all_ranks(world_,
                   [&] { tokenizer = Tokenizer::of_model(known.name(), model.folder().hybrid.model.vocabulary); });
      if (!plan_.tasks.empty()) measure_tasks(model, *tokenizer, known);
      if (plan_.place_length > 0 && known.perplexity_by_place_size() == 0) measure_places(model, *tokenizer, known);
      measure_choices(model, *tokenizer, known);
    } catch (const BadInput&) {
      throw;
    } catch (const Stopped&) {
      throw;
    } catch (const CommonFailure&) {
      throw;
    } catch (const std::exception& error) {  // the other ranks know nothing of it
      watchdog_.give_up(error.what());
    }
  }

  void finish() {
    if (leads()) line_.finish([] { return std::string("measured"); });
  }

 private:
  bool leads() const { return world_.rank() == 0; }

  void measure_tasks(RankedModel& model, const Tokenizer& tokenizer, proto::Measurement& known) {
    const auto seed = static_cast<uint64_t>(options_.seed);
    std::optional<TaskMaterial> material;
    on_all_ranks(world_, [&] {
      material.emplace(tokenizer, plan_.text);
      for (const Task* task : plan_.tasks)
        for (const int64_t length : plan_.lengths) fits(*task, *material, length);
    });
    const TaskPlan tasks{*material, seed, options_.samples, options_.depths,
                         options_.batch_tokens > 0 ? options_.batch_tokens : usual_batch_tokens(device_)};
    for (const Task* task : plan_.tasks)
      for (const int64_t length : plan_.lengths) {
        if (has_task(known, *task, length) || !fits(*task, *material, length)) continue;
        const std::string what = fmt::format("{} {}", task->name, length);
        const Phase measuring(watchdog_, Work::evaluate, fmt::format("evaluate {} {}", known.name(), what));
        std::vector<WrittenAnswer> own;
        *known.add_tasks() = measure_task(model.model(), model.routes(), *task, length, tasks, model.mesh(),
                                          before(model, known, what, length, options_.samples), &own);
        if (!options_.answers.empty()) {
          const std::string lines = answer_lines(known.name(), *task, length, own, tokenizer, model.mesh());
          if (leads()) answers_ << lines << std::flush;
        }
        done_ += static_cast<double>(length * options_.samples);
        results_.save();
      }
  }

  // Of all tasks those are left out that a length is too short for; one that was named is refused.
  bool fits(const Task& task, const TaskMaterial& material, int64_t length) const {
    try {
      task_sample(task, material, static_cast<uint64_t>(options_.seed), length, 0);
      return true;
    } catch (const BadInput&) {
      if (!plan_.takes_all) throw;
      return false;
    }
  }

  void measure_places(RankedModel& model, const Tokenizer& tokenizer, proto::Measurement& known) {
    const Phase measuring(watchdog_, Work::evaluate, fmt::format("perplexity of {}", known.name()));
    std::unique_ptr<TokenStore> text;
    on_all_ranks(world_, [&] {
      text = text_for_perplexity(options_.perplexity, tokenizer);
      if (static_cast<int64_t>(text->all().size()) < plan_.place_length)
        throw BadInput(options_.perplexity, fmt::format("has {} tokens, expected a window of {} at least",
                                                        text->all().size(), plan_.place_length));
    });
    const int64_t tokens = std::min(options_.perplexity_tokens, static_cast<int64_t>(text->all().size()));
    const int64_t windows = std::max<int64_t>(1, tokens / plan_.place_length);
    for (const proto::PerplexityAtPlace& place :
         perplexity_by_place(model.model(), model.routes(), text->all(), plan_.place_length, windows, model.mesh(),
                             before(model, known, "perplexity", 0, windows)))
      *known.add_perplexity_by_place() = place;
    results_.save();
  }

  void measure_choices(RankedModel& model, const Tokenizer& tokenizer, proto::Measurement& known) {
    for (const auto& [file, items] : plan_.choices) {
      if (has_choices(known, file)) continue;
      const Phase measuring(watchdog_, Work::evaluate, fmt::format("choices of {}", known.name()));
      *known.add_choices() =
          flashmorph::measure_choices(model.model(), model.routes(), tokenizer, file, items, model.mesh(),
                                      before(model, known, file, 0, static_cast<int64_t>(items.size())));
      results_.save();
    }
  }

  // Asks whether to stop, and shows where it is. each: tokens of an item, of all that is left.
  BeforePart before(RankedModel& model, const proto::Measurement& known, const std::string& what, int64_t each,
                    int64_t count) {
    const int64_t ranks = model.mesh().shape().data;
    return [this, name = known.name(), what, each, count, ranks](int64_t own) {
      if (const StopReason reason = stop_.agreed(world_); reason != StopReason::none)
        throw Stopped(fmt::format("stopped while measuring {}: {}{}", name, text_of(reason),
                                  options_.out.empty() ? "" : "; the same command goes on from " + options_.out));
      if (!leads()) return;
      const int64_t items = std::min(count, own * ranks);
      const double now = done_ + static_cast<double>(items * each);
      line_.show([&] {
        return fmt::format("{}  {}  {}/{}  {} left", short_name(name), what, items, count,
                           now > 0.0 ? short_time(line_.seconds() * std::max(0.0, left_ - now) / now) : "?");
      });
    };
  }

  const EvaluateOptions& options_;
  const Plan& plan_;
  Results& results_;
  at::Device device_;
  Communicator& world_;
  StopSignal stop_;
  Watchdog watchdog_;
  std::ofstream answers_;
  ProgressLine line_;
  double left_ = 0.0, done_ = 0.0;  // tokens of all samples; of them, behind us
};

int evaluate_models(EvaluateOptions options, Communicator& host) {
  options.place.settle();
  CommandRanks ranks(options.place, options.words(), host);
  Communicator& world = ranks.world();

  Plan plan;
  Results results(options, world);
  std::vector<proto::Measurement*> models;
  on_all_ranks(world, [&] { plan = plan_of(options); });
  for (const std::string& folder : options.folders) {
    ModelFiles files;
    on_all_ranks(world, [&] { files = ModelFiles::open(folder); });
    const std::string hash = hash_of_model(folder, files, world);
    on_all_ranks(world, [&] { models.push_back(&results.of(folder, made_with(options, plan, hash))); });
  }
  if (world.rank() == 0) fmt::print("{}; {}\n", ranks.description(), options.place.device.dtype);

  Evaluation evaluation(options, plan, results, ranks.device(), world);
  for (proto::Measurement* model : models) evaluation.measure(*model);
  evaluation.finish();
  if (world.rank() != 0) return 0;
  if (!plan.tasks.empty()) fmt::print("\n{}", aligned(task_table(results.all(), plan)));
  if (plan.place_length > 0) fmt::print("\n{}", aligned(perplexity_table(results.all())));
  if (!plan.choices.empty()) fmt::print("\n{}", aligned(choice_table(results.all())));
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
  app.add_option("--samples", options->samples, "a task and length (default: 32)")->check(CLI::PositiveNumber);
  app.add_option("--seed", options->seed, "of the samples (default: 1)")->check(CLI::NonNegativeNumber);
  app.add_option("--depths", options->depths, "buckets of depth in the JSON (default: 4)")->check(CLI::Range(1, 100));
  app.add_option("--text", options->text, "a text of your own that hides what the tasks ask for")->type_name("FILE");
  app.add_option("--perplexity", options->perplexity,
                 "by where a token stands, of a text file or the prefix of .bin, .idx and .json of tokenize")
      ->type_name("FILE");
  app.add_option("--perplexity-length", options->perplexity_length,
                 "tokens of its windows (default: 8192, or the positions)")
      ->check(CLI::PositiveNumber);
  app.add_option("--perplexity-tokens", options->perplexity_tokens, "of the file, at most (default: 262144)")
      ->check(CLI::PositiveNumber);
  app.add_option("--choices", options->choices,
                 "JSON lines with context, choices and answer: multiple choice by likelihood")
      ->type_name("FILE")
      ->expected(1)
      ->take_all();
  app.add_option("--out", options->out, "measurements as JSON, written as they come; the same command goes on from it")
      ->type_name("FILE.json");
  app.add_option("--answers", options->answers, "JSON lines: every sample's prompt, what was written, its score")
      ->type_name("FILE");
  app.add_option("--batch-tokens", options->batch_tokens,
                 "prompt tokens of the samples that are answered together (default: 262144 on cuda, 16384 on cpu)")
      ->check(CLI::PositiveNumber);
  options->place.add_options(app);
  return [options](Communicator& world) { return evaluate_models(*options, world); };
}

}  // namespace flashmorph
