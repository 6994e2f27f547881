#pragma once

#include <functional>
#include <memory>

#include "distributed/communication/communicator.h"
#include "distributed/forecast/trace.h"
#include "distributed/parallel/mesh.h"

namespace flashmorph {

// The ranks of a mesh as `rank` meets them, with nobody there: what is sent is counted and let go, what is received has
// no values. A Mesh made of it has all its groups; `meet` is told of each meeting in a group of more than one rank.
std::unique_ptr<Communicator> rehearsal_world(const MeshShape& shape, int64_t rank,
                                              std::function<void(const Meeting&)> meet);

}  // namespace flashmorph
