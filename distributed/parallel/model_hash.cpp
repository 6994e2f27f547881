#include "distributed/parallel/model_hash.h"

#include "core/base/sha256.h"
#include "core/io/checksums.h"
#include "distributed/parallel/on_all_ranks.h"

namespace flashmorph {

std::string hash_of_model(const std::filesystem::path& folder, const ModelFiles& model, Communicator& world,
                          const std::function<void()>& between_reads) {
  const std::vector<std::filesystem::path> files = deciding_files(folder, model);
  const auto ranks = static_cast<size_t>(world.size());
  std::string mine;
  on_all_ranks(world, [&] {
    for (auto i = static_cast<size_t>(world.rank()); i < files.size(); i += ranks)
      mine += sha256_of_file(files[i], between_reads);
  });
  const std::vector<std::string> by_rank = gather_text(mine, world);
  constexpr size_t kDigits = 64;
  std::vector<std::string> sha256;
  for (size_t i = 0; i < files.size(); ++i) sha256.push_back(by_rank[i % ranks].substr(i / ranks * kDigits, kDigits));
  return hash_of_model(sha256);
}

}  // namespace flashmorph
