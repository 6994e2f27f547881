#include "distributed/run/run_folder.h"

#include <c10/util/Exception.h>
#include <unistd.h>

#include <algorithm>

#include "core/base/bad_input.h"
#include "core/base/sha256.h"
#include "core/io/atomic_file.h"
#include "distributed/checkpoint/messages.h"
#include "distributed/parallel/model_hash.h"
#include "distributed/parallel/on_all_ranks.h"

namespace flashmorph {
namespace {

constexpr const char* kOtherwise = " (use --fresh to move the old run aside, or another run.name)";

std::string size_and_hash(int64_t bytes, const std::string& sha256) {
  return std::to_string(bytes) + " bytes of SHA-256 " + sha256;
}

// Where the teacher and the texts lie does not matter: what they hold is compared, by its hash.
RunConfig wherever_its_sources_are(RunConfig config) {
  std::vector<std::string*> paths = {&config.model.path, &config.data.text, &config.data.jsonl, &config.data.tokens};
  for (DataSource& source : config.data.sources) paths.push_back(&source.path);
  for (std::string* path : paths)
    if (!path->empty()) *path = "anywhere";
  return config;
}

std::string config_hash(const RunConfig& config) {
  const std::string text = result_keys(values_of(wherever_its_sources_are(config)));
  return sha256_of_bytes(text.data(), text.size());
}

// The nearest folder on the way up that exists.
std::filesystem::path existing_ancestor(std::filesystem::path folder) {
  folder = std::filesystem::absolute(folder);
  while (!std::filesystem::exists(folder) && folder.has_relative_path()) folder = folder.parent_path();
  return folder;
}

}  // namespace

RunSourcesAhead::RunSourcesAhead(const RunConfig& config, const Communicator& world,
                                 const std::function<void()>& between_reads)
    : share_(std::async(std::launch::async, [&, rank = world.rank(), ranks = world.size(), between_reads] {
        const auto while_wanted = [&] {
          if (not_wanted_) throw Stopped("not wanted any more");
          between_reads();
        };
        Share share{hashes_of_share(config.model.path, ModelFiles::open(config.model.path), rank, ranks, while_wanted),
                    {}};
        if (rank == 0) share.corpus = corpus_files(config.data, while_wanted);
        return share;
      })) {}

RunSources RunSourcesAhead::agreed(Communicator& world) {
  Share share;
  on_all_ranks(world, [&] { share = share_.get(); });
  return {hash_of_shares(share.teacher, world), std::move(share.corpus)};
}

RunFolder::RunFolder(const RunConfig& config) : path_(std::filesystem::path(config.run.dir) / config.run.name) {}

void RunFolder::check(const RunConfig& config) const {
  const std::filesystem::path base = existing_ancestor(path_);
  if (!std::filesystem::is_directory(base))
    throw BadInput(path_.string(), "cannot be made: " + base.string() + " is not a folder");
  if (access(base.c_str(), W_OK) != 0)
    throw BadInput(path_.string(), base.string() + " is not writable; give another run.dir");
  if (!std::filesystem::exists(state_file())) return;

  proto::RunState state;
  read_message(state_file(), state);
  std::vector<ChangedKey> changed =
      changed_keys(wherever_its_sources_are(RunConfig::from_file(config_file())), wherever_its_sources_are(config));
  std::erase_if(changed, [](const ChangedKey& change) { return !change.changes_result; });
  if (state.config_hash() != config_hash(config))
    throw BadInput(path_.string(),
                   "holds a run of another configuration; this one changes " +
                       (changed.empty() ? "what " + config_file().string() + " no longer says" : text_of(changed)) +
                       kOtherwise);
}

void RunFolder::check(const RunConfig& config, const RunSources& sources) const {
  check(config);
  if (!std::filesystem::exists(state_file())) return;
  proto::RunState state;
  read_message(state_file(), state);
  if (state.source_hash() != sources.teacher)
    throw BadInput(path_.string(),
                   "was made from another teacher than " + config.model.path + " holds now" + kOtherwise);
  const auto files = static_cast<int>(sources.corpus.size());
  if (files != state.corpus_size())
    throw BadInput("data", "names " + std::to_string(files) + " files, " + path_.string() + " was made from " +
                               std::to_string(state.corpus_size()) + kOtherwise);
  for (int i = 0; i < files; ++i) {
    const CorpusFile& found = sources.corpus[static_cast<size_t>(i)];
    if (const proto::CorpusFile& known = state.corpus(i);
        found.bytes != known.bytes() || found.sha256 != known.sha256())
      throw BadInput(found.path, "is not the corpus that " + path_.string() + " was made from: it has " +
                                     size_and_hash(found.bytes, found.sha256) + ", expected " +
                                     size_and_hash(known.bytes(), known.sha256()) + kOtherwise);
  }
}

std::vector<ChangedKey> RunFolder::changes(const RunConfig& config) const {
  if (!std::filesystem::exists(config_file())) return {};
  return changed_keys(RunConfig::from_file(config_file()), config);
}

void RunFolder::open(const RunConfig& config, const RunSources& sources) {
  if (std::filesystem::exists(state_file())) {
    read_message(state_file(), state_);
    write_file_atomically(config_file(), config.to_yaml());  // what does not change results may be new
    return;
  }
  std::filesystem::create_directories(path_);
  write_file_atomically(config_file(), config.to_yaml());
  state_.set_config_hash(config_hash(config));
  state_.set_source_hash(sources.teacher);
  for (const CorpusFile& file : sources.corpus) {
    proto::CorpusFile& known = *state_.add_corpus();
    known.set_path(file.path);
    known.set_bytes(file.bytes);
    known.set_sha256(file.sha256);
  }
  write_message(state_file(), state_);
}

std::filesystem::path RunFolder::move_aside() const {
  if (!std::filesystem::exists(path_)) return {};
  for (int number = 1;; ++number) {
    const std::filesystem::path aside = path_.string() + "." + std::to_string(number);
    if (std::filesystem::exists(aside)) continue;
    std::filesystem::rename(path_, aside);
    return aside;
  }
}

void RunFolder::finish(proto::StageResult result, const std::vector<std::filesystem::path>& files,
                       const std::string& plan_hash) {
  for (const std::filesystem::path& file : files) {
    (*result.mutable_files())[name_of(file)] = sha256_of_file(file);
    as_written_.insert(name_of(file));
  }
  *state_.add_finished() = std::move(result);
  state_.set_plan_hash(plan_hash);
  write_message(state_file(), state_);
}

const proto::StageResult* RunFolder::writer_of(const std::filesystem::path& file) const {
  for (const proto::StageResult& result : state_.finished())
    if (result.files().contains(name_of(file))) return &result;
  return nullptr;
}

std::string RunFolder::sha256_as_written(const std::filesystem::path& file) const {
  const proto::StageResult* writer = writer_of(file);
  TORCH_CHECK(writer != nullptr, "no finished stage wrote ", file.string());
  return writer->files().at(name_of(file));
}

void RunFolder::require_as_written(const std::filesystem::path& file) {
  const proto::StageResult* writer = writer_of(file);
  if (writer == nullptr || as_written_.contains(name_of(file))) return;
  if (const std::string found = sha256_of_file(file), written = sha256_as_written(file); found != written)
    throw BadInput(file.string(), "is not what " + writer->stage() + " of this run wrote: its SHA-256 is " + found +
                                      ", expected " + written);
  as_written_.insert(name_of(file));
}

}  // namespace flashmorph
