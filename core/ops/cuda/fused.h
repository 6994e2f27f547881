#pragma once

namespace flashmorph::cuda {

// Whether operators take their fused kernels where there is one for the shape and dtype, or always the form made of
// batched matrix products, with which the fused ones are compared: torch.ops.flashmorph.use_fused_kernels.
bool use_fused_kernels();

}  // namespace flashmorph::cuda
