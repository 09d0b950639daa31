#include "services/inference_worker/validate_runner.h"

#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "lib/base/clock.h"
#include "lib/base/digest.h"
#include "lib/base/logging.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/format/checkpoint.h"
#include "lib/format/inspect.h"
#include "lib/inference/model.h"
#include "lib/inference/scoring.h"
#include "services/rpc/channel.h"
#include "services/rpc/status.h"

namespace gradq {
namespace {

constexpr absl::Duration kPatience = absl::Minutes(1);
constexpr std::string_view kArtifactRecord = "gradq.json";
constexpr int64_t kRecordLimit = int64_t{256} << 20;

// Ranged reads of a job's artifact. The RPC knows no end of a range: what is beyond is not awaited.
absl::Status DownloadRange(v1::JobService::Stub& jobs, const std::string& job,
                           const std::string& file, int64_t offset, int64_t length,
                           absl::FunctionRef<absl::Status(const v1::FileChunk&)> receive) {
  v1::DownloadArtifactRequest request;
  request.set_name(job);
  request.set_file(file);
  request.set_offset(offset);
  grpc::ClientContext context;
  SetDeadline(context, kPatience);
  const auto stream = jobs.DownloadArtifact(&context, request);
  v1::FileChunk chunk;
  int64_t left = length;
  while (stream->Read(&chunk)) {
    const auto bytes = static_cast<int64_t>(chunk.data().size());
    if (length > 0 && bytes >= left) {
      if (Xxh3(chunk.data()) != chunk.xxh3()) {
        return absl::DataLossError(
            StrCat("checksum of a file piece is wrong: ", file, ", offset ", chunk.offset()));
      }
      chunk.mutable_data()->resize(static_cast<size_t>(left));
      chunk.set_xxh3(Xxh3(chunk.data()));
      context.TryCancel();
      return receive(chunk);
    }
    GRADQ_RETURN_IF_ERROR(receive(chunk));
    left -= bytes;
  }
  return FromGrpc(stream->Finish());
}

// A range is resumed where it broke off.
FetchRange ArtifactReader(std::shared_ptr<v1::JobService::Stub> jobs, std::string job,
                          const Attempt* attempt) {
  return [jobs, job, attempt](const std::string& file, int64_t offset, int64_t length,
                              absl::FunctionRef<absl::Status(const v1::FileChunk&)> receive) {
    int64_t done = 0;
    absl::Status refused;
    const absl::Status status = RetryUnavailable(
        kPatience, [&] { return attempt->stopped(); },
        [&] {
          if (file.empty() && done > 0) return absl::DataLossError("listing broke off");
          return DownloadRange(*jobs, job, file, offset + done, length == 0 ? 0 : length - done,
                               [&](const v1::FileChunk& chunk) {
                                 refused = receive(chunk);
                                 done +=
                                     file.empty() ? 1 : static_cast<int64_t>(chunk.data().size());
                                 return refused;
                               });
        });
    return refused.ok() ? status : refused;
  };
}

// True when both folders hold the same gradq.json, which carries sizes and digests of all files,
// and the local files are as it says.
bool HoldsArtifact(const ReadableFolder& local, const ReadableFolder& remote) {
  const auto ours = local.ReadAll(kArtifactRecord, kRecordLimit);
  const auto theirs = remote.ReadAll(kArtifactRecord, kRecordLimit);
  return ours.ok() && theirs.ok() && *ours == *theirs && VerifyArtifactFiles(local).ok();
}

absl::StatusOr<std::vector<int32_t>> ReadTokens(const FetchRange& read, const std::string& file,
                                                int64_t count) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  const std::span<std::byte> bytes = std::as_writable_bytes(std::span(tokens));
  size_t done = 0;
  GRADQ_RETURN_IF_ERROR(read(
      file, 0, static_cast<int64_t>(bytes.size()), [&](const v1::FileChunk& chunk) -> absl::Status {
        const std::string& data = chunk.data();
        if (Xxh3(data) != chunk.xxh3() || chunk.offset() != static_cast<int64_t>(done) ||
            data.size() > bytes.size() - done) {
          return absl::DataLossError(
              StrCat("evaluation tokens are damaged: ", file, ", offset ", done));
        }
        std::memcpy(bytes.data() + done, data.data(), data.size());
        done += data.size();
        return absl::OkStatus();
      }));
  if (done != bytes.size()) {
    return absl::DataLossError(
        StrCat("evaluation tokens end early: ", file, ", ", done, " of ", bytes.size(), " bytes"));
  }
  return tokens;
}

v1::FinishTaskRequest::Outcome OutcomeOf(const absl::Status& status, bool stopped) {
  if (stopped) return v1::FinishTaskRequest::STOPPED;
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kUnimplemented:
      return v1::FinishTaskRequest::FAILED_FATAL;
    case absl::StatusCode::kResourceExhausted:
      return v1::FinishTaskRequest::FAILED_WORKER;  // a machine with more memory can
    default:
      return v1::FinishTaskRequest::FAILED_RETRYABLE;
  }
}

}  // namespace

ValidateRunner::ValidateRunner(std::shared_ptr<grpc::Channel> jobs, ComputeThread* compute)
    : jobs_(v1::JobService::NewStub(std::move(jobs))), compute_(compute) {}

absl::StatusOr<std::unique_ptr<ReadableFolder>> ValidateRunner::OpenOriginal(
    const v1::JobContext& context) {
  absl::StatusOr<std::unique_ptr<ReadableFolder>> local = OpenLocalFolder(context.model_path());
  if (local.ok()) {
    GRADQ_ASSIGN_OR_RETURN(std::unique_ptr<ReadableFolder> again,
                           OpenLocalFolder(context.model_path()));
    const auto checkpoint = Checkpoint::Open(std::move(again));
    // A folder of the same name that holds another model is no error.
    if (checkpoint.ok() && (*checkpoint)->layout_digest() == context.model_digest()) {
      return local;
    }
  }
  LogInfo("original is read through the coordinator: ", context.model_path());
  return OpenRemoteFolder(StrCat(context.name(), ":", context.model_path()),
                          session_->ModelReader(context.name()));
}

absl::StatusOr<std::unique_ptr<ReadableFolder>> ValidateRunner::OpenArtifact(
    const Attempt& attempt) {
  const v1::JobContext& context = attempt.lease().job();
  GRADQ_ASSIGN_OR_RETURN(std::unique_ptr<ReadableFolder> remote,
                         OpenRemoteFolder(StrCat(context.name(), ":", context.artifact_path()),
                                          ArtifactReader(jobs_, context.name(), &attempt)));
  absl::StatusOr<std::unique_ptr<ReadableFolder>> local = OpenLocalFolder(context.artifact_path());
  if (local.ok() && HoldsArtifact(**local, *remote)) return local;
  LogInfo("artifact is read through the coordinator: ", context.artifact_path());
  return remote;
}

absl::StatusOr<v1::Comparison> ValidateRunner::Validate(Attempt& attempt) {
  const v1::JobContext& context = attempt.lease().job();
  const int64_t length = context.plan().length();
  const int64_t sequences = context.evaluation_sequences();
  if (context.evaluation_tokens().empty() || sequences <= 0 || length < 2) {
    return absl::InvalidArgumentError(
        StrCat("job has no evaluation windows: ", context.name(), ", ", sequences, " x ", length));
  }
  GRADQ_ASSIGN_OR_RETURN(const std::vector<int32_t> windows,
                         ReadTokens(session_->ModelReader(context.name()),
                                    context.evaluation_tokens(), sequences * length));
  GRADQ_ASSIGN_OR_RETURN(const std::unique_ptr<ReadableFolder> original, OpenOriginal(context));
  GRADQ_ASSIGN_OR_RETURN(const std::unique_ptr<ReadableFolder> artifact, OpenArtifact(attempt));

  absl::StatusOr<ComparisonResult> result = absl::UnknownError("did not run");
  compute_->Run([&] {
    result = [&]() -> absl::StatusOr<ComparisonResult> {
      const LoadOptions options = compute_->load_options();
      GRADQ_ASSIGN_OR_RETURN(const std::unique_ptr<Model> model, Model::Load(*artifact, options));
      if (attempt.stopped()) return absl::CancelledError(attempt.stop_reason());
      GRADQ_ASSIGN_OR_RETURN(const std::unique_ptr<Model> reference,
                             Model::Load(*original, options));
      return CompareWindows(*model, *reference, windows, length, compute_->pool(),
                            [&] { return attempt.stopped(); });
    }();
  });
  GRADQ_RETURN_IF_ERROR(result.status());
  v1::Comparison comparison;
  comparison.set_perplexity(result->perplexity);
  comparison.set_reference_perplexity(result->reference_perplexity);
  comparison.set_kl(result->kl);
  comparison.set_top1_agreement(result->top1_agreement);
  comparison.set_tokens(result->tokens);
  comparison.set_seconds(result->seconds);
  return comparison;
}

TaskOutcome ValidateRunner::Run(Attempt& attempt) {
  TaskOutcome outcome;
  if (!attempt.lease().spec().has_validate()) {
    outcome.outcome = v1::FinishTaskRequest::FAILED_FATAL;
    outcome.status = absl::InvalidArgumentError(
        StrCat("an inference worker validates only: ", attempt.lease().task()));
    return outcome;
  }
  const absl::StatusOr<v1::Comparison> comparison = Validate(attempt);
  if (!comparison.ok()) {
    outcome.outcome = OutcomeOf(comparison.status(), attempt.stopped());
    outcome.status = comparison.status();
    return outcome;
  }
  outcome.outcome = v1::FinishTaskRequest::SUCCEEDED;
  *outcome.result.mutable_comparison() = *comparison;
  outcome.result.set_compute_seconds(comparison->seconds());
  return outcome;
}

}  // namespace gradq
