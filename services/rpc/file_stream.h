#pragma once

// Files over RPC: how FileChunk streams are written from a RandomAccessFile and how they look like
// a ReadableFolder on the other side. Used for ReadModel (worker, inference worker) and
// DownloadArtifact (inference worker, CLI).

#include <functional>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "gradq/v1/job_service.pb.h"
#include "lib/base/files.h"

namespace gradq {

inline constexpr int64_t kMessageBytes = int64_t{1} << 20;

// Sends [offset, offset + length) of `file` (length 0: to the end) as chunks of at most
// kMessageBytes with checksums. `send` returns false when the peer is gone. OUT_OF_RANGE,
// UNAVAILABLE, CANCELLED.
absl::Status SendFile(const RandomAccessFile& file, const std::string& name, int64_t offset,
                      int64_t length, absl::FunctionRef<bool(const v1::FileChunk&)> send);

// Sends one listing entry per file.
absl::Status SendListing(const ReadableFolder& folder,
                         absl::FunctionRef<bool(const v1::FileChunk&)> send);

// One ranged read of a remote file: calls `receive` for each chunk in order. The transport behind a
// remote folder. (file empty: listing.) Thread-safe.
using FetchRange =
    std::function<absl::Status(const std::string& file, int64_t offset, int64_t length,
                               absl::FunctionRef<absl::Status(const v1::FileChunk&)> receive)>;

// Verifies every chunk's checksum (DATA_LOSS). Reads of a few MiB are cached neither here nor
// below.
absl::StatusOr<std::unique_ptr<ReadableFolder>> OpenRemoteFolder(std::string description,
                                                                 FetchRange fetch);

}  // namespace gradq
