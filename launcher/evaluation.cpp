#include "launcher/evaluation.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/base/bad_input.h"
#include "core/base/endings.h"
#include "core/base/host_name.h"
#include "core/base/sha256.h"
#include "core/data/token_files.h"
#include "distributed/checkpoint/messages.h"
#include "distributed/parallel/on_all_ranks.h"
#include "launcher/terminal.h"

namespace flashmorph {
namespace {

namespace fs = std::filesystem;

// A text of tokens for perplexity: PREFIX of .bin, .idx and .json, or a text file, one document.
std::unique_ptr<TokenStore> text_for_perplexity(const std::string& file, const Tokenizer& tokenizer) {
  if (fs::exists(TokenFiles::of(file).idx)) return std::make_unique<MappedTokens>(file, tokenizer);
  return std::make_unique<TokenList>(tokenizer.encode(text_in(file)));
}

bool has_task(const proto::Measurement& known, const Task& task, int64_t length) {
  return std::ranges::any_of(known.tasks(), [&](const proto::TaskScore& score) {
    return score.task() == task.name && score.length() == length;
  });
}

bool has_choices(const proto::Measurement& known, const std::string& file) {
  return std::ranges::any_of(known.choices(), [&](const proto::ChoiceScore& score) { return score.file() == file; });
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
double work_of(const proto::Measurement& known, const EvaluationPlan& plan) {
  double tokens = 0.0;
  for (const Task* task : plan.tasks)
    for (const int64_t length : plan.lengths)
      if (!has_task(known, *task, length)) tokens += static_cast<double>(length * plan.samples);
  return tokens;
}

}  // namespace

std::string short_name(const std::string& folder) {
  const fs::path path = fs::path(folder).lexically_normal();
  return path.has_filename() ? path.filename().string() : path.parent_path().filename().string();
}

std::string text_in(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::string content{std::istreambuf_iterator<char>(in), {}};
  if (!in || fs::is_directory(file)) throw BadInput(file.string(), "cannot be read");
  return content;
}

int64_t EvaluationPlan::longest() const {
  return std::max(place_length, lengths.empty() ? 0 : std::ranges::max(lengths));
}

std::string EvaluationPlan::words(const std::string& dtype) const {
  const auto hash = [](const std::string& of) { return sha256_of_bytes(of.data(), of.size()).substr(0, 12); };
  return fmt::format("seed {}, {} samples, {} depths, {}, text {}{}, perplexity {} {} {}", seed, samples, depths, dtype,
                     hash(text), chat.empty() ? "" : ", chat " + hash(chat), perplexity, place_length, place_tokens);
}

bool EvaluationPlan::is_done(const proto::Measurement& known) const {
  return work_of(known, *this) == 0.0 && (place_length == 0 || known.perplexity_by_place_size() > 0) &&
         std::ranges::all_of(choices, [&](const auto& file) { return has_choices(known, file.first); });
}

Measurements::Measurements(std::string file, Communicator& world) : file_(std::move(file)), leads_(world.rank() == 0) {
  if (!file_.empty()) read_on_all_ranks(file_, all_, world);
}

proto::Measurement& Measurements::of(const std::string& folder, const std::string& made_with) {
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

void Measurements::save() const {
  if (leads_ && !file_.empty()) write_message(file_, all_);
}

Evaluation::Evaluation(const EvaluationPlan& plan, const ModelPlace& place, const at::Device& device,
                       Measurements& measurements, Communicator& world)
    : plan_(plan),
      place_(place),
      device_(device),
      measurements_(measurements),
      world_(world),
      stop_(0.0, slurm_end_time()),
      watchdog_(HealthSection(), world, gather_text(host_name(), world), std::_Exit) {
  for (const proto::Measurement& known : measurements.all().measurements()) left_ += work_of(known, plan);
  on_all_ranks(world, [&] {
    if (!leads() || plan.answers.empty()) return;
    answers_.open(plan.answers, std::ios::app);
    if (!answers_) throw BadInput(plan.answers, "cannot be written");
  });
}

void Evaluation::measure(proto::Measurement& known) {
  if (plan_.is_done(known)) return;
  RankedModel model(known.name(), place_, device_, std::max<int64_t>(plan_.longest(), 1), world_);
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
    watchdog_.give_up(error);
  }
}

void Evaluation::finish() {
  if (leads()) line_.finish([] { return std::string("measured"); });
}

void Evaluation::measure_tasks(RankedModel& model, const Tokenizer& tokenizer, proto::Measurement& known) {
  const auto seed = static_cast<uint64_t>(plan_.seed);
  std::optional<TaskMaterial> material;
  on_all_ranks(world_, [&] {
    material.emplace(tokenizer, plan_.text, plan_.chat);
    for (const Task* task : plan_.tasks)
      for (const int64_t length : plan_.lengths) fits(*task, *material, length);
  });
  const TaskPlan tasks{*material, seed, plan_.samples, plan_.depths,
                       plan_.batch_tokens > 0 ? plan_.batch_tokens : usual_batch_tokens(device_)};
  for (const Task* task : plan_.tasks)
    for (const int64_t length : plan_.lengths) {
      if (has_task(known, *task, length) || !fits(*task, *material, length)) continue;
      const std::string what = fmt::format("{} {}", task->name, length);
      const Phase measuring(watchdog_, Work::evaluate, fmt::format("evaluate {} {}", known.name(), what));
      std::vector<WrittenAnswer> own;
      *known.add_tasks() = measure_task(model.model(), model.routes(), *task, length, tasks, model.mesh(),
                                        before(model, known, what, length, plan_.samples), &own);
      if (!plan_.answers.empty()) {
        const std::string lines = answer_lines(known.name(), *task, length, own, tokenizer, model.mesh());
        if (leads()) answers_ << lines << std::flush;
      }
      done_ += static_cast<double>(length * plan_.samples);
      measurements_.save();
    }
}

// Of all tasks those are left out that a length is too short for; one that was named is refused.
bool Evaluation::fits(const Task& task, const TaskMaterial& material, int64_t length) const {
  try {
    task_sample(task, material, static_cast<uint64_t>(plan_.seed), length, 0);
    return true;
  } catch (const BadInput&) {
    if (!plan_.takes_all) throw;
    return false;
  }
}

void Evaluation::measure_places(RankedModel& model, const Tokenizer& tokenizer, proto::Measurement& known) {
  const Phase measuring(watchdog_, Work::evaluate, fmt::format("perplexity of {}", known.name()));
  std::unique_ptr<TokenStore> text;
  on_all_ranks(world_, [&] {
    text = text_for_perplexity(plan_.perplexity, tokenizer);
    if (static_cast<int64_t>(text->all().size()) < plan_.place_length)
      throw BadInput(plan_.perplexity, fmt::format("has {} tokens, expected a window of {} at least",
                                                   text->all().size(), plan_.place_length));
  });
  const int64_t tokens = std::min(plan_.place_tokens, static_cast<int64_t>(text->all().size()));
  const int64_t windows = std::max<int64_t>(1, tokens / plan_.place_length);
  for (const proto::PerplexityAtPlace& place :
       perplexity_by_place(model.model(), model.routes(), text->all(), plan_.place_length, windows, model.mesh(),
                           before(model, known, "perplexity", 0, windows)))
    *known.add_perplexity_by_place() = place;
  measurements_.save();
}

void Evaluation::measure_choices(RankedModel& model, const Tokenizer& tokenizer, proto::Measurement& known) {
  for (const auto& [file, items] : plan_.choices) {
    if (has_choices(known, file)) continue;
    const Phase measuring(watchdog_, Work::evaluate, fmt::format("choices of {}", known.name()));
    *known.add_choices() =
        flashmorph::measure_choices(model.model(), model.routes(), tokenizer, file, items, model.mesh(),
                                    before(model, known, file, 0, static_cast<int64_t>(items.size())));
    measurements_.save();
  }
}

// Asks whether to stop, and shows where it is. each: tokens of an item, of all that is left.
BeforePart Evaluation::before(RankedModel& model, const proto::Measurement& known, const std::string& what,
                              int64_t each, int64_t count) {
  const int64_t ranks = model.mesh().shape().data;
  return [this, name = known.name(), what, each, count, ranks](int64_t own) {
    if (const StopReason reason = stop_.agreed(world_); reason != StopReason::none)
      throw Stopped(
          fmt::format("stopped while measuring {}: {}{}", name, text_of(reason),
                      measurements_.file().empty() ? "" : "; the same command goes on from " + measurements_.file()));
    if (!leads()) return;
    const int64_t items = std::min(count, own * ranks);
    const double now = done_ + static_cast<double>(items * each);
    line_.show([&] {
      return fmt::format("{}  {}  {}/{}  {} left", short_name(name), what, items, count,
                         now > 0.0 ? short_time(line_.seconds() * std::max(0.0, left_ - now) / now) : "?");
    });
  };
}

}  // namespace flashmorph
