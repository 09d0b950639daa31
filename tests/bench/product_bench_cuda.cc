#include "tests/bench/product_bench_cuda.h"

#include <ATen/ops/empty_ops.h>
#include <ATen/ops/mm_ops.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <span>
#include <utility>

#include "lib/base/status_macros.h"
#include "lib/catalog/inference_memory.h"
#include "lib/kernels/tile_matmul.h"
#include "tests/bench/path_table_cuda.h"
#include "tests/bench/random_linear_cuda.h"

namespace gradq {
namespace {

using kernels::FloatType;
using kernels::Queue;
using kernels::TileView;

// A matrix and its copies on the device.
struct Packed {
  kernels::TileMatrix matrix;
  CopyLayout layout;
  at::Tensor memory;  // bytes [copies, layout.bytes]

  int64_t copies() const { return memory.size(0); }
  TileView view(int64_t copy, bool outliers) const {
    const auto* base = static_cast<const char*>(memory.const_data_ptr());
    return ViewOfCopy(matrix.view(), layout, base + copy * layout.bytes, outliers);
  }
};

// Inputs and outputs of the products of one batch.
struct Activations {
  at::Tensor x;  // fp16 [batch, in]
  at::Tensor y;  // fp16 [batch, out]
};

// A product of the run with its times.
struct Case {
  ProductRow row;
  std::unique_ptr<TimedWork> work;
  int64_t products = 0;
  std::vector<double> seconds;  // per product, a round each
};

at::Tensor Empty(std::vector<int64_t> shape, at::ScalarType type, at::Device device) {
  return at::_ops::empty_memory_format::call(c10::fromIntArrayRefSlow(shape), type, {}, device, {},
                                             {});
}

int64_t MostBatch(kernels::TilePath path) {
  switch (path) {
    case kernels::TilePath::kMatvec:
      return kernels::kTileMatvecBatch;
    case kernels::TilePath::kMatmul:
      return kernels::kTileMatmulBatch;
    case kernels::TilePath::kDequantize:
      break;
  }
  return std::numeric_limits<int64_t>::max();
}

class Benchmark {
 public:
  Benchmark(const LayerShape& shape, const ProductChoice& choice, const ProductPlace& place)
      : shape_(shape),
        choice_(choice),
        place_(place),
        scratch_(Empty({PanelRows(shape) * shape.in_features}, at::kHalf, place.device)) {}

  absl::Status Run(const std::function<void(const ProductRow&)>& print) {
    const at::Tensor dense = DenseCopies();
    std::vector<Packed> packed;
    for (const int bits : choice_.bits) packed.push_back(PackedCopies(bits));
    for (const int64_t batch : choice_.batch) {
      GRADQ_RETURN_IF_ERROR(RunBatch(dense, packed, batch, print));
    }
    return absl::OkStatus();
  }

  std::vector<ProductRow> TakeRows() { return std::move(rows_); }

 private:
  // As lib/inference/tile_linear.cc has it: panels of a fixed number of weights.
  static int64_t PanelRows(const LayerShape& shape) {
    const int64_t tiles = kTilePanelWeights / shape.in_features / kernels::kMmaRows;
    return std::max<int64_t>(1, tiles) * kernels::kMmaRows;
  }

  double most_outliers() const {
    return *std::max_element(choice_.outliers.begin(), choice_.outliers.end());
  }

  // fp16 [copies, out, in], of the size of trained weights.
  at::Tensor DenseCopies() const {
    const int64_t copies =
        ColdCopies(shape_.out_features * shape_.in_features * 2, place_.cold_bytes);
    at::Tensor dense =
        Empty({copies, shape_.out_features, shape_.in_features}, at::kHalf, place_.device);
    return dense.normal_(0, 0.02);
  }

  Packed PackedCopies(int bits) {
    Packed packed;
    packed.matrix = ToTileMatrix(MakeRandomLinear(choice_.encoding, bits, shape_.out_features,
                                                  shape_.in_features, most_outliers(), 7),
                                 place_.pool);
    packed.layout = LayoutOf(packed.matrix);
    const int64_t copies = ColdCopies(ReadBytes(packed.matrix, false), place_.cold_bytes);
    packed.memory = Empty({copies, packed.layout.bytes}, at::kByte, place_.device);
    const std::vector<char> bytes = CopyBytes(packed.matrix, packed.layout);
    at::Tensor host = Empty({packed.layout.bytes}, at::kByte, at::kCPU);
    std::memcpy(host.mutable_data_ptr(), bytes.data(), bytes.size());
    packed.memory.copy_(host.to(place_.device).expand_as(packed.memory));
    return packed;
  }

  std::vector<kernels::TilePath> Paths(const TileView& view, int64_t batch) const {
    using kernels::TilePath;
    if (choice_.path == "auto") return {kernels::ChooseTilePath(view, batch)};
    std::vector<TilePath> paths;
    for (const TilePath path : {TilePath::kMatvec, TilePath::kMatmul, TilePath::kDequantize}) {
      const bool wanted = choice_.path == "all" || choice_.path == PathName(path);
      if (wanted && batch <= MostBatch(path)) paths.push_back(path);
    }
    return paths;
  }

  // y = x · Ŵᵀ, enqueued.
  absl::Status Multiply(kernels::TilePath path, const TileView& view, const Activations& data) {
    kernels::TileMatmulArgs args;
    args.x = data.x.const_data_ptr();
    args.batch = data.x.size(0);
    args.y = data.y.mutable_data_ptr();
    switch (path) {
      case kernels::TilePath::kMatvec:
        return kernels::TileMatvec(place_.queue, view, args);
      case kernels::TilePath::kMatmul:
        return kernels::TileMatmul(place_.queue, view, args);
      case kernels::TilePath::kDequantize:
        break;
    }
    return MultiplyPanels(view, data);
  }

  absl::Status MultiplyPanels(const TileView& view, const Activations& data) {
    const int64_t step = PanelRows(shape_);
    for (int64_t begin = 0; begin < view.out_features; begin += step) {
      const int64_t end = std::min(begin + step, view.out_features);
      const at::Tensor panel = scratch_.slice(0, 0, (end - begin) * view.in_features)
                                   .view({end - begin, view.in_features});
      GRADQ_RETURN_IF_ERROR(kernels::TileDequantize(place_.queue, view, begin, end,
                                                    FloatType::kFloat16, panel.mutable_data_ptr()));
      at::Tensor columns = data.y.slice(1, begin, end);
      at::_ops::mm_out::call(data.x, panel.t(), columns);
    }
    return absl::OkStatus();
  }

  // Recorded products of the copies in turns, run once.
  absl::StatusOr<std::unique_ptr<TimedWork>> Record(int64_t copies,
                                                    std::function<absl::Status(int64_t)> product) {
    GRADQ_RETURN_IF_ERROR(product(0));  // what is made on first use is not recorded
    GRADQ_RETURN_IF_ERROR(place_.wait());
    GRADQ_ASSIGN_OR_RETURN(std::unique_ptr<TimedWork> work,
                           place_.record([copies, product]() -> absl::Status {
                             for (int64_t i = 0; i < GraphProducts(copies); ++i) {
                               GRADQ_RETURN_IF_ERROR(product(i % copies));
                             }
                             return absl::OkStatus();
                           }));
    GRADQ_RETURN_IF_ERROR(work->Run().status());
    return work;
  }

  absl::Status RunBatch(const at::Tensor& dense, const std::vector<Packed>& packed, int64_t batch,
                        const std::function<void(const ProductRow&)>& print) {
    Activations data;
    data.x = Empty({batch, shape_.in_features}, at::kHalf, place_.device).normal_(0, 1);
    data.y = Empty({batch, shape_.out_features}, at::kHalf, place_.device);
    GRADQ_ASSIGN_OR_RETURN(const std::unique_ptr<TimedWork> reference,
                           Record(dense.size(0), [&](int64_t copy) {
                             at::_ops::mm_out::call(data.x, dense.select(0, copy).t(), data.y);
                             return absl::OkStatus();
                           }));
    GRADQ_ASSIGN_OR_RETURN(std::vector<Case> cases, MakeCases(packed, data));
    std::vector<double> reference_seconds;
    for (int round = 0; round < choice_.rounds; ++round) {
      GRADQ_ASSIGN_OR_RETURN(const double seconds, reference->Run());
      reference_seconds.push_back(seconds / static_cast<double>(GraphProducts(dense.size(0))));
      for (Case& one : cases) {
        GRADQ_ASSIGN_OR_RETURN(const double total, one.work->Run());
        one.seconds.push_back(total / static_cast<double>(one.products));
      }
    }
    for (Case& one : cases) {
      one.row.seconds = Median(one.seconds);
      one.row.dense_seconds = Median(reference_seconds);
      print(one.row);
      rows_.push_back(one.row);
    }
    return absl::OkStatus();
  }

  // Recorded and checked, not timed.
  absl::StatusOr<std::vector<Case>> MakeCases(const std::vector<Packed>& packed,
                                              const Activations& data) {
    std::vector<Case> cases;
    for (const Packed& one : packed) {
      for (const double outliers : choice_.outliers) {
        for (const kernels::TilePath path : Paths(one.view(0, outliers > 0), data.x.size(0))) {
          GRADQ_ASSIGN_OR_RETURN(Case made, MakeCase(one, outliers, path, data));
          cases.push_back(std::move(made));
        }
      }
    }
    return cases;
  }
  absl::StatusOr<Case> MakeCase(const Packed& packed, double outliers, kernels::TilePath path,
                                const Activations& data) {
    const bool sparse = outliers > 0;
    const TileView view = packed.view(0, sparse);
    ProductRow row;
    row.shape = ShapeName(shape_);
    row.out_features = shape_.out_features;
    row.in_features = shape_.in_features;
    row.encoding = view.encoding;
    row.bits = view.bits;
    row.outlier_percent = outliers;
    row.batch = data.x.size(0);
    row.path = PathName(path);
    row.chosen = path == kernels::ChooseTilePath(view, row.batch);
    row.read_bytes = ReadBytes(packed.matrix, sparse);
    GRADQ_RETURN_IF_ERROR(Check(packed, sparse, path, data, &row));
    const auto product = [this, &packed, &data, path, sparse](int64_t copy) {
      return Multiply(path, packed.view(copy, sparse), data);
    };
    GRADQ_ASSIGN_OR_RETURN(std::unique_ptr<TimedWork> work, Record(packed.copies(), product));
    return Case{std::move(row), std::move(work), GraphProducts(packed.copies()), {}};
  }

  // Sampled outputs against the oracle's weights in fp64, and a second run against the first.
  absl::Status Check(const Packed& packed, bool sparse, kernels::TilePath path,
                     const Activations& data, ProductRow* row) {
    const TileView view = packed.view(0, sparse);
    data.y.fill_(std::numeric_limits<double>::quiet_NaN());
    GRADQ_RETURN_IF_ERROR(Multiply(path, view, data));
    const at::Tensor first = data.y.clone();
    GRADQ_RETURN_IF_ERROR(Multiply(path, view, data));
    GRADQ_RETURN_IF_ERROR(place_.wait());
    row->repeatable = first.view(at::kShort).equal(data.y.view(at::kShort));
    TileView host = packed.matrix.view();
    if (!sparse) host.outlier_begin = host.outliers = nullptr;
    const int64_t tiles = view.row_tiles, in = view.in_features;
    std::vector<float> weights(static_cast<size_t>(kernels::kMmaRows * in));
    for (const int64_t tile : {int64_t{0}, tiles / 2, tiles - 1}) {
      const int64_t begin = tile * kernels::kMmaRows;
      const int64_t end = std::min(begin + kernels::kMmaRows, view.out_features);
      GRADQ_RETURN_IF_ERROR(kernels::TileDequantize(Queue::Cpu(), host, begin, end,
                                                    FloatType::kFloat32, weights.data()));
      for (const int64_t token : {int64_t{0}, row->batch / 2, row->batch - 1}) {
        const at::Tensor x = data.x.select(0, token).to(at::kCPU);
        const at::Tensor y = first.select(0, token).slice(0, begin, end).to(at::kCPU);
        const std::span inputs(static_cast<const uint16_t*>(x.const_data_ptr()),
                               static_cast<size_t>(in));
        for (int64_t r = 0; r < end - begin; ++r) {
          const std::span one(weights.data() + r * in, static_cast<size_t>(in));
          row->error = std::max(
              row->error,
              OutputError(static_cast<const uint16_t*>(y.const_data_ptr())[r], inputs, one));
        }
      }
    }
    return absl::OkStatus();
  }

  const LayerShape& shape_;
  const ProductChoice& choice_;
  const ProductPlace& place_;
  const at::Tensor scratch_;  // fp16, decoded rows
  std::vector<ProductRow> rows_;
};

}  // namespace

absl::StatusOr<std::vector<ProductRow>> TimeLayer(
    const LayerShape& shape, const ProductChoice& choice, const ProductPlace& place,
    const std::function<void(const ProductRow&)>& print) {
  Benchmark benchmark(shape, choice, place);
  GRADQ_RETURN_IF_ERROR(benchmark.Run(print));
  return benchmark.TakeRows();
}

}  // namespace gradq
