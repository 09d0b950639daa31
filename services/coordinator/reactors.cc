#include "services/coordinator/reactors.h"

#include <algorithm>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "services/rpc/file_stream.h"

namespace gradq {

SendFileReactor::SendFileReactor(Executor& io, Open open) : io_(io), open_(std::move(open)) {
  Post();
}

void SendFileReactor::OnWriteDone(bool ok) {
  if (ok) {
    Post();
  } else {
    Finish(grpc::Status(grpc::StatusCode::CANCELLED, "reader is gone"));
  }
}

void SendFileReactor::Post() {
  if (!io_.Post([this] { Step(); })) Finish(Busy());
}

void SendFileReactor::Step() {
  if (!opened_) {
    absl::StatusOr<FileSource> source = open_();
    if (!source.ok()) return Finish(ToGrpc(source.status()));
    source_ = *std::move(source);
    opened_ = true;
    if (source_.file != nullptr) {
      end_ = source_.length == 0 ? source_.file->size() : source_.offset + source_.length;
    }
  }
  if (source_.file == nullptr) {
    if (next_entry_ == source_.listing.size()) return Finish(grpc::Status::OK);
    const FolderEntry& entry = source_.listing[next_entry_++];
    chunk_.set_file(entry.name);
    chunk_.set_total_size(entry.size);
    return StartWrite(&chunk_);
  }
  if (sent_ && source_.offset >= end_) return Finish(grpc::Status::OK);
  const int64_t piece = std::min(kMessageBytes, end_ - source_.offset);
  const absl::Status status = SendFile(*source_.file, source_.name, source_.offset, piece,
                                       [this](const v1::FileChunk& chunk) {
                                         chunk_ = chunk;
                                         return true;
                                       });
  if (!status.ok()) return Finish(ToGrpc(status));
  source_.offset += piece;
  sent_ = true;
  StartWrite(&chunk_);
}

}  // namespace gradq
