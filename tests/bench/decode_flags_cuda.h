#pragma once

// Options of decode_cuda, between its main and the part that it loads.

#include <cstdint>
#include <string>
#include <vector>

#include "tests/bench/graph_timing_cuda.h"

namespace gradq {

struct DecodeFlags {
  std::vector<int> bits = {2, 3, 4};
  double outliers = 0;    // percent of the weights
  int64_t context = 128;  // tokens that the cache holds before the first
  int64_t tokens = 64;    // generated per round
  int blocks = 32;
  int rounds = 5;
  int steps = 16;  // launched one behind the other where the device alone is timed
  int device = 0;
  std::string json;
};

// In libdecode_cuda_run.so, which needs libtorch_cuda: prints the tables. `device` is open. Gives
// the exit code.
extern "C" int GradqRunDecode(const DecodeFlags& flags, const BenchDevice& device);

}  // namespace gradq
