#include "core/shard/neighbours.h"

namespace flashmorph {

Neighbours& Neighbours::none() {
  static Neighbours alone;  // holds nothing, so everybody may share it
  return alone;
}

}  // namespace flashmorph
