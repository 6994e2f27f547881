#pragma once

#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/eval/choices.h"
#include "core/tasks/task.h"
#include "distributed/health/stop_signal.h"
#include "distributed/health/watchdog.h"
#include "distributed/measure/measures.h"
#include "launcher/progress_line.h"
#include "launcher/ranked_models.h"
#include "proto/run.pb.h"

namespace flashmorph {

// What models are asked, known before any of them is loaded.
struct EvaluationPlan {
  std::vector<const Task*> tasks;
  bool takes_all = false;  // no task was named
  std::vector<int64_t> lengths;
  int64_t samples = 32, seed = 1, depths = 4;
  int64_t batch_tokens = 0;  // 0: as many as the device likes
  std::string text;          // that hides what the tasks ask for
  std::string chat;          // around the passkey tasks' message, as TaskMaterial takes it
  std::string perplexity;    // a text file, or the prefix of .bin, .idx and .json; "": none
  int64_t place_length = 0;  // of its windows; 0: none
  int64_t place_tokens = 262144;
  std::vector<std::pair<std::string, std::vector<ChoiceItem>>> choices;  // by file
  std::string answers;  // a file for every sample's prompt and what was written; "": none

  int64_t longest() const;
  // What a measurement depends on beside the model's weights.
  std::string words(const std::string& dtype) const;
  bool is_done(const proto::Measurement& known) const;
};

// The measurements so far, kept on disk where the user asks for it, so that the same command goes on. Read
// collectively.
class Measurements {
 public:
  Measurements(std::string file, Communicator& world);

  // Of this model, known or new; BadInput when the file has it with other settings.
  proto::Measurement& of(const std::string& folder, const std::string& made_with);
  void save() const;

  const std::string& file() const { return file_; }  // "": none
  const proto::Evaluation& all() const { return all_; }

 private:
  std::string file_;
  bool leads_;
  proto::Evaluation all_;
};

// Measures models one after another, shows how far it is, and stops when it is asked to. Collective.
class Evaluation {
 public:
  Evaluation(const EvaluationPlan& plan, const ModelPlace& place, const at::Device& device, Measurements& measurements,
             Communicator& world);

  // What is not known of it yet. BadInput where the model cannot be asked so, Stopped on every rank.
  void measure(proto::Measurement& known);
  void finish();

 private:
  bool leads() const { return world_.rank() == 0; }
  void measure_tasks(RankedModel& model, const Tokenizer& tokenizer, proto::Measurement& known);
  bool fits(const Task& task, const TaskMaterial& material, int64_t length) const;
  void measure_places(RankedModel& model, const Tokenizer& tokenizer, proto::Measurement& known);
  void measure_choices(RankedModel& model, const Tokenizer& tokenizer, proto::Measurement& known);
  BeforePart before(RankedModel& model, const proto::Measurement& known, const std::string& what, int64_t each,
                    int64_t count);

  const EvaluationPlan& plan_;
  const ModelPlace& place_;
  at::Device device_;
  Measurements& measurements_;
  Communicator& world_;
  StopSignal stop_;
  Watchdog watchdog_;
  std::ofstream answers_;
  ProgressLine line_;
  double left_ = 0.0, done_ = 0.0;  // tokens of all samples; of them, behind us
};

// The last part of a folder's path.
std::string short_name(const std::string& folder);

std::string text_in(const std::filesystem::path& file);  // BadInput when it cannot be read

}  // namespace flashmorph
