#include "core/base/sha256.h"

#include <openssl/evp.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>
#include <vector>

#include "core/base/bad_input.h"

namespace flashmorph {
namespace {

class Digest {
 public:
  Digest() : context_(EVP_MD_CTX_new(), &EVP_MD_CTX_free) { EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr); }

  void add(const void* data, size_t size) { EVP_DigestUpdate(context_.get(), data, size); }

  std::string hex() {
    unsigned char bytes[EVP_MAX_MD_SIZE];
    unsigned int size = 0;
    EVP_DigestFinal_ex(context_.get(), bytes, &size);
    static constexpr char kDigits[] = "0123456789abcdef";
    std::string text;
    for (unsigned int i = 0; i < size; ++i) {
      text += kDigits[bytes[i] >> 4];
      text += kDigits[bytes[i] & 15];
    }
    return text;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

}  // namespace

std::string sha256_of_bytes(const void* data, size_t size) {
  Digest digest;
  digest.add(data, size);
  return digest.hex();
}

std::string sha256_of_pieces(const std::vector<std::string_view>& pieces, const std::function<void()>& before_each) {
  Digest digest;
  for (const std::string_view piece : pieces) {
    before_each();
    digest.add(piece.data(), piece.size());
  }
  return digest.hex();
}

std::string sha256_of_file(const std::filesystem::path& file, const std::function<void()>& before_each) {
  std::ifstream in(file, std::ios::binary);
  if (!in) throw BadInput(file.string(), std::string("cannot be read: ") + std::strerror(errno));
  Digest digest;
  std::vector<char> block(1 << 20);
  while (in.read(block.data(), static_cast<std::streamsize>(block.size())) || in.gcount() > 0) {
    before_each();
    digest.add(block.data(), static_cast<size_t>(in.gcount()));
  }
  return digest.hex();
}

}  // namespace flashmorph
