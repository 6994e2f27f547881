#pragma once

#include <filesystem>
#include <string>

namespace flashmorph {

// A process as it is written into a lock: "HOST PID SINCE JOB".
struct LockHolder {
  std::string host;
  long pid = 0;
  std::string since;      // 2026-11-25T01:20:00Z
  std::string job = "-";  // of Slurm

  static LockHolder this_process();
  std::string text() const;
};

// A run folder is one process's while this lives: RUN/lock says whose. On one host the kernel's lock on that file
// (flock) is the truth, which ends with its process. Not every file system shows it to other hosts: what another host
// has left counts until it is removed, unless it was an earlier start of the same Slurm job.
class RunLock {
 public:
  // Creates the folder where needed. BadInput naming host and process when another holds it.
  explicit RunLock(const std::filesystem::path& folder, const LockHolder& self = LockHolder::this_process());
  ~RunLock();  // removes the file
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

  // Why a lock that was found did not count, in words; empty when none was found.
  const std::string& taken_over() const { return taken_over_; }
  void folder_moved(const std::filesystem::path& folder) { file_ = folder / "lock"; }

 private:
  std::filesystem::path file_;
  int descriptor_ = -1;
  std::string taken_over_;
};

}  // namespace flashmorph
