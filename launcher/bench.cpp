#include <ATen/ATen.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <memory>
#include <set>

#include "core/base/bad_input.h"
#include "core/base/listed.h"
#include "core/eval/pace.h"
#include "core/mixer/linear_branch.h"
#include "distributed/checkpoint/messages.h"
#include "launcher/commands.h"
#include "launcher/lengths.h"
#include "launcher/ranked_models.h"
#include "launcher/terminal.h"

namespace flashmorph {
namespace {

struct BenchOptions {
  std::vector<std::string> folders;
  std::vector<std::string> hybrids;  // KIND:K
  std::string lengths;
  int64_t rows = 1, tokens = 64;
  std::string out;
  ModelPlace place;

  std::string words() const {  // what must be the same on every rank
    return fmt::format(
        "bench {} --hybrid {} --lengths {} --rows {} --tokens {} --device {} --dtype {} --tensor {} --pipeline {}",
        listed(folders, " "), listed(hybrids, " "), lengths, rows, tokens, place.device.kind, place.device.dtype,
        place.parallel.tensor, place.parallel.pipeline);
  }
};

// "lightning:7": full attention in 7 layers, that mixer in the others.
struct UntrainedHybrid {
  MixerSection mixer;
  int64_t full_layers = 0;

  static UntrainedHybrid of(const std::string& text) {
    UntrainedHybrid hybrid;
    const size_t colon = text.find(':');
    hybrid.mixer.kind = text.substr(0, colon);
    const char *first = text.data() + std::min(colon, text.size() - 1) + 1, *past = text.data() + text.size();
    const auto [end, error] = std::from_chars(first, past, hybrid.full_layers);
    if (colon == std::string::npos || error != std::errc() || end != past || hybrid.full_layers < 0)
      throw BadInput("--hybrid", fmt::format("is '{}', expected a mixer and the layers that keep full attention, for "
                                             "example lightning:7",
                                             text));
    check_mixer(hybrid.mixer);
    return hybrid;
  }
};

proto::PaceAtLength message_of(const std::string& folder, const Pace& pace, Communicator& replica) {
  at::Tensor bytes = at::tensor({pace.kv_bytes, pace.state_bytes}, at::kLong);
  replica.all_reduce(bytes, Reduction::sum);
  proto::PaceAtLength message;
  message.set_name(folder);
  message.set_length(pace.length);
  message.set_rows(pace.rows);
  message.set_first_token_seconds(pace.prefill_seconds);
  message.set_prefill_tokens_per_second(pace.prefill_tokens_per_second());
  message.set_decode_tokens_per_second(pace.decode_tokens_per_second());
  message.set_kv_bytes(bytes[0].item<int64_t>());
  message.set_state_bytes(bytes[1].item<int64_t>());
  return message;
}

// The model's pace at each length, until one does not fit the card. Where several ranks hold the model, running out of
// memory on one of them ends the job.
void bench(RankedModel& model, const std::string& folder, const std::vector<int64_t>& lengths,
           const BenchOptions& options, const std::function<void(const proto::PaceAtLength&)>& tell) {
  for (const int64_t length : lengths) {
    try {
      const Pace pace = pace_of(model.model(), model.routes(), length, options.rows, options.tokens);
      tell(message_of(folder, pace, model.mesh().replica()));
    } catch (const c10::OutOfMemoryError&) {
      if (model.mesh().replica().size() > 1) throw;
      fmt::print("{}: {} tokens do not fit\n", folder, length);
      return;
    }
  }
}

// One row a length and model; the gain is over the first model, by the same time.
TextTable pace_table(const proto::Bench& bench) {
  TextTable table(1, {"model", "tokens", "rows", "first token", "prefill tok/s", "gain", "decode tok/s", "gain",
                      "KV cache", "states"});
  std::set<int64_t> lengths;
  for (const proto::PaceAtLength& pace : bench.paces()) lengths.insert(pace.length());
  for (const int64_t length : lengths) {
    const proto::PaceAtLength* first = nullptr;
    for (const proto::PaceAtLength& pace : bench.paces()) {
      if (pace.length() != length) continue;
      if (first == nullptr) first = &pace;
      table.push_back({pace.name(), std::to_string(length), std::to_string(pace.rows()),
                       fmt::format("{:.4f} s", pace.first_token_seconds()),
                       fmt::format("{:.0f}", pace.prefill_tokens_per_second()),
                       fmt::format("{:.2f}x", pace.prefill_tokens_per_second() / first->prefill_tokens_per_second()),
                       fmt::format("{:.1f}", pace.decode_tokens_per_second()),
                       fmt::format("{:.2f}x", pace.decode_tokens_per_second() / first->decode_tokens_per_second()),
                       short_bytes(pace.kv_bytes()), short_bytes(pace.state_bytes())});
    }
  }
  return table;
}

int bench_models(BenchOptions options, Communicator& host) {
  options.place.settle();
  CommandRanks ranks(options.place, options.words(), host);
  Communicator& world = ranks.world();
  const bool leads = world.rank() == 0;

  const std::vector<int64_t> lengths = lengths_of(options.lengths, {1024, 4096, 16384, 65536});
  proto::Bench all;
  all.set_device(ranks.description());
  all.set_dtype(options.place.device.dtype);
  all.set_ranks(world.size());
  if (leads) fmt::print("{}; {}\n", all.device(), all.dtype());
  const auto tell = [&](const proto::PaceAtLength& pace) {
    *all.add_paces() = pace;
    if (!leads) return;
    fmt::print("{}: {} tokens, first token after {:.4f} s, {:.1f} tokens/s\n", pace.name(), pace.length(),
               pace.first_token_seconds(), pace.decode_tokens_per_second());
    std::fflush(stdout);
    if (!options.out.empty()) write_message(options.out, all);
  };
  std::vector<UntrainedHybrid> hybrids;
  for (const std::string& text : options.hybrids) hybrids.push_back(UntrainedHybrid::of(text));
  for (const std::string& folder : options.folders) {
    RankedModel model(folder, options.place, ranks.device(), std::ranges::max(lengths), world);
    bench(model, folder, lengths, options, tell);
    for (size_t h = 0; h < hybrids.size(); ++h) {
      model.become_hybrid(hybrids[h].mixer, hybrids[h].full_layers);
      bench(model, fmt::format("{} as {}", folder, options.hybrids[h]), lengths, options, tell);
    }
  }
  if (leads) fmt::print("\n{}", aligned(pace_table(all)));
  return 0;
}

}  // namespace

RanksWork bench_command(CLI::App& app) {
  auto options = std::make_shared<BenchOptions>();
  app.add_option("folder", options->folders,
                 "models: checkpoints of known families, exports of this program; gains "
                 "are over the first")
      ->required();
  app.add_option("--lengths", options->lengths,
                 "tokens of a prompt, separated by commas, beyond the positions too, as far as they fit (default: "
                 "1024,4096,16384,65536)")
      ->type_name("TOKENS");
  app.add_option(
         "--hybrid", options->hybrids,
         "each checkpoint also as a hybrid with untrained branches, e.g. lightning:7: full attention in 7 layers")
      ->type_name("MIXER:LAYERS")
      ->expected(1)
      ->take_all();
  app.add_option("--rows", options->rows, "sequences at once (default: 1)")->check(CLI::PositiveNumber);
  app.add_option("--tokens", options->tokens, "written behind each prompt (default: 64)")->check(CLI::Range(2, 65536));
  app.add_option("--out", options->out, "the numbers as JSON, written as they come")->type_name("FILE.json");
  options->place.add_options(app);
  return [options](Communicator& world) { return bench_models(*options, world); };
}

}  // namespace flashmorph
