#include "lib/kernels/tile_path.h"

#include <gtest/gtest.h>

#include "lib/kernels/tile_matmul.h"
#include "tests/kernels/tile_problem.h"

namespace gradq::kernels {
namespace {

TileView ViewOf(TileEncoding encoding, int bits) {
  TileView view;
  view.encoding = encoding;
  view.bits = bits;
  view.out_features = 4096;
  view.in_features = 4096;
  return view;
}

TEST(TilePath, EveryKindHasOneRowThatItsKernelsTake) {
  for (const auto& [encoding, bits] : TileKinds()) {
    int rows = 0;
    for (const TilePathRow& row : TilePathTable()) {
      if (row.encoding != encoding || row.bits != bits) continue;
      ++rows;
      EXPECT_LE(row.matvec_batch, kTileMatvecBatch);
      EXPECT_LE(row.matmul_batch, kTileMatmulBatch);
      EXPECT_LE(row.matvec_batch, row.matmul_batch);
    }
    EXPECT_EQ(rows, 1) << NameOf(encoding, bits);
  }
  EXPECT_EQ(TilePathTable().size(), TileKinds().size());
}

TEST(TilePath, GoesFromFewTokensToMany) {
  for (const auto& [encoding, bits] : TileKinds()) {
    const TileView view = ViewOf(encoding, bits);
    TilePath last = TilePath::kMatvec;
    for (int64_t batch = 1; batch <= 2 * kTileMatmulBatch; ++batch) {
      const TilePath path = ChooseTilePath(view, batch);
      EXPECT_GE(path, last) << NameOf(encoding, bits) << " at " << batch;
      EXPECT_TRUE(batch > 1 || path == TilePath::kMatvec);
      EXPECT_TRUE(batch <= kTileMatvecBatch || path != TilePath::kMatvec);
      EXPECT_TRUE(batch <= kTileMatmulBatch || path == TilePath::kDequantize);
      last = path;
    }
  }
}

// What the table says today, until a device has been asked.
TEST(TilePath, FewTokensAreTheMatvecs) {
  for (const auto& [encoding, bits] : TileKinds()) {
    const TileView view = ViewOf(encoding, bits);
    EXPECT_EQ(ChooseTilePath(view, 16), TilePath::kMatvec);
    EXPECT_EQ(ChooseTilePath(view, 17), TilePath::kMatmul);
    EXPECT_EQ(ChooseTilePath(view, 128), TilePath::kMatmul);
    EXPECT_EQ(ChooseTilePath(view, 1024), TilePath::kDequantize);
  }
}

}  // namespace
}  // namespace gradq::kernels
