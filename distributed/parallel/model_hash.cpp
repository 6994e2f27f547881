#include "distributed/parallel/model_hash.h"

#include <numeric>
#include <thread>

#include "core/base/on_threads.h"
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
  std::vector<std::filesystem::path> own;
  for (auto i = static_cast<size_t>(rank); i < files.size(); i += static_cast<size_t>(ranks)) own.push_back(files[i]);
  std::vector<std::string> hashes(own.size());  // a hash takes longer than to read what it is of
  on_threads(own.size(), std::thread::hardware_concurrency(),
             [&](size_t i) { hashes[i] = sha256_of_file(own[i], between_reads); });
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
