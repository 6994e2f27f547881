#include "core/shard/pipeline_peers.h"

namespace flashmorph {

PipelinePeers& PipelinePeers::none() {
  static PipelinePeers alone;  // holds nothing, so everybody may share it
  return alone;
}

}  // namespace flashmorph
