#pragma once

// A WorkerService made of answers that the test decides. Members are read and set under `mutex`
// while a session runs.

#include <grpcpp/server_context.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "gradq/v1/worker_service.grpc.pb.h"
#include "lib/base/digest.h"
#include "lib/base/files.h"
#include "lib/base/strings.h"
#include "services/rpc/file_stream.h"
#include "services/rpc/status.h"

namespace gradq {

class FakeCoordinator final : public v1::WorkerService::Service {
 public:
  grpc::Status RegisterWorker(grpc::ServerContext*, const v1::RegisterWorkerRequest* request,
                              v1::RegisterWorkerResponse* response) override {
    std::lock_guard lock(mutex);
    if (refuse) return {grpc::StatusCode::INVALID_ARGUMENT, "name not allowed"};
    registered.push_back(request->name());
    session = StrCat("s", registered.size());
    response->set_session(session);
    response->mutable_heartbeat_interval()->set_nanos(20'000'000);
    response->mutable_lease_ttl()->set_nanos(300'000'000);
    changed.notify_all();
    return grpc::Status::OK;
  }
  grpc::Status LeaseTask(grpc::ServerContext* context, const v1::LeaseTaskRequest* request,
                         v1::LeaseTaskResponse* response) override {
    std::unique_lock lock(mutex);
    for (int i = 0; i < 50 && !context->IsCancelled(); ++i) {
      if (request->session() != session) return {grpc::StatusCode::NOT_FOUND, "session"};
      if (!leases.empty()) {
        *response->mutable_lease() = leases.front();
        leases.pop_front();
        return grpc::Status::OK;
      }
      changed.wait_for(lock, std::chrono::milliseconds(10));
    }
    return grpc::Status::OK;
  }
  grpc::Status Heartbeat(grpc::ServerContext*, const v1::HeartbeatRequest* request,
                         v1::HeartbeatResponse* response) override {
    std::lock_guard lock(mutex);
    ++heartbeats;
    if (silent) return {grpc::StatusCode::UNAVAILABLE, "away"};
    if (request->session() != session) return {grpc::StatusCode::NOT_FOUND, "session"};
    for (const auto& running : request->running()) {
      progress = running;
      if (revoke) *response->add_revoked() = running;
    }
    if (!token.empty()) (*response->mutable_read_tokens())["jobs/1"] = token;
    for (const v1::StreamName& stream : freed) *response->add_freed() = stream;
    if (!freed.empty()) response->set_order(1);
    acknowledged = request->acknowledged_order();
    response->set_drain(drain);
    return grpc::Status::OK;
  }
  grpc::Status FinishTask(grpc::ServerContext*, const v1::FinishTaskRequest* request,
                          v1::FinishTaskResponse*) override {
    std::lock_guard lock(mutex);
    if (lost_answers > 0) {
      --lost_answers;
      return {grpc::StatusCode::UNAVAILABLE, "away"};
    }
    finished.push_back(*request);
    changed.notify_all();
    if (fenced) return {grpc::StatusCode::ABORTED, "fenced"};
    return grpc::Status::OK;
  }
  grpc::Status WriteShard(grpc::ServerContext*, grpc::ServerReader<v1::WriteShardRequest>* reader,
                          v1::WriteShardResponse* response) override {
    v1::WriteShardRequest request;
    if (!reader->Read(&request)) return {grpc::StatusCode::INVALID_ARGUMENT, "empty"};
    const std::string sha256 = request.sha256();
    {
      std::lock_guard lock(mutex);
      if (lost_answers > 0) {
        --lost_answers;
        return {grpc::StatusCode::UNAVAILABLE, "away"};
      }
      if (fenced) return {grpc::StatusCode::ABORTED, "fenced"};
    }
    std::string bytes = request.data();
    while (reader->Read(&request)) bytes += request.data();
    if (Sha256Hex(bytes) != sha256) return {grpc::StatusCode::DATA_LOSS, "digest"};
    std::lock_guard lock(mutex);
    shards.push_back(bytes);
    response->set_sha256(sha256);
    return grpc::Status::OK;
  }
  // Small pieces, and the connection breaks after every piece while answers get lost.
  grpc::Status ReadShard(grpc::ServerContext*, const v1::ReadShardRequest* request,
                         grpc::ServerWriter<v1::FileChunk>* writer) override {
    std::unique_lock lock(mutex);
    ++shard_reads;
    for (const std::string& shard : shards) {
      if (Sha256Hex(shard) != request->sha256()) continue;
      for (int64_t offset = request->offset(); offset < static_cast<int64_t>(shard.size());
           offset += piece_bytes) {
        v1::FileChunk chunk;
        chunk.set_offset(offset);
        chunk.set_total_size(static_cast<int64_t>(shard.size()));
        chunk.set_data(shard.substr(static_cast<size_t>(offset), static_cast<size_t>(piece_bytes)));
        chunk.set_xxh3(Xxh3(chunk.data()) + (damage_shards ? 1 : 0));
        writer->Write(chunk);
        if (lost_answers > 0) {
          --lost_answers;
          return {grpc::StatusCode::UNAVAILABLE, "away"};
        }
      }
      return grpc::Status::OK;
    }
    return {grpc::StatusCode::NOT_FOUND, "no such shard"};
  }
  grpc::Status ReadModel(grpc::ServerContext*, const v1::ReadModelRequest* request,
                         grpc::ServerWriter<v1::FileChunk>* writer) override {
    if (model != nullptr && request->file().empty()) {
      SendListing(*model, [&](const v1::FileChunk& chunk) {
        return writer->Write(chunk);
      }).IgnoreError();
      return grpc::Status::OK;
    }
    const auto known = files.find(request->file());
    if (known == files.end()) {
      if (model == nullptr) return {grpc::StatusCode::NOT_FOUND, "no such file"};
      auto file = model->Open(request->file());
      if (!file.ok()) return ToGrpc(file.status());
      return ToGrpc(SendFile(**file, request->file(), request->offset(), request->length(),
                             [&](const v1::FileChunk& chunk) { return writer->Write(chunk); }));
    }
    // Small pieces, and the connection breaks after every piece while answers get lost.
    const std::string& text = known->second;
    const int64_t end = request->length() == 0 ? static_cast<int64_t>(text.size())
                                               : request->offset() + request->length();
    for (int64_t offset = request->offset(); offset < end; offset += piece_bytes) {
      v1::FileChunk chunk;
      chunk.set_file(request->file());
      chunk.set_offset(offset);
      chunk.set_total_size(static_cast<int64_t>(text.size()));
      chunk.set_data(text.substr(static_cast<size_t>(offset),
                                 static_cast<size_t>(std::min(piece_bytes, end - offset))));
      chunk.set_xxh3(Xxh3(chunk.data()));
      writer->Write(chunk);
      std::lock_guard lock(mutex);
      if (lost_answers > 0) {
        --lost_answers;
        return {grpc::StatusCode::UNAVAILABLE, "away"};
      }
    }
    return grpc::Status::OK;
  }
  grpc::Status DrainWorker(grpc::ServerContext*, const v1::DrainWorkerRequest* request,
                           v1::DrainWorkerResponse*) override {
    std::lock_guard lock(mutex);
    drained.push_back(request->session());
    return grpc::Status::OK;
  }

  template <typename Predicate>
  void Wait(Predicate predicate) {
    std::unique_lock lock(mutex);
    ASSERT_TRUE(changed.wait_for(lock, std::chrono::seconds(20), predicate));
  }
  void Give(const std::string& task, int64_t attempt) {
    v1::Lease lease;
    lease.set_task(task);
    lease.set_attempt(attempt);
    Give(lease);
  }
  void Give(const v1::Lease& lease) {
    std::lock_guard lock(mutex);
    leases.push_back(lease);
    changed.notify_all();
  }

  std::mutex mutex;
  std::condition_variable changed;
  std::string session;
  bool refuse = false, silent = false, revoke = false, fenced = false, drain = false;
  int lost_answers = 0;
  int shard_reads = 0;
  bool damage_shards = false;
  int heartbeats = 0;
  int64_t acknowledged = 0;
  std::string token;
  // What ReadModel serves: small files, and a folder.
  std::map<std::string, std::string> files;
  int64_t piece_bytes = 2;
  std::unique_ptr<ReadableFolder> model;
  std::vector<v1::StreamName> freed;
  std::deque<v1::Lease> leases;
  v1::AttemptProgress progress;
  std::vector<std::string> registered, drained, shards;
  std::vector<v1::FinishTaskRequest> finished;
};

}  // namespace gradq
