#pragma once

namespace flashmorph {

// Makes the program's steps run on tensors of the meta device, which have shapes and no values. LibTorch describes most
// operators for it; this adds, once in a process, those that a step needs beyond: each gives its results' shapes and
// allocates what the operator itself allocates. A value that the host reads is 1. Attention is the flash kernel's.
void allow_steps_without_values();

}  // namespace flashmorph
