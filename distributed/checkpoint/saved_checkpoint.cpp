#include "distributed/checkpoint/saved_checkpoint.h"

#include <ATen/ATen.h>

#include "core/base/bad_input.h"
#include "core/base/sha256.h"
#include "distributed/checkpoint/messages.h"

namespace flashmorph {
namespace {

std::vector<int64_t> shape_of(const proto::TensorSlice& slice) { return {slice.shape().begin(), slice.shape().end()}; }

bool is_sound(const proto::TensorSlice& slice) {
  const Rectangle place = place_of(slice);
  return slice.rows() > 0 && slice.columns() > 0 && contains(matrix_of(shape_of(slice)), place);
}

}  // namespace

SavedCheckpoint::SavedCheckpoint(std::filesystem::path folder) : folder_(std::move(folder)) {
  const std::filesystem::path file = folder_ / "index.pb";
  read_message(file, index_);
  for (const proto::CheckpointShard& shard : index_.shards()) {
    if (std::filesystem::path(shard.file()).filename() != shard.file())
      throw BadInput(file.string(), "names the shard " + shard.file() + ", which is not in its folder");
    for (const proto::TensorSlice& slice : shard.slices()) sources_[slice.name()].push_back({&shard, &slice});
  }
  for (const auto& [name, sources] : sources_) check_cover(name, sources);
}

void SavedCheckpoint::check_cover(const std::string& name, const std::vector<Source>& sources) const {
  const std::vector<int64_t> shape = shape_of(*sources[0].slice);
  int64_t covered = 0;
  for (size_t i = 0; i < sources.size(); ++i) {
    const proto::TensorSlice& slice = *sources[i].slice;
    if (shape_of(slice) != shape || !is_sound(slice)) throw BadInput(where(name), "has a slice that does not fit it");
    for (size_t j = 0; j < i; ++j)
      if (intersection(place_of(slice), place_of(*sources[j].slice)).area() > 0)
        throw BadInput(where(name), "has slices that overlap");
    covered += place_of(slice).area();
  }
  if (covered != matrix_of(shape).area())
    throw BadInput(where(name), "has " + std::to_string(covered) + " of its " +
                                    std::to_string(matrix_of(shape).area()) + " elements");
}

void SavedCheckpoint::verify(const proto::CheckpointShard& shard) const {
  const std::filesystem::path file = folder_ / shard.file();
  std::error_code missing;
  const auto bytes = static_cast<int64_t>(std::filesystem::file_size(file, missing));
  if (missing) throw BadInput(file.string(), "cannot be read: " + missing.message());
  if (bytes != shard.bytes())
    throw BadInput(file.string(),
                   "is " + std::to_string(bytes) + " bytes long, expected " + std::to_string(shard.bytes()));
  if (sha256_of_file(file) != shard.sha256())
    throw BadInput(file.string(), "does not have its checksum: it was damaged");
}

void SavedCheckpoint::require(const Region& region) const {
  const auto found = sources_.find(region.name);
  if (found == sources_.end()) throw BadInput(where(region.name), "is missing");
  if (shape_of(*found->second[0].slice) != region.shape)
    throw BadInput(where(region.name), "has another shape than this run's");
}

at::Tensor SavedCheckpoint::read(const Region& region) const {
  require(region);
  at::Tensor whole;
  for (const Source& source : sources_.at(region.name)) {
    const Rectangle place = place_of(*source.slice), shared = intersection(place, region.place);
    if (shared.area() == 0) continue;
    const at::Tensor values = stored(source, region.values.scalar_type());
    if (shared == region.place) return part_of(values, place, shared);
    if (!whole.defined()) whole = at::empty({region.place.rows, region.place.columns}, values.options());
    part_of(whole, region.place, shared).copy_(part_of(values, place, shared));
  }
  return whole;
}

at::Tensor SavedCheckpoint::stored(const Source& source, at::ScalarType dtype) const {
  const proto::TensorSlice& slice = *source.slice;
  std::shared_ptr<const SafetensorsFile>& file = files_[source.shard->file()];
  if (!file) file = SafetensorsFile::open(folder_ / source.shard->file());
  const at::Tensor values = file->tensor(key_of(slice));
  if (values.sizes() != at::IntArrayRef({slice.rows(), slice.columns()}))
    throw BadInput(where(slice.name()), "is stored in another shape than its index says");
  if (values.scalar_type() != dtype)
    throw BadInput(where(slice.name()), std::string("is stored as ") + c10::toString(values.scalar_type()) +
                                            ", expected " + c10::toString(dtype));
  return values;
}

}  // namespace flashmorph
