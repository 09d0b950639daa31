#include "services/inference_worker/inference_service.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/inference/sampler.h"
#include "lib/inference/scoring.h"
#include "services/inference_worker/text_stream.h"
#include "services/rpc/status.h"

namespace gradq {
namespace {

constexpr int kDefaultMaxTokens = 128;

// Windows of a text for a model, refused before anything is computed.
absl::StatusOr<std::vector<int32_t>> TextWindows(const ServedModel& model, const std::string& text,
                                                 int length, int max_sequences) {
  if (length < 2) {
    return absl::InvalidArgumentError(StrCat("window length must be at least 2: ", length));
  }
  if (length > model.model->geometry().max_positions) {
    return absl::InvalidArgumentError(StrCat("window is longer than the model's positions: ",
                                             length, ", ", model.model->geometry().max_positions));
  }
  if (max_sequences < 0) {
    return absl::InvalidArgumentError(
        StrCat("number of windows must not be negative: ", max_sequences));
  }
  if (text.empty()) return absl::InvalidArgumentError("text is empty");
  GRADQ_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, model.tokenizer->Encode(text));
  return CutWindows(ids, length, max_sequences, model.model->geometry().vocab_size);
}

absl::StatusOr<Sampling> ReadSampling(const v1::GenerateRequest& request) {
  Sampling sampling = {.temperature = request.temperature(),
                       .top_p = request.top_p() == 0 ? 1 : request.top_p(),
                       .seed = request.seed()};
  if (!(sampling.temperature >= 0) || std::isinf(sampling.temperature)) {
    return absl::InvalidArgumentError(
        StrCat("temperature must be a number and not negative: ", request.temperature()));
  }
  if (!(sampling.top_p > 0 && sampling.top_p <= 1)) {
    return absl::InvalidArgumentError(StrCat("top_p must be in (0, 1]: ", request.top_p()));
  }
  return sampling;
}

}  // namespace

InferenceService::InferenceService(ModelRoot root, size_t max_models, ComputeThread* compute)
    : root_(std::move(root)),
      compute_(compute),
      store_(compute->load_options(), std::max<size_t>(2, max_models)) {}

absl::StatusOr<std::shared_ptr<ServedModel>> InferenceService::Find(const std::string& model) {
  GRADQ_ASSIGN_OR_RETURN(const std::string path, root_.Resolve(model));
  absl::StatusOr<std::shared_ptr<ServedModel>> found;
  compute_->Run([&] { found = store_.Get(path); });
  return found;
}

grpc::Status InferenceService::Serve(absl::FunctionRef<absl::Status()> call) {
  {
    std::lock_guard lock(mutex_);
    if (draining_) return ToGrpc(absl::UnavailableError("the server is shutting down"));
    ++running_;
  }
  const absl::Status status = call();
  std::lock_guard lock(mutex_);
  --running_;
  ended_.notify_all();
  return ToGrpc(status);
}

void InferenceService::Drain(absl::Duration grace) {
  std::unique_lock lock(mutex_);
  draining_ = true;
  ended_.wait_for(lock, absl::ToChronoMilliseconds(grace), [&] { return running_ == 0; });
}

absl::Status InferenceService::LoadModel(const v1::LoadModelRequest& request,
                                         v1::LoadModelResponse* response) {
  GRADQ_ASSIGN_OR_RETURN(const std::shared_ptr<ServedModel> model, Find(request.model()));
  response->set_model(model->path);
  const ModelMemory memory = model->model->memory();
  response->set_weight_bytes(memory.weights());
  response->set_quantized(model->model->quantized());
  response->set_device(compute_->device());
  response->set_linear_bytes(memory.linears);
  response->set_kept_bytes(memory.kept);
  response->set_cache_bytes_per_token(memory.cache_per_token);
  response->set_scratch_bytes(memory.scratch);
  return absl::OkStatus();
}

absl::Status InferenceService::Score(grpc::ServerContext* context, const v1::ScoreRequest& request,
                                     v1::ScoreResponse* response) {
  GRADQ_ASSIGN_OR_RETURN(const std::shared_ptr<ServedModel> model, Find(request.model()));
  GRADQ_ASSIGN_OR_RETURN(
      const std::vector<int32_t> windows,
      TextWindows(*model, request.text(), request.length(), request.max_sequences()));
  absl::StatusOr<gradq::Score> score;
  compute_->Run([&] {
    score = ScoreWindows(*model->model, windows, request.length(),
                         [&] { return context->IsCancelled(); });
  });
  GRADQ_RETURN_IF_ERROR(score.status());
  response->set_perplexity(score->perplexity);
  response->set_tokens(score->tokens);
  response->set_seconds(score->seconds);
  return absl::OkStatus();
}

absl::Status InferenceService::Compare(grpc::ServerContext* context,
                                       const v1::CompareRequest& request,
                                       v1::CompareResponse* response) {
  GRADQ_ASSIGN_OR_RETURN(const std::shared_ptr<ServedModel> reference, Find(request.reference()));
  GRADQ_ASSIGN_OR_RETURN(const std::shared_ptr<ServedModel> model, Find(request.model()));
  GRADQ_ASSIGN_OR_RETURN(
      const std::vector<int32_t> windows,
      TextWindows(*reference, request.text(), request.length(), request.max_sequences()));
  absl::StatusOr<ComparisonResult> result;
  compute_->Run([&] {
    result = CompareWindows(*model->model, *reference->model, windows, request.length(),
                            compute_->pool(), [&] { return context->IsCancelled(); });
  });
  GRADQ_RETURN_IF_ERROR(result.status());
  v1::Comparison* comparison = response->mutable_comparison();
  comparison->set_perplexity(result->perplexity);
  comparison->set_reference_perplexity(result->reference_perplexity);
  comparison->set_kl(result->kl);
  comparison->set_top1_agreement(result->top1_agreement);
  comparison->set_tokens(result->tokens);
  comparison->set_seconds(result->seconds);
  return absl::OkStatus();
}

absl::Status InferenceService::Generate(grpc::ServerContext* context,
                                        const v1::GenerateRequest& request,
                                        grpc::ServerWriter<v1::GenerateResponse>* writer) {
  GRADQ_ASSIGN_OR_RETURN(const Sampling sampling, ReadSampling(request));
  if (request.max_tokens() < 0) {
    return absl::InvalidArgumentError(
        StrCat("max_tokens must not be negative: ", request.max_tokens()));
  }
  const int max_tokens = request.max_tokens() == 0 ? kDefaultMaxTokens : request.max_tokens();
  GRADQ_ASSIGN_OR_RETURN(const std::shared_ptr<ServedModel> served, Find(request.model()));
  Model& model = *served->model;
  GRADQ_ASSIGN_OR_RETURN(std::vector<int32_t> next, served->tokenizer->Encode(request.prompt()));
  if (next.empty()) return absl::InvalidArgumentError("prompt has no tokens");

  TextStream text(*served->tokenizer, next);
  std::unique_ptr<Sequence> sequence;
  const absl::Cleanup freed = [&] { compute_->Run([&] { sequence.reset(); }); };
  for (int step = 0;; ++step) {
    if (context->IsCancelled()) return absl::CancelledError("the client is gone");
    absl::StatusOr<std::vector<float>> logits;
    // The sequence lives and dies on the compute thread, as all tensors do; one token at a time
    // lets several generations take turns.
    compute_->Run([&] {
      if (sequence == nullptr) sequence = model.NewSequence();
      logits = model.Decode(*sequence, next);
    });
    GRADQ_RETURN_IF_ERROR(logits.status());
    const int32_t token = SampleToken(*logits, sampling, static_cast<uint64_t>(step));
    v1::GenerateResponse response;
    response.set_token(token);
    const bool ended = std::find(served->end_tokens.begin(), served->end_tokens.end(), token) !=
                       served->end_tokens.end();
    if (ended) {
      response.set_finish_reason("end_of_text");
    } else if (step + 1 == max_tokens) {
      response.set_finish_reason("max_tokens");
    } else if (sequence->tokens() == model.geometry().max_positions) {
      response.set_finish_reason("context");
    }
    if (!ended) {
      GRADQ_ASSIGN_OR_RETURN(*response.mutable_text(), text.Push(token));
    }
    const bool last = !response.finish_reason().empty();
    if (last) {
      GRADQ_ASSIGN_OR_RETURN(const std::string rest, text.Finish());
      response.mutable_text()->append(rest);
    }
    if (!writer->Write(response)) return absl::CancelledError("the client is gone");
    if (last) return absl::OkStatus();
    next = {token};
  }
}

grpc::Status InferenceService::LoadModel(grpc::ServerContext*, const v1::LoadModelRequest* request,
                                         v1::LoadModelResponse* response) {
  return Serve([&] { return LoadModel(*request, response); });
}

grpc::Status InferenceService::Score(grpc::ServerContext* context, const v1::ScoreRequest* request,
                                     v1::ScoreResponse* response) {
  return Serve([&] { return Score(context, *request, response); });
}

grpc::Status InferenceService::Compare(grpc::ServerContext* context,
                                       const v1::CompareRequest* request,
                                       v1::CompareResponse* response) {
  return Serve([&] { return Compare(context, *request, response); });
}

grpc::Status InferenceService::Generate(grpc::ServerContext* context,
                                        const v1::GenerateRequest* request,
                                        grpc::ServerWriter<v1::GenerateResponse>* writer) {
  return Serve([&] { return Generate(context, *request, writer); });
}

}  // namespace gradq
