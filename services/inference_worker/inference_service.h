#pragma once

// InferenceService: perplexity, comparison and generation with models below --model-root. Calls run
// on RPC threads, which only wait for the compute thread, tokenize, and send. A call whose client
// is gone stops at the next batch or token.

#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gradq/v1/inference_service.grpc.pb.h"
#include "services/inference_worker/compute_thread.h"
#include "services/inference_worker/model_root.h"
#include "services/inference_worker/model_store.h"

namespace gradq {

class InferenceService : public v1::InferenceService::Service {
 public:
  // `compute` must outlive this. Keeps at most `max_models` models, at least the two of a
  // comparison.
  InferenceService(ModelRoot root, size_t max_models, ComputeThread* compute);

  // Refuses new calls (UNAVAILABLE) and returns when none runs any more, at most after `grace`. Any
  // thread, once.
  void Drain(absl::Duration grace);

  grpc::Status LoadModel(grpc::ServerContext* context, const v1::LoadModelRequest* request,
                         v1::LoadModelResponse* response) override;
  grpc::Status Score(grpc::ServerContext* context, const v1::ScoreRequest* request,
                     v1::ScoreResponse* response) override;
  grpc::Status Compare(grpc::ServerContext* context, const v1::CompareRequest* request,
                       v1::CompareResponse* response) override;
  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override;

 private:
  // Runs one call unless the service drains.
  grpc::Status Serve(absl::FunctionRef<absl::Status()> call);
  absl::Status LoadModel(const v1::LoadModelRequest& request, v1::LoadModelResponse* response);
  absl::Status Score(grpc::ServerContext* context, const v1::ScoreRequest& request,
                     v1::ScoreResponse* response);
  absl::Status Compare(grpc::ServerContext* context, const v1::CompareRequest& request,
                       v1::CompareResponse* response);
  absl::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest& request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer);
  absl::StatusOr<std::shared_ptr<ServedModel>> Find(const std::string& model);

  const ModelRoot root_;
  ComputeThread* const compute_;
  ModelStore store_;  // compute thread

  std::mutex mutex_;
  std::condition_variable ended_;
  bool draining_ = false;
  int running_ = 0;
};

}  // namespace gradq
