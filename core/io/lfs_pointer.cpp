#include "core/io/lfs_pointer.h"

#include "core/base/bad_input.h"

namespace flashmorph {

void refuse_lfs_pointer(std::string_view content, const std::string& where) {
  if (content.starts_with("version https://git-lfs.github.com/spec/"))
    throw BadInput(where, "is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder");
}

}  // namespace flashmorph
