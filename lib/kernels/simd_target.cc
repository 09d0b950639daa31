#include "lib/kernels/simd_target.h"

// As the kernels have it.
#define HWY_DISABLED_TARGETS (HWY_SSE4 | HWY_SSSE3)
#include "hwy/highway.h"

namespace gradq::kernels {

const char* SimdTargetName() {
  // SupportedTargets also lists what only the processor has; the lowest set bit of both is what
  // dynamic dispatch calls.
  const int64_t targets = hwy::SupportedTargets() & HWY_TARGETS;
  return hwy::TargetName(targets & -targets);
}

}  // namespace gradq::kernels
