#include "distributed/run/run_lock.h"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <sstream>
#include <system_error>

#include "core/base/bad_input.h"
#include "core/base/host_name.h"
#include "core/io/output_file.h"

namespace flashmorph {
namespace {

LockHolder holder_in(const std::string& words) {
  LockHolder holder;
  std::istringstream(words) >> holder.host >> holder.pid >> holder.since >> holder.job;
  return holder;
}

// The lock file, locked; its descriptor is of the file that has the name, not of one that was removed meanwhile. -1
// when another process has locked it.
int locked(const std::filesystem::path& file) {
  while (true) {
    const int descriptor = open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (descriptor < 0) throw_errno(file, "open");
    if (flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) throw_errno(file, "flock", descriptor);
      close(descriptor);
      return -1;
    }
    struct stat mine {
    }, named{};
    if (fstat(descriptor, &mine) == 0 && stat(file.c_str(), &named) == 0 && mine.st_ino == named.st_ino)
      return descriptor;
    close(descriptor);
  }
}

std::string content_of(const std::filesystem::path& file) {
  std::stringstream text;
  text << std::ifstream(file).rdbuf();
  return text.str();
}

}  // namespace

LockHolder LockHolder::this_process() {
  const char* job = std::getenv("SLURM_JOB_ID");
  return {host_name(), getpid(), fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr))),
          job == nullptr ? "-" : job};
}

std::string LockHolder::text() const {
  return "process " + std::to_string(pid) + " on host " + host + (job == "-" ? "" : " (Slurm job " + job + ")") +
         " since " + since;
}

RunLock::RunLock(const std::filesystem::path& folder, const LockHolder& self) : file_(folder / "lock") {
  std::filesystem::create_directories(folder);
  descriptor_ = locked(file_);
  const std::string words = content_of(file_);
  const LockHolder other = holder_in(words);
  if (descriptor_ < 0)
    throw BadInput(folder.string(), "is in use by " + other.text() + "; two runs cannot share a folder");
  if (!words.empty()) {
    const bool may_live = other.host != self.host && (other.job == "-" || other.job != self.job);
    if (may_live) {
      close(descriptor_);
      throw BadInput(folder.string(), "was left locked by " + other.text() +
                                          ", which cannot be seen from here; when it is gone, remove " +
                                          file_.string());
    }
    taken_over_ = "the lock of " + other.text() + " was left behind: that process is gone; taken over";
  }
  const std::string mine = self.host + " " + std::to_string(self.pid) + " " + self.since + " " + self.job + "\n";
  if (ftruncate(descriptor_, 0) != 0 ||
      pwrite(descriptor_, mine.data(), mine.size(), 0) != static_cast<ssize_t>(mine.size()))
    throw_errno(file_, "write", descriptor_);
}

RunLock::~RunLock() {
  std::error_code gone;
  std::filesystem::remove(file_, gone);
  close(descriptor_);
}

}  // namespace flashmorph
