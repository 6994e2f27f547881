#pragma once

#include <string>
#include <string_view>

namespace flashmorph {

// BadInput naming `where` when a file's content is what Git leaves of a large file that was not fetched
// (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md).
void refuse_lfs_pointer(std::string_view content, const std::string& where);

}  // namespace flashmorph
