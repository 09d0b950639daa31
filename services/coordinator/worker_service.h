#pragma once

// WorkerService over the callback API: transport only. LeaseTask waits in the coordinator's
// notifier.

#include "gradq/v1/worker_service.grpc.pb.h"
#include "services/coordinator/coordinator.h"

namespace gradq {

class WorkerServiceImpl final : public v1::WorkerService::CallbackService {
 public:
  // `coordinator` must outlive the server this is registered with.
  explicit WorkerServiceImpl(Coordinator* coordinator) : coordinator_(*coordinator) {}

  grpc::ServerUnaryReactor* RegisterWorker(grpc::CallbackServerContext* context,
                                           const v1::RegisterWorkerRequest* request,
                                           v1::RegisterWorkerResponse* response) override;
  grpc::ServerUnaryReactor* LeaseTask(grpc::CallbackServerContext* context,
                                      const v1::LeaseTaskRequest* request,
                                      v1::LeaseTaskResponse* response) override;
  grpc::ServerUnaryReactor* Heartbeat(grpc::CallbackServerContext* context,
                                      const v1::HeartbeatRequest* request,
                                      v1::HeartbeatResponse* response) override;
  grpc::ServerUnaryReactor* FinishTask(grpc::CallbackServerContext* context,
                                       const v1::FinishTaskRequest* request,
                                       v1::FinishTaskResponse* response) override;
  grpc::ServerWriteReactor<v1::FileChunk>* ReadModel(grpc::CallbackServerContext* context,
                                                     const v1::ReadModelRequest* request) override;
  grpc::ServerWriteReactor<v1::FileChunk>* ReadShard(grpc::CallbackServerContext* context,
                                                     const v1::ReadShardRequest* request) override;
  grpc::ServerReadReactor<v1::WriteShardRequest>* WriteShard(
      grpc::CallbackServerContext* context, v1::WriteShardResponse* response) override;
  grpc::ServerUnaryReactor* DrainWorker(grpc::CallbackServerContext* context,
                                        const v1::DrainWorkerRequest* request,
                                        v1::DrainWorkerResponse* response) override;

 private:
  Coordinator& coordinator_;
};

}  // namespace gradq
