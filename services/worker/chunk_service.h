#pragma once

// Serves the chunk store of this worker to other workers. Callback API: reads that wait for a chunk
// not yet made hold no thread; spooled chunks are read on two threads of the service, never on
// gRPC's.

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "gradq/v1/chunk_service.grpc.pb.h"
#include "lib/pipeline/chunk_store.h"

namespace gradq {

inline constexpr std::string_view kReadTokenKey = "gradq-read-token";
inline constexpr size_t kPieceBytes = size_t{1} << 20;

StreamKey FromProto(const v1::StreamName& name);
v1::StreamName ToProto(const StreamKey& key);

class ChunkService final : public v1::ChunkService::CallbackService {
 public:
  // `store` must outlive the service. Before the gRPC server is shut down call store->Shutdown(),
  // so that waiting reads end; destroy the service after the server.
  explicit ChunkService(ChunkStore* store);
  ~ChunkService() override;

  // Readers of `job` may show `token` from now on (several at a time: leases and heartbeats
  // overlap).
  void AcceptToken(const std::string& job, const std::string& token);
  void ForgetJob(const std::string& job);

  grpc::ServerWriteReactor<v1::ChunkPiece>* ReadChunks(
      grpc::CallbackServerContext* context, const v1::ReadChunksRequest* request) override;

 private:
  class Call;

  bool Accepts(const std::string& job, std::string_view token) const;
  // Runs `work` on one of the service's threads; dropped after the destructor began.
  void Post(std::function<void()> work);
  void Serve();

  ChunkStore* const store_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;
  bool ended_ = false;
  std::map<std::string, std::set<std::string>> tokens_;
  std::vector<std::thread> threads_;
};

}  // namespace gradq
