#pragma once

// Products by the entries of tile_matmul.h on the current CUDA device, for tests.

#include <gtest/gtest.h>

#include <cstdint>
#include <iterator>
#include <vector>

#include "lib/kernels/tile_matmul.h"
#include "tests/kernels/device_memory.h"
#include "tests/kernels/device_tile_matrix.h"
#include "tests/kernels/tile_product.h"

namespace gradq::kernels {

using TileProductEntry = absl::Status (*)(const Queue&, const TileView&, const TileMatmulArgs&);

// y of `product` by `entry`, TileMatvec or TileMatmul. It runs twice; the running test fails where
// the bits differ, and on every error (y is then empty).
inline std::vector<uint16_t> RunOnDevice(TileProductEntry entry, const TileMatrix& matrix,
                                         const TileProduct& product) {
  const auto on_device = DeviceTileMatrix::Upload(matrix);
  const auto x = DeviceBuffer<uint16_t>::Upload(product.x);
  const auto bias = DeviceBuffer<uint16_t>::Upload(product.bias);
  const auto y = DeviceBuffer<uint16_t>::Allocate(std::ssize(product.y));
  EXPECT_TRUE(on_device.ok() && x.ok() && bias.ok() && y.ok());
  if (testing::Test::HasFailure()) return {};
  const TileMatmulArgs args = {product.type, x->data(), product.batch,
                               product.bias.empty() ? nullptr : bias->data(), y->data()};
  std::vector<uint16_t> first;
  for (int run = 0; run < 2; ++run) {
    const absl::Status launched = entry(Queue::Cuda(nullptr), on_device->view(), args);
    EXPECT_TRUE(launched.ok()) << launched;
    const auto result = y->Download();
    EXPECT_TRUE(result.ok()) << result.status();
    if (!result.ok()) return {};
    if (run == 0) first = *result;
    EXPECT_EQ(first, *result) << "two runs differ";
  }
  return first;
}

}  // namespace gradq::kernels
