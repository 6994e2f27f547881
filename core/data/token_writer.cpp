#include "core/data/token_writer.h"

#include <limits>

#include "core/base/bad_input.h"
#include "core/data/token_files.h"
#include "core/io/atomic_file.h"
#include "core/io/mapped_file.h"
#include "core/io/megatron_index.h"

namespace flashmorph {
namespace {

constexpr size_t kBlock = 1 << 20;  // bytes given to a file at once

std::filesystem::path part_of_file(const std::filesystem::path& file) { return hidden_sibling(file, ".part"); }

std::filesystem::path lengths_of(const std::string& prefix) { return hidden_sibling(prefix, ".lengths.part"); }

}  // namespace

TokenWriter::TokenWriter(const std::string& prefix, int64_t vocabulary, const Written& written)
    : prefix_(prefix),
      token_bytes_(vocabulary < 65500 ? 2 : 4),  // as Megatron's own writer chooses
      written_(written),
      bin_(part_of_file(TokenFiles::of(prefix).bin), written.tokens * static_cast<uint64_t>(token_bytes_)),
      lengths_(lengths_of(prefix), written.documents * sizeof(int32_t)) {}

void TokenWriter::append(std::span<const int32_t> tokens) {
  for (const int32_t token : tokens)  // little-endian: the first bytes of an id that fits are the narrower one
    bin_rest_.append(reinterpret_cast<const char*>(&token), static_cast<size_t>(token_bytes_));
  written_.tokens += tokens.size();
  written_.tokens_of_document += tokens.size();
  if (bin_rest_.size() < kBlock) return;
  bin_.write(bin_rest_);
  bin_rest_.clear();
}

void TokenWriter::end_document(const std::filesystem::path& input) {
  if (written_.tokens_of_document == 0) return;
  if (written_.tokens_of_document > static_cast<uint64_t>(std::numeric_limits<int32_t>::max()))
    throw BadInput(input.string(), "holds a document of " + std::to_string(written_.tokens_of_document) +
                                       " tokens, the format has room for 2147483647");
  const auto length = static_cast<int32_t>(written_.tokens_of_document);
  lengths_rest_.append(reinterpret_cast<const char*>(&length), sizeof(length));
  written_.tokens_of_document = 0;
  ++written_.documents;
}

TokenWriter::Written TokenWriter::sync() {
  bin_.write(bin_rest_);
  lengths_.write(lengths_rest_);
  bin_rest_.clear();
  lengths_rest_.clear();
  bin_.sync();
  lengths_.sync();
  return written_;
}

void TokenWriter::write_rest(const std::string& json) {
  sync();
  const TokenFiles files = TokenFiles::of(prefix_);
  const MappedFile lengths(lengths_of(prefix_));
  const OutputFile idx(part_of_file(files.idx)), origin(part_of_file(files.json));
  write_megatron_index(lengths.content(), token_bytes_, [&](std::string_view piece) { idx.write(piece); });
  origin.write(json);
  idx.sync();
  origin.sync();
}

void TokenWriter::discard(const std::string& prefix) {
  const TokenFiles files = TokenFiles::of(prefix);
  for (const auto& file : {files.bin, files.idx, files.json}) std::filesystem::remove(part_of_file(file));
  std::filesystem::remove(lengths_of(prefix));
}

void TokenWriter::move_into_place(const std::string& prefix) {
  const TokenFiles files = TokenFiles::of(prefix);
  for (const auto& file : {files.bin, files.idx, files.json})  // the .json last: with it they are whole
    if (std::filesystem::exists(part_of_file(file))) std::filesystem::rename(part_of_file(file), file);
  std::filesystem::remove(lengths_of(prefix));
  sync_folder_of(files.json);
}

}  // namespace flashmorph
