#include "distributed/parallel/model_hash.h"

#include <algorithm>
#include <atomic>
#include <future>
#include <numeric>
#include <thread>

#include "core/base/sha256.h"
#include "core/io/checksums.h"
#include "distributed/parallel/on_all_ranks.h"

namespace flashmorph {
namespace {

constexpr size_t kDigits = 64;

}  // namespace

std::string hashes_of_share(const std::filesystem::path& folder, const ModelFiles& model, int rank, int ranks,
                            const std::function<void()>& between_reads) {
  const std::vector<std::filesystem::path> files = deciding_files(folder, model);
  std::vector<std::string> hashes(files.size());
  std::atomic<size_t> next = static_cast<size_t>(rank);
  const auto work = [&] {
    for (size_t i; (i = next.fetch_add(static_cast<size_t>(ranks))) < files.size();)
      hashes[i] = sha256_of_file(files[i], between_reads);
  };
  const size_t cores = std::max(1U, std::thread::hardware_concurrency());
  std::vector<std::future<void>> threads;  // a hash takes longer than to read what it is of
  for (size_t i = next; i < files.size() && threads.size() < cores; i += static_cast<size_t>(ranks))
    threads.push_back(std::async(std::launch::async, work));
  for (std::future<void>& thread : threads) thread.get();
  return std::accumulate(hashes.begin(), hashes.end(), std::string());
}

std::string hash_of_shares(const std::string& share, Communicator& world) {
  const std::vector<std::string> by_rank = gather_text(share, world);
  std::vector<std::string> sha256;
  for (size_t turn = 0; turn * kDigits < by_rank[0].size(); ++turn)
    for (const std::string& theirs : by_rank)
      if (turn * kDigits < theirs.size()) sha256.push_back(theirs.substr(turn * kDigits, kDigits));
  return hash_of_model(sha256);
}

std::string hash_of_model(const std::filesystem::path& folder, const ModelFiles& model, Communicator& world) {
  std::string share;
  on_all_ranks(world, [&] { share = hashes_of_share(folder, model, world.rank(), world.size()); });
  return hash_of_shares(share, world);
}

}  // namespace flashmorph
