#pragma once

// Times packed products of a layer beside dense fp16, in turns, and checks them against the CPU
// oracle: what lut_matmul_cuda does per layer. Where products run and how they are timed is
// injected, so that its test runs on the CPU. One thread; libtorch exceptions pass through.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/base/thread_pool.h"
#include "lib/kernels/queue.h"
#include "lib/kernels/tile_path.h"
#include "tests/bench/layer_shapes_cuda.h"
#include "tests/bench/product_rows_cuda.h"

namespace gradq {

// Work that was recorded once; Run launches it, waits and gives its seconds.
class TimedWork {
 public:
  virtual ~TimedWork() = default;
  virtual absl::StatusOr<double> Run() = 0;
};

struct ProductPlace {
  at::Device device = at::kCPU;
  kernels::Queue queue = kernels::Queue::Cpu();  // ATen's operations go to the same
  // `body` enqueues the work. It has run before.
  std::function<absl::StatusOr<std::unique_ptr<TimedWork>>(std::function<absl::Status()> body)>
      record;
  std::function<absl::Status()> wait;  // for all that was enqueued
  int64_t cold_bytes = 0;              // of the copies of a matrix, at least
  ThreadPool* pool = nullptr;          // repacks; may be null
};

struct ProductChoice {
  kernels::TileEncoding encoding = kernels::TileEncoding::kLut;
  std::vector<int> bits;
  std::vector<int64_t> batch;
  std::vector<double> outliers;  // percent; 0 and at most one other
  std::string path = "auto";     // "all", or a PathName where it takes the batch
  int rounds = 7;
};

// Rows of one layer, in order of batch, bits, outliers, path; `print` gets each as it comes.
absl::StatusOr<std::vector<ProductRow>> TimeLayer(
    const LayerShape& shape, const ProductChoice& choice, const ProductPlace& place,
    const std::function<void(const ProductRow&)>& print);

}  // namespace gradq
