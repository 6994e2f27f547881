#pragma once

#include <atomic>
#include <filesystem>
#include <functional>
#include <future>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/config/run_config.h"
#include "core/config/values.h"
#include "core/data/corpus_files.h"
#include "core/io/model_files.h"
#include "distributed/communication/communicator.h"
#include "proto/run.pb.h"

namespace flashmorph {

// What a run is made from besides its config. Recorded when it begins; a start that goes on must find the same.
struct RunSources {
  std::string teacher;  // hash_of_model
  std::vector<CorpusFile> corpus = {};
};

// The sources of a run, read by a thread from where this is made, which touches no tensor and no device: a rank opens
// its device meanwhile, and reads its weights. The ranks read the teacher's files side by side, each a share of them,
// and rank 0 the samples of the corpus.
class RunSourcesAhead {
 public:
  // `between_reads` is called by several threads now and then, and may throw. Everything outlives this. A file that
  // cannot be read is told by `agreed`.
  RunSourcesAhead(const RunConfig& config, const Communicator& world, const std::function<void()>& between_reads);
  ~RunSourcesAhead() { not_wanted_ = true; }  // the thread ends at its next read

  // On every rank, the corpus on rank 0 alone. Once. Collective.
  RunSources agreed(Communicator& world);

 private:
  struct Share {
    std::string teacher;  // hashes_of_share
    std::vector<CorpusFile> corpus;
  };

  std::atomic<bool> not_wanted_ = false;
  std::future<Share> share_;  // the last: its end waits for the thread
};

// The folder of one run: where each artifact lies and which stages are finished. Only rank 0 writes through it.
class RunFolder {
 public:
  explicit RunFolder(const RunConfig& config);
  explicit RunFolder(std::filesystem::path path) : path_(std::move(path)) {}

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path config_file() const { return path_ / "run.yaml"; }
  std::filesystem::path state_file() const { return path_ / "state.pb"; }
  std::filesystem::path events_file() const { return path_ / "events.jsonl"; }
  std::filesystem::path metrics_file() const { return path_ / "metrics.jsonl"; }
  // Beside the run's folder: Prometheus' file_sd looks into one folder for all runs.
  std::filesystem::path metrics_target_file() const { return path_.string() + ".prometheus.json"; }
  std::filesystem::path branches_file() const { return path_ / "branches" / "branches.safetensors"; }
  std::filesystem::path latency_file() const { return path_ / "latency.json"; }
  std::filesystem::path gates_file() const { return path_ / "gates.json"; }
  std::filesystem::path plan_file() const { return path_ / "plan.json"; }
  std::filesystem::path judgements_file() const { return path_ / "judgements.json"; }
  std::filesystem::path evaluation_file() const { return path_ / "evaluation.json"; }
  std::filesystem::path health_folder() const { return path_ / "health"; }
  std::filesystem::path checkpoints_folder() const { return path_ / "checkpoints"; }
  std::filesystem::path export_folder() const { return path_ / "export"; }
  // The hybrid of a plan after a training stage, e.g. hybrid/flashmorph/distill.safetensors.
  std::filesystem::path hybrid_file(const std::string& plan, const std::string& stage) const {
    return path_ / "hybrid" / plan / (stage + ".safetensors");
  }

  // Whether the folder can be used: BadInput when it cannot be written, or when it holds a run of another config
  // (naming the keys that differ, old -> new). Changes nothing on disk.
  void check(const RunConfig& config) const;
  // And of another teacher or corpus; the same bytes elsewhere are the same.
  void check(const RunConfig& config, const RunSources& sources) const;

  // What `config` asks for differently than the run that is there.
  std::vector<ChangedKey> changes(const RunConfig& config) const;

  // Creates the folder, or reads where its run is.
  void open(const RunConfig& config, const RunSources& sources);

  // Moves an old run aside, to NAME.1, NAME.2, ...; returns its new place, empty when there was none.
  std::filesystem::path move_aside() const;

  // The state with one more finished stage is on disk when this returns. `files`: what it wrote for later stages, on
  // disk; `plan_hash`: empty before there are plans.
  void finish(proto::StageResult result, const std::vector<std::filesystem::path>& files, const std::string& plan_hash);
  // The SHA-256 of a file that a finished stage has written, as the state has it.
  std::string sha256_as_written(const std::filesystem::path& file) const;
  // BadInput when a file of a finished stage is gone, or is not what that stage wrote. Reads it through once a start;
  // what this start has written is known.
  void require_as_written(const std::filesystem::path& file);
  const proto::RunState& state() const { return state_; }

 private:
  std::string name_of(const std::filesystem::path& file) const { return file.lexically_relative(path_).string(); }
  // The finished stage that wrote the file; nullptr: none did.
  const proto::StageResult* writer_of(const std::filesystem::path& file) const;

  std::filesystem::path path_;
  proto::RunState state_;
  std::set<std::string> as_written_;  // names of files that are known to be
};

}  // namespace flashmorph
