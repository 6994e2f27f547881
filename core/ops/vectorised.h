#pragma once

// A function compiled three times, of which the loader takes the one for the processor's widest vectors; what it calls
// in its loops is FLASHMORPH_INLINED, or is compiled for none of them. Results differ in rounding from processor to
// processor, as those of LibTorch's own kernels do. Thread sanitizer's runtime is not there yet when the loader
// chooses.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__)
#define FLASHMORPH_VECTORISED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FLASHMORPH_VECTORISED
#endif
#define FLASHMORPH_INLINED __attribute__((always_inline)) inline
