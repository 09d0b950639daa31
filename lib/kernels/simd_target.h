#pragma once

// Which instruction set the kernels of this folder dispatch to: part of the numerics class. Kernels
// on Highway include this before anything of hwy/.

// Masked loads of Highway 1.0 read whole aligned vectors below AVX2. There the plain loops of the
// scalar target run.
#define HWY_DISABLED_TARGETS (HWY_SSE4 | HWY_SSSE3)

namespace gradq::kernels {

// Highway's name of the best target this processor and build have: "AVX3", "AVX2", "SCALAR". Static
// storage.
const char* SimdTargetName();

}  // namespace gradq::kernels
