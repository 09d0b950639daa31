// Times the products of lib/kernels/tile_matmul.h on a CUDA device beside cuBLAS fp16 in the same
// run: layers of Llama-2-7B, Llama-3-8B and 70B, cold weights, CUDA graphs of at least 100
// products, medians of interleaved rounds. Prints Markdown rows, then the bars of
// docs/benchmarks.md, which says how to read them. Every row is also checked against the CPU
// oracle; exit code 1 when one is wrong.
//
//   lut_matmul_cuda [--quick] [--shapes REGEX] [--bits 2,3,4] [--batch 1,8] [--outliers 0,0.45]
//                   [--path auto|all|matvec|matmul|dequantize] [--table] [--json FILE]

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_ops.h>
#include <ATen/ops/mm_ops.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "lib/base/files.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/base/thread_pool.h"
#include "lib/inference/packed_matrix.h"
#include "lib/kernels/tile_matmul.h"
#include "lib/kernels/tile_path.h"
#include "tests/bench/graph_timing_cuda.h"
#include "tests/bench/layer_shapes_cuda.h"
#include "tests/bench/path_table_cuda.h"
#include "tests/bench/product_rows_cuda.h"
#include "tests/bench/random_linear_cuda.h"

namespace gradq {
namespace {

using kernels::FloatType;
using kernels::Queue;
using kernels::TileEncoding;
using kernels::TileView;

struct Flags {
  std::string shapes = ".*";
  std::vector<int> bits;
  std::vector<int64_t> batch = {1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 1024, 4096};
  std::vector<double> outliers = {0, 0.45};
  std::string encoding = "lut";
  std::string path = "auto";
  std::string json;
  int device = 0;
  int rounds = 7;
  bool quick = false;
  bool table = false;
};

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
  TimedGraph graph;
  int64_t products = 0;
  std::vector<double> seconds;  // per product, a round each
};

TileEncoding EncodingOf(const Flags& flags) {
  return flags.encoding == "lut" ? TileEncoding::kLut : TileEncoding::kAffine;
}

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
  Benchmark(const Flags& flags, const BenchDevice& device, void* stream)
      : flags_(flags),
        l2_bytes_(device.l2_bytes),
        device_(at::kCUDA, static_cast<c10::DeviceIndex>(flags.device)),
        stream_(stream),
        queue_(Queue::Cuda(stream)),
        scratch_(Empty({kTilePanelWeights}, at::kHalf, device_)),
        pool_(static_cast<int>(std::max(1u, std::thread::hardware_concurrency()))) {
    conditions_.device = device.name;
    conditions_.multiprocessors = device.multiprocessors;
    conditions_.l2_bytes = device.l2_bytes;
    conditions_.rounds = flags.rounds;
  }

  // Bandwidth and floor, before anything else is on the device.
  absl::Status MeasureConditions(const BenchDevice& device) {
    GRADQ_ASSIGN_OR_RETURN(conditions_.read_bytes_per_second, MeasureReadRate(stream_, device));
    GRADQ_ASSIGN_OR_RETURN(conditions_.empty_node_seconds, MeasureEmptyNode(stream_));
    return absl::OkStatus();
  }

  // Adds the rows of a shape, printed as they come.
  absl::Status Run(const LayerShape& shape) {
    const at::Tensor dense = DenseCopies(shape);
    std::vector<Packed> packed;
    for (const int bits : flags_.bits) packed.push_back(PackedCopies(shape, bits));
    for (const int64_t batch : flags_.batch) {
      GRADQ_RETURN_IF_ERROR(RunBatch(shape, dense, packed, batch));
    }
    return absl::OkStatus();
  }

  const std::vector<ProductRow>& rows() const { return rows_; }
  const BenchConditions& conditions() const { return conditions_; }

 private:
  double most_outliers() const {
    return *std::max_element(flags_.outliers.begin(), flags_.outliers.end());
  }

  // fp16 [copies, out, in], of the size of trained weights.
  at::Tensor DenseCopies(const LayerShape& shape) const {
    const int64_t copies = ColdCopies(shape.out_features * shape.in_features * 2, l2_bytes_);
    at::Tensor dense = Empty({copies, shape.out_features, shape.in_features}, at::kHalf, device_);
    return dense.normal_(0, 0.02);
  }

  Packed PackedCopies(const LayerShape& shape, int bits) {
    Packed packed;
    packed.matrix = ToTileMatrix(MakeRandomLinear(EncodingOf(flags_), bits, shape.out_features,
                                                  shape.in_features, most_outliers(), 7),
                                 &pool_);
    packed.layout = LayoutOf(packed.matrix);
    const int64_t copies = ColdCopies(ReadBytes(packed.matrix, false), l2_bytes_);
    packed.memory = Empty({copies, packed.layout.bytes}, at::kByte, device_);
    const std::vector<char> bytes = CopyBytes(packed.matrix, packed.layout);
    at::Tensor host = Empty({packed.layout.bytes}, at::kByte, at::kCPU);
    std::memcpy(host.mutable_data_ptr(), bytes.data(), bytes.size());
    packed.memory.copy_(host.to(device_).expand_as(packed.memory));
    return packed;
  }

  std::vector<kernels::TilePath> Paths(const TileView& view, int64_t batch) const {
    using kernels::TilePath;
    if (flags_.path == "auto") return {kernels::ChooseTilePath(view, batch)};
    std::vector<TilePath> paths;
    for (const TilePath path : {TilePath::kMatvec, TilePath::kMatmul, TilePath::kDequantize}) {
      const bool wanted = flags_.path == "all" || flags_.path == PathName(path);
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
        return kernels::TileMatvec(queue_, view, args);
      case kernels::TilePath::kMatmul:
        return kernels::TileMatmul(queue_, view, args);
      case kernels::TilePath::kDequantize:
        break;
    }
    return MultiplyPanels(view, data);
  }

  // As lib/inference/tile_linear.cc does it: panels of a fixed number of weights.
  absl::Status MultiplyPanels(const TileView& view, const Activations& data) {
    const int64_t tiles = (kTilePanelWeights / view.in_features) / kernels::kTileRows;
    const int64_t step = std::max<int64_t>(1, tiles) * kernels::kTileRows;
    for (int64_t begin = 0; begin < view.out_features; begin += step) {
      const int64_t end = std::min(begin + step, view.out_features);
      const at::Tensor panel = scratch_.slice(0, 0, (end - begin) * view.in_features)
                                   .view({end - begin, view.in_features});
      GRADQ_RETURN_IF_ERROR(kernels::TileDequantize(queue_, view, begin, end, FloatType::kFloat16,
                                                    panel.mutable_data_ptr()));
      at::Tensor columns = data.y.slice(1, begin, end);
      at::_ops::mm_out::call(data.x, panel.t(), columns);
    }
    return absl::OkStatus();
  }

  // A graph of `product(copy)` for the copies in turns, launched once.
  absl::StatusOr<TimedGraph> Record(int64_t copies,
                                    const std::function<absl::Status(int64_t)>& product) {
    GRADQ_RETURN_IF_ERROR(product(0));  // what is made on first use is not recorded
    GRADQ_RETURN_IF_ERROR(SynchronizeStream(stream_));
    GRADQ_ASSIGN_OR_RETURN(TimedGraph graph, TimedGraph::Record(stream_, [&]() -> absl::Status {
                             for (int64_t i = 0; i < GraphProducts(copies); ++i) {
                               GRADQ_RETURN_IF_ERROR(product(i % copies));
                             }
                             return absl::OkStatus();
                           }));
    GRADQ_RETURN_IF_ERROR(graph.Run().status());
    return graph;
  }

  absl::Status RunBatch(const LayerShape& shape, const at::Tensor& dense,
                        const std::vector<Packed>& packed, int64_t batch) {
    Activations data;
    data.x = Empty({batch, shape.in_features}, at::kHalf, device_).normal_(0, 1);
    data.y = Empty({batch, shape.out_features}, at::kHalf, device_);
    GRADQ_ASSIGN_OR_RETURN(TimedGraph reference, Record(dense.size(0), [&](int64_t copy) {
                             at::_ops::mm_out::call(data.x, dense.select(0, copy).t(), data.y);
                             return absl::OkStatus();
                           }));
    std::vector<Case> cases;
    for (size_t i = 0; i < packed.size(); ++i) {
      for (const double outliers : flags_.outliers) {
        const TileView view = packed[i].view(0, outliers > 0);
        for (const kernels::TilePath path : Paths(view, batch)) {
          GRADQ_ASSIGN_OR_RETURN(Case one, MakeCase(shape, packed[i], outliers, path, data));
          cases.push_back(std::move(one));
        }
      }
    }
    std::vector<double> reference_seconds;
    for (int round = 0; round < flags_.rounds; ++round) {
      GRADQ_ASSIGN_OR_RETURN(const double seconds, reference.Run());
      reference_seconds.push_back(seconds / static_cast<double>(GraphProducts(dense.size(0))));
      for (Case& one : cases) {
        GRADQ_ASSIGN_OR_RETURN(const double total, one.graph.Run());
        one.seconds.push_back(total / static_cast<double>(one.products));
      }
    }
    for (Case& one : cases) {
      one.row.seconds = Median(one.seconds);
      one.row.dense_seconds = Median(reference_seconds);
      std::fputs(TableLine(one.row, conditions_).c_str(), stdout);
      std::fflush(stdout);
      rows_.push_back(one.row);
    }
    return absl::OkStatus();
  }

  // Recorded and checked, not timed.
  absl::StatusOr<Case> MakeCase(const LayerShape& shape, const Packed& packed, double outliers,
                                kernels::TilePath path, const Activations& data) {
    const bool sparse = outliers > 0;
    const TileView view = packed.view(0, sparse);
    ProductRow row;
    row.shape = ShapeName(shape);
    row.out_features = shape.out_features;
    row.in_features = shape.in_features;
    row.encoding = view.encoding;
    row.bits = view.bits;
    row.outlier_percent = outliers;
    row.batch = data.x.size(0);
    row.path = PathName(path);
    row.chosen = path == kernels::ChooseTilePath(view, row.batch);
    row.read_bytes = ReadBytes(packed.matrix, sparse);
    GRADQ_RETURN_IF_ERROR(Check(packed, sparse, path, data, &row));
    GRADQ_ASSIGN_OR_RETURN(TimedGraph graph, Record(packed.copies(), [&](int64_t copy) {
                             return Multiply(path, packed.view(copy, sparse), data);
                           }));
    return Case{std::move(row), std::move(graph), GraphProducts(packed.copies()), {}};
  }

  // Sampled outputs against the oracle's weights in fp64, and a second run against the first.
  absl::Status Check(const Packed& packed, bool sparse, kernels::TilePath path,
                     const Activations& data, ProductRow* row) {
    const TileView view = packed.view(0, sparse);
    data.y.fill_(std::numeric_limits<double>::quiet_NaN());
    GRADQ_RETURN_IF_ERROR(Multiply(path, view, data));
    const at::Tensor first = data.y.clone();
    GRADQ_RETURN_IF_ERROR(Multiply(path, view, data));
    GRADQ_RETURN_IF_ERROR(SynchronizeStream(stream_));
    row->repeatable = first.view(at::kShort).equal(data.y.view(at::kShort));
    TileView host = packed.matrix.view();
    if (!sparse) host.outlier_begin = host.outliers = nullptr;
    const int64_t tiles = view.row_tiles, in = view.in_features;
    std::vector<float> weights(static_cast<size_t>(kernels::kTileRows * in));
    for (const int64_t tile : {int64_t{0}, tiles / 2, tiles - 1}) {
      const int64_t begin = tile * kernels::kTileRows;
      const int64_t end = std::min(begin + kernels::kTileRows, view.out_features);
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

  const Flags& flags_;
  const int64_t l2_bytes_;
  const at::Device device_;
  void* const stream_;
  const Queue queue_;
  const at::Tensor scratch_;  // fp16, decoded rows
  ThreadPool pool_;
  BenchConditions conditions_;
  std::vector<ProductRow> rows_;
};

// cuBLAS comes with libtorch_cuda, which only a machine with a GPU can load: not before there is a
// device, so that help and refusals work everywhere.
absl::Status LoadLibtorchCuda() {
  if (dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) != nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError(StrCat("cannot load libtorch's CUDA half: ", dlerror()));
}

absl::Status WriteJson(const Benchmark& benchmark, const std::string& path) {
  nlohmann::json rows = nlohmann::json::array();
  for (const ProductRow& row : benchmark.rows()) {
    rows.push_back(ToJson(row, benchmark.conditions()));
  }
  const nlohmann::json all = {{"conditions", ToJson(benchmark.conditions())}, {"rows", rows}};
  return WriteFileAtomically(path, all.dump(1) + "\n");
}

// What the options say together.
absl::Status CheckFlags(const Flags& flags) {
  for (const int bits : flags.bits) {
    if (!kernels::HasTileKernels(EncodingOf(flags), bits)) {
      return absl::InvalidArgumentError(
          StrCat("no kernels of this width: ", flags.encoding, ", ", bits, " bits"));
    }
  }
  const auto sparse = std::count_if(flags.outliers.begin(), flags.outliers.end(),
                                    [](double percent) { return percent > 0; });
  if (sparse > 1) return absl::InvalidArgumentError("--outliers takes 0 and one other percentage");
  return absl::OkStatus();
}

absl::Status Run(const Flags& flags) {
  GRADQ_RETURN_IF_ERROR(CheckFlags(flags));
  GRADQ_ASSIGN_OR_RETURN(const std::vector<LayerShape> shapes, MatchShapes(flags.shapes));
  GRADQ_ASSIGN_OR_RETURN(const BenchDevice device, OpenBenchDevice(flags.device));
  GRADQ_RETURN_IF_ERROR(LoadLibtorchCuda());
  const c10::cuda::CUDAStream stream =
      c10::cuda::getStreamFromPool(false, static_cast<c10::DeviceIndex>(flags.device));
  const c10::cuda::CUDAStreamGuard guard(stream);
  Benchmark benchmark(flags, device, stream.stream());
  GRADQ_RETURN_IF_ERROR(benchmark.MeasureConditions(device));
  std::printf("%s\n\n%s", ConditionsLine(benchmark.conditions()).c_str(), TableHead().c_str());
  for (const LayerShape& shape : shapes) GRADQ_RETURN_IF_ERROR(benchmark.Run(shape));
  if (benchmark.rows().empty()) {
    return absl::InvalidArgumentError(StrCat("no batch asked for takes this path: ", flags.path));
  }
  std::printf("\n");
  for (const Verdict& verdict : Judge(benchmark.rows(), benchmark.conditions())) {
    std::fputs(VerdictLine(verdict).c_str(), stdout);
  }
  if (flags.table) std::fputs(PathTableText(benchmark.rows()).c_str(), stdout);
  if (!flags.json.empty()) GRADQ_RETURN_IF_ERROR(WriteJson(benchmark, flags.json));
  const auto wrong = std::count_if(benchmark.rows().begin(), benchmark.rows().end(),
                                   [](const ProductRow& row) { return !Correct(row); });
  if (wrong == 0) return absl::OkStatus();
  return absl::DataLossError(StrCat("wrong or unsteady products: ", wrong));
}

// What --quick leaves of the defaults: under a minute.
void MakeQuick(Flags& flags, const CLI::App& app) {
  if (app.count("--shapes") == 0) flags.shapes = "^(4096x4096|14336x4096|28672x8192) ";
  if (app.count("--batch") == 0) flags.batch = {1, 8, 32, 128, 1024};
  if (app.count("--rounds") == 0) flags.rounds = 3;
}

// --table: every path, and no more than the choice between them needs.
void MakeTable(Flags& flags, const CLI::App& app) {
  flags.path = "all";
  if (app.count("--outliers") == 0) flags.outliers = {0};
  if (app.count("--rounds") == 0) flags.rounds = 3;
}

void AddOptions(CLI::App& app, Flags& flags) {
  app.add_option("--shapes", flags.shapes, "layers whose name this regular expression finds");
  app.add_option("--bits", flags.bits, "widths; affine also 8 (2,3,4)")
      ->delimiter(',')
      ->check(CLI::IsMember({2, 3, 4, 8}));
  app.add_option("--batch", flags.batch, "numbers of tokens")
      ->delimiter(',')
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app.add_option("--outliers", flags.outliers, "percent of the weights; 0 and at most one other")
      ->delimiter(',')
      ->check(CLI::Range(0.0, 10.0))
      ->capture_default_str();
  app.add_option("--encoding", flags.encoding, "lut, or affine in groups of 128")
      ->check(CLI::IsMember({"lut", "affine"}))
      ->capture_default_str();
  app.add_option("--path", flags.path, "auto is what the product takes")
      ->check(CLI::IsMember({"auto", "all", "matvec", "matmul", "dequantize"}))
      ->capture_default_str();
  app.add_flag("--table", flags.table, "all paths, then the rows for lib/kernels/tile_path.cc");
  app.add_option("--json", flags.json, "writes the rows into this file, too");
  app.add_option("--device", flags.device, "ordinal of the CUDA device")->capture_default_str();
  app.add_option("--rounds", flags.rounds, "interleaved runs that medians are taken of")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_flag("--quick", flags.quick, "three layers, five batches, three rounds");
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app(
      "Times the packed products of a CUDA device beside cuBLAS fp16. Estimated, not measured:\n"
      "about five minutes for everything, under one with --quick.");
  AddOptions(app, flags);
  CLI11_PARSE(app, argc, argv);
  if (flags.bits.empty()) flags.bits = {2, 3, 4};
  if (flags.quick) MakeQuick(flags, app);
  if (flags.table) MakeTable(flags, app);
  absl::Status status;
  try {
    status = Run(flags);
  } catch (const std::exception& error) {  // libtorch's
    const std::string what = error.what();
    status = absl::InternalError(what.substr(0, what.find('\n')));
  }
  if (status.ok()) return 0;
  std::fprintf(stderr, "lut_matmul_cuda: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace
}  // namespace gradq

int main(int argc, char** argv) { return gradq::Main(argc, argv); }
