#include "lib/kernels/cuda/cuda_status.cuh"
#include "lib/kernels/cuda/simt_device.cuh"
#include "tests/simt/machine_probe.cuh"
#include "tests/simt/machine_probe.h"

namespace gradq::kernels {
namespace {

__global__ void ProbeKernel(const uint32_t* words, uint32_t* out) {
  MachineProbe<DeviceSimt>(DeviceSimt(), words, out).Run();
}

}  // namespace

absl::Status ProbeDevice(const uint32_t* words, uint32_t* out) {
  ProbeKernel<<<1, kProbeThreads, kProbeSharedBytes>>>(words, out);
  return LaunchStatus("machine probe");
}

}  // namespace gradq::kernels
