#include "tests/services/fake_worker.h"

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "lib/base/digest.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/format/checkpoint.h"
#include "lib/format/packing.h"
#include "lib/format/quantized_linear.h"
#include "services/rpc/channel.h"
#include "services/rpc/file_stream.h"
#include "services/rpc/status.h"

namespace gradq {
namespace {

constexpr absl::Duration kDeadline = absl::Seconds(20);

// Nats per token that a linear of so many bits is said to cost.
double PriceOf(int bits) { return 0.064 / (1 << (2 * bits)); }

// Summed loss that the quantized weights are said to add.
constexpr double kLossOfPath = 21;

// A hundred weights that share what kLossOfPath says, of 21 linears, in two buckets.
v1::TaskResult Score(const std::string& linear) {
  v1::TaskResult result;
  v1::ScoreSummary* score = result.mutable_score();
  score->set_linear(linear);
  score->set_weights(100);
  score->set_signed_sum(0.01);
  score->set_absolute_sum(0.02);
  score->add_bucket(-700);
  score->add_count(99);
  score->add_bucket(-600);
  score->add_count(1);
  return result;
}

// Each row on an even grid between its extremes; the table holds the used values, rounded to fp16.
QuantizedLinear Round(const std::string& name, const std::string& method, int bits,
                      const std::vector<float>& weights, int64_t rows, int64_t columns) {
  const int entries = 1 << bits;
  QuantizedLinear linear;
  linear.name = name;
  linear.encoding = Encoding::kLut;
  linear.bits = bits;
  linear.out_features = rows;
  linear.in_features = columns;
  linear.record.method = method;
  linear.record.objective_initial = 2.0;
  linear.record.objective_final = 1.0;
  std::vector<uint8_t> codes(weights.size());
  for (int64_t row = 0; row < rows; ++row) {
    const float* w = weights.data() + row * columns;
    const auto [low, high] = std::minmax_element(w, w + columns);
    std::set<float> values;
    for (int i = 0; i < entries; ++i) {
      const float exact = *low + (*high - *low) * static_cast<float>(i) / (entries - 1);
      values.insert(Float16Value(Float16Bits(exact)));
    }
    const std::vector<float> grid(values.begin(), values.end());
    std::set<float> used;
    const auto nearest = [&](float value) {
      return *std::min_element(grid.begin(), grid.end(), [&](float a, float b) {
        return std::abs(a - value) < std::abs(b - value);
      });
    };
    for (int64_t j = 0; j < columns; ++j) used.insert(nearest(w[j]));
    std::vector<float> table(used.begin(), used.end());
    for (int64_t j = 0; j < columns; ++j) {
      const auto it = std::find(table.begin(), table.end(), nearest(w[j]));
      codes[row * columns + j] = static_cast<uint8_t>(it - table.begin());
    }
    table.resize(entries, table.back());
    for (const float value : table) linear.lut.push_back(Float16Bits(value));
  }
  linear.packed = PackCodes(codes, rows, columns, bits);
  return linear;
}

}  // namespace

FakeWorker::FakeWorker(std::shared_ptr<grpc::Channel> channel, std::string name,
                       v1::Worker::Kind kind)
    : stub_(v1::WorkerService::NewStub(std::move(channel))), name_(std::move(name)), kind_(kind) {}

absl::Status FakeWorker::Register() {
  v1::RegisterWorkerRequest request;
  request.set_name(name_);
  request.set_kind(kind_);
  if (kind_ == v1::Worker::COMPUTE) request.set_advertise("127.0.0.1:1");
  request.set_device("cpu");
  request.set_threads(1);
  request.set_memory_bytes(int64_t{8} << 30);
  request.set_numerics_class("test");
  grpc::ClientContext context;
  SetDeadline(context, kDeadline);
  v1::RegisterWorkerResponse response;
  GRADQ_RETURN_IF_ERROR(FromGrpc(stub_->RegisterWorker(&context, request, &response)));
  session_ = response.session();
  return absl::OkStatus();
}

absl::StatusOr<std::optional<v1::Lease>> FakeWorker::Lease(absl::Duration wait) {
  v1::LeaseTaskRequest request;
  request.set_session(session_);
  const int64_t ms = absl::ToInt64Milliseconds(wait);
  request.mutable_wait()->set_seconds(ms / 1000);
  request.mutable_wait()->set_nanos(static_cast<int>(ms % 1000) * 1'000'000);
  grpc::ClientContext context;
  SetDeadline(context, kDeadline);
  v1::LeaseTaskResponse response;
  GRADQ_RETURN_IF_ERROR(FromGrpc(stub_->LeaseTask(&context, request, &response)));
  if (!response.has_lease()) return std::optional<v1::Lease>();
  return std::optional<v1::Lease>(response.lease());
}

absl::StatusOr<v1::HeartbeatResponse> FakeWorker::Heartbeat(const v1::Lease* running) {
  v1::HeartbeatRequest request;
  request.set_session(session_);
  if (running != nullptr) {
    v1::AttemptProgress* progress = request.add_running();
    progress->set_task(running->task());
    progress->set_attempt(running->attempt());
  }
  grpc::ClientContext context;
  SetDeadline(context, kDeadline);
  v1::HeartbeatResponse response;
  GRADQ_RETURN_IF_ERROR(FromGrpc(stub_->Heartbeat(&context, request, &response)));
  return response;
}

absl::Status FakeWorker::WriteShard(const v1::Lease& lease, const std::string& bytes,
                                    const std::string& sha256) {
  grpc::ClientContext context;
  SetDeadline(context, kDeadline);
  v1::WriteShardResponse response;
  const auto writer = stub_->WriteShard(&context, &response);
  v1::WriteShardRequest request;
  request.set_session(session_);
  request.set_task(lease.task());
  request.set_attempt(lease.attempt());
  request.set_sha256(sha256);
  request.set_size(static_cast<int64_t>(bytes.size()));
  bool open = writer->Write(request);
  request.Clear();
  for (size_t at = 0; open && at < bytes.size(); at += 4096) {
    request.set_data(bytes.substr(at, 4096));
    open = writer->Write(request);
  }
  writer->WritesDone();
  return FromGrpc(writer->Finish());
}

absl::Status FakeWorker::Finish(const v1::Lease& lease, const v1::TaskResult& result,
                                v1::FinishTaskRequest::Outcome outcome) {
  v1::FinishTaskRequest request;
  request.set_session(session_);
  request.set_task(lease.task());
  request.set_attempt(lease.attempt());
  request.set_outcome(outcome);
  *request.mutable_result() = result;
  grpc::ClientContext context;
  SetDeadline(context, kDeadline);
  v1::FinishTaskResponse response;
  return FromGrpc(stub_->FinishTask(&context, request, &response));
}

absl::StatusOr<std::unique_ptr<ReadableFolder>> FakeWorker::OpenModel(const std::string& job) {
  const auto fetch = [this, job](const std::string& file, int64_t offset, int64_t length,
                                 absl::FunctionRef<absl::Status(const v1::FileChunk&)> receive) {
    v1::ReadModelRequest request;
    request.set_session(session_);
    request.set_job(job);
    request.set_file(file);
    request.set_offset(offset);
    request.set_length(length);
    grpc::ClientContext context;
    SetDeadline(context, kDeadline);
    const auto reader = stub_->ReadModel(&context, request);
    v1::FileChunk chunk;
    while (reader->Read(&chunk)) {
      if (absl::Status status = receive(chunk); !status.ok()) return status;
    }
    return FromGrpc(reader->Finish());
  };
  return OpenRemoteFolder(StrCat("coordinator:", job), fetch);
}

absl::StatusOr<v1::TaskResult> FakeWorker::Solve(const v1::Lease& lease) {
  GRADQ_ASSIGN_OR_RETURN(auto folder, OpenModel(lease.job().name()));
  GRADQ_ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(std::move(folder)));
  const std::string& name = lease.spec().solve_linear().linear();
  GRADQ_ASSIGN_OR_RETURN(const TensorInfo info, checkpoint->Find(name + ".weight"));
  GRADQ_ASSIGN_OR_RETURN(const auto weights, checkpoint->ReadFloat32(name + ".weight"));
  const v1::Recipe& recipe = lease.job().spec().recipe();
  std::vector<int> widths = {recipe.bits()};
  if (recipe.has_average_bits()) widths = {2, 3, 4};
  v1::TaskResult result;
  for (const int bits : widths) {
    QuantizedLinear linear =
        Round(name, recipe.method(), bits, weights, info.shape[0], info.shape[1]);
    linear.record.predicted_loss_increase = PriceOf(bits);
    GRADQ_RETURN_IF_ERROR(Validate(linear));
    const std::string bytes = SerializeShard(linear);
    GRADQ_RETURN_IF_ERROR(WriteShard(lease, bytes, Sha256Hex(bytes)));
    v1::ShardSummary* shard = result.add_shards();
    shard->set_linear(name);
    shard->set_sha256(Sha256Hex(bytes));
    shard->set_bytes(static_cast<int64_t>(bytes.size()));
    shard->set_method(linear.record.method);
    shard->set_bits(linear.bits);
    shard->set_objective_initial(2.0);
    shard->set_objective_final(1.0);
    shard->set_predicted_loss_increase(PriceOf(bits));
    shard->set_average_bits(linear.average_bits());
    shard->set_weights(linear.weights());
    shard->set_shrinkage(1);
  }
  return result;
}

absl::Status FakeWorker::Work(const v1::Lease& lease) {
  v1::TaskResult result;
  if (lease.spec().has_solve_linear()) {
    GRADQ_ASSIGN_OR_RETURN(result, Solve(lease));
  } else if (lease.spec().has_score_linear()) {
    result = Score(lease.spec().score_linear().linear());
  } else if (lease.spec().has_run_stage() && lease.spec().run_stage().loss()) {
    result.set_loss_sum(350.0);
    result.set_loss_tokens(100);
    const v1::RoundPlan& round = lease.job().plan().rounds(lease.spec().run_stage().round());
    for (const v1::RoundPlan::Node& node : round.nodes())
      result.add_node_loss_sum(350 + kLossOfPath * node.t());
  } else if (lease.spec().has_validate()) {
    result.mutable_comparison()->set_perplexity(30.0);
    result.mutable_comparison()->set_reference_perplexity(29.0);
    result.mutable_comparison()->set_kl(0.03);
    result.mutable_comparison()->set_top1_agreement(0.9);
    result.mutable_comparison()->set_tokens(1000);
  }
  return Finish(lease, result);
}

absl::Status FakeWorker::WorkUntilIdle(absl::Duration wait) {
  while (true) {
    GRADQ_ASSIGN_OR_RETURN(const std::optional<v1::Lease> lease, Lease(wait));
    if (!lease.has_value()) return absl::OkStatus();
    GRADQ_RETURN_IF_ERROR(Work(*lease));
  }
}

}  // namespace gradq
