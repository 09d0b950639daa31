// A stand-in for libcuda.so.1 of CUDA 12.2, older than the runtime that this build links: as much
// of a driver as the runtime asks before it refuses. Linked by old_driver_test only, which has it
// loaded under that name before the runtime looks.

#include <cstring>

namespace {

constexpr int kVersion = 12020;
constexpr int kUnknown = 999;  // CUDA_ERROR_UNKNOWN

int Init(unsigned) { return 0; }
int DriverGetVersion(int* version) {
  *version = kVersion;
  return 0;
}
int Fail() { return kUnknown; }

}  // namespace

// cuGetProcAddress: the one symbol that the runtime takes from the library.
extern "C" int cuGetProcAddress_v2(const char* symbol, void** function, int /*version*/,
                                   unsigned long long /*flags*/, int* status) {
  if (status != nullptr) *status = 0;
  if (std::strcmp(symbol, "cuInit") == 0) {
    *function = reinterpret_cast<void*>(&Init);
  } else if (std::strcmp(symbol, "cuDriverGetVersion") == 0) {
    *function = reinterpret_cast<void*>(&DriverGetVersion);
  } else if (std::strcmp(symbol, "cuGetProcAddress") == 0) {
    *function = reinterpret_cast<void*>(&cuGetProcAddress_v2);
  } else {
    *function = reinterpret_cast<void*>(&Fail);
  }
  return 0;
}
