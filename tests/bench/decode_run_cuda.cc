// The part of decode_cuda that needs libtorch's CUDA half.

#include <c10/core/StreamGuard.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "lib/base/files.h"
#include "lib/base/status_macros.h"
#include "lib/base/thread_pool.h"
#include "lib/inference/compute_queue.h"
#include "lib/transformer/numerics.h"
#include "tests/bench/decode_bench_cuda.h"
#include "tests/bench/decode_model_cuda.h"
#include "tests/bench/product_rows_cuda.h"

namespace gradq {
namespace {

absl::Status WriteJson(const std::vector<DecodeRow>& rows, const BenchConditions& conditions,
                       const std::string& path) {
  nlohmann::json all = {{"conditions", ToJson(conditions)}, {"rows", nlohmann::json::array()}};
  for (const DecodeRow& row : rows) {
    all["rows"].push_back(ToJson(row, conditions.read_bytes_per_second));
  }
  return WriteFileAtomically(path, all.dump(1) + "\n");
}

absl::Status Run(const DecodeFlags& flags, const BenchDevice& device) {
  const int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  ThreadPool pool(threads);
  DecodePlace place;
  place.device = at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(flags.device));
  place.multiprocessors = device.multiprocessors;
  place.pool = &pool;
  GRADQ_RETURN_IF_ERROR(SetUpNumerics(threads, "cuda:" + std::to_string(flags.device)).status());
  GRADQ_ASSIGN_OR_RETURN(const ModelGeometry geometry, ParseGeometry(Llama7bConfig(flags.blocks)));
  const c10::StreamGuard guard(ComputeStream(place.device));
  const kernels::Queue queue = ComputeQueue(place.device);
  BenchConditions conditions;
  conditions.device = device.name;
  conditions.multiprocessors = device.multiprocessors;
  conditions.l2_bytes = device.l2_bytes;
  conditions.rounds = flags.rounds;
  GRADQ_ASSIGN_OR_RETURN(conditions.read_bytes_per_second, MeasureReadRate(queue.stream(), device));
  GRADQ_ASSIGN_OR_RETURN(conditions.empty_node_seconds, MeasureEmptyNode(queue.stream()));
  std::printf(
      "%s\nLlama-2-7B, %d blocks, random weights, dense linears, head and cache in fp16\n\n",
      ConditionsLine(conditions).c_str(), flags.blocks);
  GRADQ_ASSIGN_OR_RETURN(const std::vector<DecodeRow> rows, RunDecodeBench(flags, geometry, place));
  std::fputs(DecodeTables(rows, conditions.read_bytes_per_second).c_str(), stdout);
  if (!flags.json.empty()) GRADQ_RETURN_IF_ERROR(WriteJson(rows, conditions, flags.json));
  for (const DecodeRow& row : rows) {
    if (!row.repeatable) return absl::DataLossError("logits not finite or not repeatable");
  }
  return absl::OkStatus();
}

}  // namespace

extern "C" int GradqRunDecode(const DecodeFlags& flags, const BenchDevice& device) {
  const absl::Status status = Run(flags, device);
  if (status.ok()) return 0;
  std::fprintf(stderr, "decode_cuda: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace gradq
