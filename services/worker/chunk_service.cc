#include "services/worker/chunk_service.h"

#include <openssl/crypto.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "lib/base/digest.h"
#include "lib/base/strings.h"
#include "services/rpc/status.h"

namespace gradq {
namespace {

constexpr int kThreads = 2;

// Copies `size` bytes from `offset` of the concatenated tensors.
std::string Slice(const Chunk& chunk, int64_t offset, int64_t size) {
  std::string out;
  out.reserve(static_cast<size_t>(size));
  for (const HostTensor& tensor : chunk.tensors) {
    const auto bytes = static_cast<int64_t>(tensor.data.size);
    if (offset >= bytes) {
      offset -= bytes;
      continue;
    }
    const int64_t take = std::min(bytes - offset, size - static_cast<int64_t>(out.size()));
    out.append(reinterpret_cast<const char*>(tensor.data.data.get()) + offset,
               static_cast<size_t>(take));
    offset = 0;
    if (static_cast<int64_t>(out.size()) == size) break;
  }
  return out;
}

}  // namespace

StreamKey FromProto(const v1::StreamName& name) {
  return {name.job(), name.round(), name.task(), name.attempt(), name.lane()};
}

v1::StreamName ToProto(const StreamKey& key) {
  v1::StreamName name;
  name.set_job(key.job);
  name.set_round(key.round);
  name.set_task(key.task);
  name.set_attempt(key.attempt);
  name.set_lane(key.lane);
  return name;
}

// One ReadChunks call. Steps run on the service's threads; gRPC's threads only post the next one. A
// shared_ptr, because a waker in the store may outlive the call; gRPC's own claim is self_, dropped
// in OnDone.
class ChunkService::Call : public grpc::ServerWriteReactor<v1::ChunkPiece>,
                           public std::enable_shared_from_this<Call> {
 public:
  Call(ChunkService* service, const v1::ReadChunksRequest& request)
      : service_(service),
        key_(FromProto(request.stream())),
        index_(request.first_index()),
        left_(request.count() > 0 ? request.count() : -1) {}

  void Start() {
    self_ = shared_from_this();
    Schedule();
  }

  void OnWriteDone(bool ok) override {
    {
      std::lock_guard lock(mutex_);
      writing_ = false;
      if (!ok) cancelled_ = true;
    }
    Schedule();
  }
  void OnCancel() override {
    {
      std::lock_guard lock(mutex_);
      cancelled_ = true;
    }
    Schedule();
  }
  void OnDone() override { self_.reset(); }

 private:
  void Schedule() {
    service_->Post([call = shared_from_this()] { call->Step(); });
  }

  void Step() {
    std::lock_guard lock(mutex_);
    if (finished_ || writing_) return;
    if (cancelled_) return End(absl::CancelledError("reader is gone"));
    if (!chunk_.has_value()) {
      if (left_ == 0) return End(absl::OkStatus());
      absl::StatusOr<std::optional<Chunk>> chunk = service_->store_->TryGet(key_, index_);
      if (absl::IsOutOfRange(chunk.status())) return End(absl::OkStatus());
      if (!chunk.ok()) return End(chunk.status());
      if (!chunk->has_value()) {
        service_->store_->WhenReady(key_, index_, [weak = weak_from_this()] {
          if (auto call = weak.lock()) call->Schedule();
        });
        return;
      }
      chunk_ = **std::move(chunk);
      offset_ = 0;
    }
    WritePiece();
  }

  void WritePiece() {
    const int64_t size = chunk_->bytes();
    const int64_t take = std::min<int64_t>(kPieceBytes, size - offset_);
    piece_.Clear();
    piece_.set_index(index_);
    if (offset_ == 0) {
      v1::ChunkHeader* header = piece_.mutable_header();
      header->set_size(size);
      for (const HostTensor& tensor : chunk_->tensors) {
        v1::TensorHeader* out = header->add_tensors();
        out->set_name(tensor.name);
        out->set_dtype(tensor.dtype);
        for (const int64_t extent : tensor.shape) out->add_shape(extent);
      }
    }
    piece_.set_data(Slice(*chunk_, offset_, take));
    piece_.set_xxh3(Xxh3(piece_.data()));
    offset_ += take;
    if (offset_ == size) {
      piece_.set_last(true);
      piece_.set_sha256(chunk_->sha256);
      chunk_.reset();
      ++index_;
      if (left_ > 0) --left_;
    }
    writing_ = true;
    StartWrite(&piece_);
  }

  void End(const absl::Status& status) {
    finished_ = true;
    chunk_.reset();
    Finish(ToGrpc(status));
  }

  ChunkService* const service_;
  const StreamKey key_;
  std::shared_ptr<Call> self_;
  std::mutex mutex_;
  int index_;
  int left_;  // chunks still wanted; -1: to the end
  std::optional<Chunk> chunk_;
  int64_t offset_ = 0;
  v1::ChunkPiece piece_;
  bool writing_ = false;
  bool cancelled_ = false;
  bool finished_ = false;
};

ChunkService::ChunkService(ChunkStore* store) : store_(store) {
  for (int i = 0; i < kThreads; ++i) threads_.emplace_back([this] { Serve(); });
}

ChunkService::~ChunkService() {
  {
    std::lock_guard lock(mutex_);
    ended_ = true;
    wake_.notify_all();
  }
  for (std::thread& thread : threads_) thread.join();
}

void ChunkService::Post(std::function<void()> work) {
  std::lock_guard lock(mutex_);
  if (ended_) return;
  queue_.push_back(std::move(work));
  wake_.notify_one();
}

void ChunkService::Serve() {
  while (true) {
    std::function<void()> work;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return ended_ || !queue_.empty(); });
      if (queue_.empty()) return;
      work = std::move(queue_.front());
      queue_.pop_front();
    }
    work();
  }
}

void ChunkService::AcceptToken(const std::string& job, const std::string& token) {
  if (token.empty()) return;
  std::lock_guard lock(mutex_);
  tokens_[job].insert(token);
}

void ChunkService::ForgetJob(const std::string& job) {
  std::lock_guard lock(mutex_);
  tokens_.erase(job);
}

bool ChunkService::Accepts(const std::string& job, std::string_view token) const {
  std::lock_guard lock(mutex_);
  const auto it = tokens_.find(job);
  if (it == tokens_.end()) return false;
  // Compared in constant time: the token is a secret.
  return std::any_of(it->second.begin(), it->second.end(), [&](const std::string& known) {
    return known.size() == token.size() &&
           CRYPTO_memcmp(known.data(), token.data(), known.size()) == 0;
  });
}

grpc::ServerWriteReactor<v1::ChunkPiece>* ChunkService::ReadChunks(
    grpc::CallbackServerContext* context, const v1::ReadChunksRequest* request) {
  class Refusal : public grpc::ServerWriteReactor<v1::ChunkPiece> {
   public:
    explicit Refusal(const absl::Status& status) { Finish(ToGrpc(status)); }
    void OnDone() override { delete this; }
  };
  const auto& metadata = context->client_metadata();
  const auto token = metadata.find(grpc::string_ref(kReadTokenKey.data(), kReadTokenKey.size()));
  if (token == metadata.end() ||
      !Accepts(request->stream().job(), {token->second.data(), token->second.size()})) {
    return new Refusal(absl::PermissionDeniedError(
        StrCat("read token not accepted for the streams of ", request->stream().job())));
  }
  if (request->first_index() < 0 || request->count() < 0) {
    return new Refusal(absl::InvalidArgumentError(
        StrCat("chunk range out of range: ", request->first_index(), ", ", request->count())));
  }
  auto call = std::make_shared<Call>(this, *request);
  call->Start();
  return call.get();
}

}  // namespace gradq
