#include "core/data/corpus_files.h"

#include <algorithm>

#include "core/base/sha256.h"
#include "core/data/sources.h"
#include "core/data/token_files.h"
#include "core/io/mapped_file.h"
#include "core/tokenizer/utf8.h"

namespace flashmorph {

std::vector<std::string_view> samples_of(std::string_view content, size_t piece, size_t most) {
  const size_t pieces = (content.size() + piece - 1) / piece;
  std::vector<std::string_view> samples;
  for (size_t i = 0; i < std::min(pieces, most); ++i)
    samples.push_back(content.substr(pieces <= most ? i * piece : (content.size() - piece) * i / (most - 1), piece));
  return samples;
}

CorpusFile CorpusFile::of(const std::filesystem::path& path, const std::function<void()>& between_samples) {
  const MappedFile file(path);
  const std::string_view content = file.content();
  return {valid_utf8(path.string()), static_cast<int64_t>(content.size()),
          sha256_of_pieces(samples_of(content), between_samples)};
}

std::vector<CorpusFile> corpus_files(const DataSection& data, const std::function<void()>& between_samples) {
  const auto of = [&](const std::filesystem::path& path) { return CorpusFile::of(path, between_samples); };
  std::vector<CorpusFile> files;
  for (const Source& source : sources_of(data)) {
    for (const Source::File& file : source.files) files.push_back(of(file.path));
    if (!source.is_tokenized()) continue;
    files.push_back(of(TokenFiles::of(source.path).bin));
    files.push_back(of(TokenFiles::of(source.path).idx));
  }
  return files;
}

}  // namespace flashmorph
