#pragma once

#include <chrono>
#include <condition_variable>
#include <exception>
#include <filesystem>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/config/run_config.h"
#include "distributed/communication/communicator.h"
#include "distributed/health/roll_call.h"

namespace flashmorph {

enum class Work { load, step, save, evaluate };  // each has its deadline, health.NAME

// Looks after one rank from a thread of its own. When the rank has been in a phase (below) for longer than its
// deadline, the watchdogs of all ranks write down where their ranks are; the first one prints one message that names
// the rank, what it was doing, and who is missing, and ends the job. It needs nothing of MPI: a rank may be dead, or
// stopped.
class Watchdog {
 public:
  // hosts: by rank. `end` ends this process, and with it the job, with the exit code it is given.
  Watchdog(const HealthSection& deadlines, Communicator& world, std::vector<std::string> hosts,
           std::function<void(int)> end);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // Where the ranks leave their answers from now on; until then a message tells of its own rank alone. Collective: rank
  // 0 makes the folder.
  void meet_in(const std::filesystem::path& folder);

  // This rank cannot go on and the others do not know. Does not return.
  [[noreturn]] void give_up(const std::exception& reason);

 private:
  friend class Phase;
  using Clock = std::chrono::steady_clock;

  struct Doing {
    Work work;
    std::string stage;
    int64_t step;
    Clock::time_point start;
  };

  void enter(Doing doing);
  void leave(bool unwinding);
  void watch();
  void stop_watching();
  void speak(const std::string& reason, int code);
  void wait_for_answers() const;
  std::string merged(const std::vector<std::optional<RankAnswer>>& answers) const;
  double deadline_of(Work work) const;
  std::optional<std::string> overdue() const;
  RankAnswer answer() const;

  HealthSection deadlines_;
  Communicator& world_;
  std::vector<std::string> hosts_;
  std::function<void(int)> end_;
  std::chrono::duration<double> between_looks_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Doing> doing_;        // the innermost last
  std::optional<Doing> failed_in_;  // where an exception is on its way from
  std::optional<RollCall> roll_call_;
  bool closing_ = false;
  std::thread thread_;
};

// The rank is in this phase while the object lives. Inside another phase that one's time begins anew afterwards.
class Phase {
 public:
  // step: from 1; 0: none.
  Phase(Watchdog& watchdog, Work work, std::string stage, int64_t step = 0);
  ~Phase() { watchdog_.leave(std::uncaught_exceptions() > exceptions_); }
  Phase(const Phase&) = delete;
  Phase& operator=(const Phase&) = delete;

 private:
  Watchdog& watchdog_;
  int exceptions_ = std::uncaught_exceptions();
};

}  // namespace flashmorph
