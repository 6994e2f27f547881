#include "core/data/input_text.h"

#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

constexpr size_t kBlock = 1 << 20;

}  // namespace

// Turns packed bytes into content, a block at a time.
class InputText::Unpacker {
 public:
  explicit Unpacker(std::string name) : name_(std::move(name)), block_(kBlock) {}
  virtual ~Unpacker() = default;

  // Unpacks from `packed`, and says in `used` how much of it; empty when all of it is.
  std::string_view next(std::string_view packed, uint64_t& used) {
    size_t made = 0;
    while (made == 0) {
      const size_t left = packed.size() - used;
      if (left == 0 && !inside_) return {};
      const size_t before = used;
      made = step(packed.substr(used), used);
      if (made == 0 && used == before) fail("ends in the middle");
    }
    return {block_.data(), made};
  }

 protected:
  virtual size_t step(std::string_view packed, uint64_t& used) = 0;  // how many bytes are in the block now
  [[noreturn]] void fail(const std::string& what) const {
    throw BadInput(name_, what + "; it is damaged or cut short");
  }

  std::string name_;
  std::vector<char> block_;
  bool inside_ = false;  // a member or frame has not ended
};

namespace {

class Gzip : public InputText::Unpacker {
 public:
  explicit Gzip(std::string name) : Unpacker(std::move(name)) {
    if (inflateInit2(&stream_, 15 + 16) != Z_OK) throw std::bad_alloc();
  }
  ~Gzip() override { inflateEnd(&stream_); }

 private:
  size_t step(std::string_view packed, uint64_t& used) override {
    const size_t given = std::min<size_t>(packed.size(), 1U << 30);
    stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data()));
    stream_.avail_in = static_cast<uInt>(given);
    stream_.next_out = reinterpret_cast<Bytef*>(block_.data());
    stream_.avail_out = static_cast<uInt>(block_.size());
    const int code = inflate(&stream_, Z_NO_FLUSH);
    if (code != Z_OK && code != Z_STREAM_END && code != Z_BUF_ERROR)
      fail(std::string("cannot be unpacked as gzip: ") + (stream_.msg != nullptr ? stream_.msg : "bad data"));
    used += given - stream_.avail_in;
    inside_ = code != Z_STREAM_END;
    if (!inside_) inflateReset(&stream_);  // another member may follow
    return block_.size() - stream_.avail_out;
  }
  z_stream stream_{};
};

class Zstd : public InputText::Unpacker {
 public:
  explicit Zstd(std::string name) : Unpacker(std::move(name)), stream_(ZSTD_createDStream(), &ZSTD_freeDStream) {}

 private:
  size_t step(std::string_view packed, uint64_t& used) override {
    ZSTD_inBuffer in{packed.data(), packed.size(), 0};
    ZSTD_outBuffer out{block_.data(), block_.size(), 0};
    const size_t code = ZSTD_decompressStream(stream_.get(), &out, &in);
    if (ZSTD_isError(code) != 0) fail(std::string("cannot be unpacked as zstd: ") + ZSTD_getErrorName(code));
    used += in.pos;
    inside_ = code != 0;
    return out.pos;
  }
  std::unique_ptr<ZSTD_DStream, decltype(&ZSTD_freeDStream)> stream_;
};

std::unique_ptr<InputText::Unpacker> unpacker_of(std::string_view content, const std::string& name) {
  if (content.starts_with("\x1F\x8B")) return std::make_unique<Gzip>(name);
  if (content.starts_with("\x28\xB5\x2F\xFD")) return std::make_unique<Zstd>(name);
  for (const auto& [start, packing] : {std::pair("BZh", "bzip2"),
                                       {"\xFD"
                                        "7zXZ",
                                        "xz"},
                                       {"PK\x03\x04", "a zip archive"},
                                       {"PAR1", "Parquet"}})
    if (content.starts_with(start))
      throw BadInput(name, std::string("is ") + packing + ", expected text, gzip or zstd: unpack it first");
  if (content.starts_with("version https://git-lfs.github.com/spec/"))
    throw BadInput(name, "is a Git LFS pointer, not the file: git lfs pull");
  return nullptr;
}

}  // namespace

InputText::InputText(const std::filesystem::path& path)
    : file_(path), unpacker_(unpacker_of(file_.content(), path.string())) {}

InputText::~InputText() = default;

std::string_view InputText::next() {
  if (unpacker_ != nullptr) return unpacker_->next(file_.content(), read_);
  const std::string_view block = file_.content().substr(read_, kBlock);
  read_ += block.size();
  return block;
}

void InputText::skip(uint64_t bytes) {
  if (unpacker_ != nullptr) throw std::logic_error("packed content is read, not skipped");
  read_ = std::min(read_ + bytes, file_bytes());
}

}  // namespace flashmorph
