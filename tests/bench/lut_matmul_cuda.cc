// Times the products of lib/kernels/tile_matmul.h on a CUDA device beside cuBLAS fp16 in the same
// run: layers of Llama-2-7B, Llama-3-8B and 70B, cold weights, CUDA graphs of at least 100
// products, medians of interleaved rounds. Prints Markdown rows, then the bars of
// docs/benchmarks.md, which says how to read them. Every row is also checked against the CPU
// oracle; exit code 1 when one is wrong.
//
//   lut_matmul_cuda [--quick] [--shapes REGEX] [--bits 2,3,4] [--batch 1,8] [--outliers 0,0.45]
//                   [--path auto|all|matvec|matmul|dequantize] [--table] [--json FILE]

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "lib/base/files.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/base/thread_pool.h"
#include "tests/bench/graph_timing_cuda.h"
#include "tests/bench/layer_shapes_cuda.h"
#include "tests/bench/path_table_cuda.h"
#include "tests/bench/product_bench_cuda.h"
#include "tests/bench/product_rows_cuda.h"

namespace gradq {
namespace {

using kernels::TileEncoding;

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

// cuBLAS comes with libtorch_cuda, which only a machine with a GPU can load: not before there is a
// device, so that help and refusals work everywhere.
absl::Status LoadLibtorchCuda() {
  if (dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) != nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError(StrCat("cannot load libtorch's CUDA half: ", dlerror()));
}

absl::Status WriteJson(const std::vector<ProductRow>& rows, const BenchConditions& conditions,
                       const std::string& path) {
  nlohmann::json all = {{"conditions", ToJson(conditions)}, {"rows", nlohmann::json::array()}};
  for (const ProductRow& row : rows) all["rows"].push_back(ToJson(row, conditions));
  return WriteFileAtomically(path, all.dump(1) + "\n");
}

class GraphWork : public TimedWork {
 public:
  explicit GraphWork(TimedGraph graph) : graph_(std::move(graph)) {}
  absl::StatusOr<double> Run() override { return graph_.Run(); }

 private:
  TimedGraph graph_;
};

ProductPlace PlaceOf(const Flags& flags, const BenchDevice& device, void* stream,
                     ThreadPool* pool) {
  ProductPlace place;
  place.device = at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(flags.device));
  place.queue = kernels::Queue::Cuda(stream);
  place.record =
      [stream](
          const std::function<absl::Status()>& body) -> absl::StatusOr<std::unique_ptr<TimedWork>> {
    GRADQ_ASSIGN_OR_RETURN(TimedGraph graph, TimedGraph::Record(stream, body));
    return std::make_unique<GraphWork>(std::move(graph));
  };
  place.wait = [stream] { return SynchronizeStream(stream); };
  place.cold_bytes = ColdBytes(device.l2_bytes);
  place.pool = pool;
  return place;
}

TileEncoding EncodingOf(const Flags& flags) {
  return flags.encoding == "lut" ? TileEncoding::kLut : TileEncoding::kAffine;
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

// Prints what the rows say together. DATA_LOSS when one is wrong.
absl::Status Conclude(const Flags& flags, const std::vector<ProductRow>& rows,
                      const BenchConditions& conditions) {
  if (rows.empty()) {
    return absl::InvalidArgumentError(StrCat("no batch asked for takes this path: ", flags.path));
  }
  std::printf("\n");
  for (const Verdict& verdict : Judge(rows, conditions)) {
    std::fputs(VerdictLine(verdict).c_str(), stdout);
  }
  if (flags.table) std::fputs(PathTableText(rows).c_str(), stdout);
  if (!flags.json.empty()) GRADQ_RETURN_IF_ERROR(WriteJson(rows, conditions, flags.json));
  const auto wrong =
      std::count_if(rows.begin(), rows.end(), [](const ProductRow& row) { return !Correct(row); });
  if (wrong == 0) return absl::OkStatus();
  return absl::DataLossError(StrCat("wrong or unsteady products: ", wrong));
}

absl::Status Run(const Flags& flags) {
  GRADQ_RETURN_IF_ERROR(CheckFlags(flags));
  GRADQ_ASSIGN_OR_RETURN(const std::vector<LayerShape> shapes, MatchShapes(flags.shapes));
  GRADQ_ASSIGN_OR_RETURN(const BenchDevice device, OpenBenchDevice(flags.device));
  GRADQ_RETURN_IF_ERROR(LoadLibtorchCuda());
  const c10::cuda::CUDAStream stream =
      c10::cuda::getStreamFromPool(false, static_cast<c10::DeviceIndex>(flags.device));
  const c10::cuda::CUDAStreamGuard guard(stream);
  BenchConditions conditions;
  conditions.device = device.name;
  conditions.multiprocessors = device.multiprocessors;
  conditions.l2_bytes = device.l2_bytes;
  conditions.rounds = flags.rounds;
  // Before anything else is on the device.
  GRADQ_ASSIGN_OR_RETURN(conditions.read_bytes_per_second,
                         MeasureReadRate(stream.stream(), device));
  GRADQ_ASSIGN_OR_RETURN(conditions.empty_node_seconds, MeasureEmptyNode(stream.stream()));
  std::printf("%s\n\n%s", ConditionsLine(conditions).c_str(), TableHead().c_str());

  ThreadPool pool(static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
  const ProductPlace place = PlaceOf(flags, device, stream.stream(), &pool);
  const ProductChoice choice = {EncodingOf(flags), flags.bits, flags.batch,
                                flags.outliers,    flags.path, flags.rounds};
  const auto print = [&conditions](const ProductRow& row) {
    std::fputs(TableLine(row, conditions).c_str(), stdout);
    std::fflush(stdout);
  };
  std::vector<ProductRow> rows;
  for (const LayerShape& shape : shapes) {
    GRADQ_ASSIGN_OR_RETURN(const std::vector<ProductRow> layer,
                           TimeLayer(shape, choice, place, print));
    rows.insert(rows.end(), layer.begin(), layer.end());
  }
  return Conclude(flags, rows, conditions);
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
