#include "distributed/health/watchdog.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <regex>

#include "core/base/clock.h"
#include "core/base/endings.h"

namespace flashmorph {
namespace {

constexpr double kLongestLook = 1.0, kShortestLook = 0.02;  // seconds between two looks
constexpr int kLooksForAnswers = 30;                        // what the other ranks have to answer in
constexpr double kSpeakersTime = 60.0;  // seconds until a rank no longer waits to be ended by another

const char* name_of(Work work) {
  switch (work) {
    case Work::load:
      return "load";
    case Work::step:
      return "step";
    case Work::save:
      return "save";
    default:
      return "evaluate";
  }
}

// The first to call the roll has spoken, and says so with the exit code.
std::filesystem::path told_in(const RollCall& roll_call) { return roll_call.folder() / "told"; }

// What the others wait for, or `otherwise` when it does not come: they must not end the job before its message is out.
int code_told(const RollCall& roll_call, std::chrono::duration<double> between_looks, int otherwise) {
  const Stopwatch waited;
  for (int code = 0; waited.seconds() < kSpeakersTime; std::this_thread::sleep_for(between_looks))
    if (std::ifstream(told_in(roll_call)) >> code) return code;
  return otherwise;
}

// Of a card that is full LibTorch lists every process on it, and has advice on fragmentation: here what would need less
// takes their place.
std::string reason_of(const std::exception& failure) {
  const std::string whole = failure.what();
  if (dynamic_cast<const c10::OutOfMemoryError*>(&failure) == nullptr) return whole;
  static const std::regex kOthers(R"( Process \d+ has [\d.]+ \w+ memory in use\.)");
  return std::regex_replace(whole.substr(0, whole.find(" If reserved")), kOthers, "") +
         " Fewer micro_batch_tokens, recompute: full, or more tensor or pipeline ranks need less";
}

}  // namespace

Watchdog::Watchdog(const HealthSection& deadlines, Communicator& world, std::vector<std::string> hosts,
                   std::function<void(int)> end)
    : deadlines_(deadlines), world_(world), hosts_(std::move(hosts)), end_(std::move(end)) {
  const double shortest = std::min({deadlines.load, deadlines.step, deadlines.save, deadlines.evaluate});
  between_looks_ = std::chrono::duration<double>(std::clamp(shortest / 10.0, kShortestLook, kLongestLook));
  thread_ = std::thread([this] { watch(); });
}

Watchdog::~Watchdog() { stop_watching(); }

void Watchdog::stop_watching() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Watchdog::meet_in(const std::filesystem::path& folder) {
  RollCall roll_call(folder, hosts_);
  if (world_.rank() == 0) roll_call.clear();
  world_.barrier();
  const std::lock_guard lock(mutex_);
  roll_call_ = roll_call;
}

void Watchdog::give_up(const std::exception& reason) {
  stop_watching();  // this thread speaks
  speak(reason_of(reason), dynamic_cast<const NotDoneInTime*>(&reason) != nullptr ? kHung : kFailed);
  std::abort();  // not reached
}

void Watchdog::enter(Doing doing) {
  const std::lock_guard lock(mutex_);
  failed_in_.reset();
  if (doing.step > 0) world_.log().at_step(doing.step);
  doing_.push_back(std::move(doing));
}

void Watchdog::leave(bool unwinding) {
  const std::lock_guard lock(mutex_);
  if (unwinding && !failed_in_) failed_in_ = doing_.back();
  doing_.pop_back();
  if (!doing_.empty()) doing_.back().start = Clock::now();
}

void Watchdog::watch() {
  std::unique_lock lock(mutex_);
  while (!closing_) {
    if (const std::optional<std::string> reason = overdue()) {
      lock.unlock();
      return speak(*reason, kHung);
    }
    if (roll_call_ && roll_call_->was_called()) {
      try {
        roll_call_->answer(answer());
      } catch (const std::exception&) {  // a full disk: no answer
      }
      lock.unlock();
      return end_(code_told(*roll_call_, between_looks_, kHung));
    }
    changed_.wait_for(lock, between_looks_);
  }
}

// The first of all ranks gets to the end of this; the others have answered and are ended by it.
void Watchdog::speak(const std::string& reason, int code) {
  RankAnswer mine;
  {
    const std::lock_guard lock(mutex_);
    mine = answer();
  }
  std::string message =
      fmt::format("flashmorph-dist: rank {} on {}: {}: {}\n", mine.rank, mine.host, mine.phase, reason);
  if (code == kFailed) mine.phase += ", gave up (" + reason + "),";
  if (roll_call_) {
    const bool is_first = roll_call_->call();
    try {
      roll_call_->answer(mine);
      if (!is_first) return end_(code_told(*roll_call_, between_looks_, code));
      wait_for_answers();
      message += merged(roll_call_->answers());
    } catch (const std::exception& unwritable) {
      message += fmt::format("  {}\n", unwritable.what());
    }
  } else {
    std::this_thread::sleep_for(between_looks_ * mine.rank);  // a lower rank that is stuck as well speaks first
  }
  message += fmt::format(
      "  the job ends with exit code {}; what is on disk is whole, and the same command goes on from there\n", code);
  std::fputs(message.c_str(), stderr);
  std::fflush(stderr);
  if (roll_call_) std::ofstream(told_in(*roll_call_)) << code;
  end_(code);
}

void Watchdog::wait_for_answers() const {
  for (int look = 0; look < kLooksForAnswers && !roll_call_->all_answered(); ++look)
    std::this_thread::sleep_for(between_looks_);
}

std::string Watchdog::merged(const std::vector<std::optional<RankAnswer>>& answers) const {
  std::string text = who_is_missing(answers, hosts_);
  if (const std::string divergence = first_divergence(answers); !divergence.empty())
    text += "  first divergence: " + divergence + "\n";
  return text +
         fmt::format("  every rank's last {} calls: {}/rank-N.json\n", CallLog::kKept, roll_call_->folder().string());
}

double Watchdog::deadline_of(Work work) const {
  switch (work) {
    case Work::load:
      return deadlines_.load;
    case Work::step:
      return deadlines_.step;
    case Work::save:
      return deadlines_.save;
    default:
      return deadlines_.evaluate;
  }
}

std::optional<std::string> Watchdog::overdue() const {
  if (doing_.empty()) return std::nullopt;
  const Doing& doing = doing_.back();
  const double seconds = seconds_since(doing.start), deadline = deadline_of(doing.work);
  if (seconds <= deadline) return std::nullopt;
  return fmt::format("not done after {:.1f} s, of {:g} s that health.{} allows", seconds, deadline,
                     name_of(doing.work));
}

RankAnswer Watchdog::answer() const {
  RankAnswer answer{world_.rank(), hosts_.at(world_.rank()), "start", 0.0, {}, {}};
  add_calls(world_.log(), answer);
  if (doing_.empty() && !failed_in_) return answer;
  const Doing& doing = failed_in_ ? *failed_in_ : doing_.back();
  answer.phase = doing.stage;
  if (doing.work != Work::step && doing.stage != name_of(doing.work))
    answer.phase += fmt::format(", {}", name_of(doing.work));
  if (doing.step > 0) answer.phase += fmt::format(", step {}", doing.step);
  answer.seconds = seconds_since(doing.start);
  return answer;
}

Phase::Phase(Watchdog& watchdog, Work work, std::string stage, int64_t step) : watchdog_(watchdog) {
  watchdog_.enter({work, std::move(stage), step, Watchdog::Clock::now()});
}

}  // namespace flashmorph
