#include "services/rpc/file_stream.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "lib/base/digest.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"

namespace gradq {
namespace {

class RemoteFile : public RandomAccessFile {
 public:
  RemoteFile(std::string description, std::string name, int64_t size,
             std::shared_ptr<const FetchRange> fetch)
      : description_(std::move(description)),
        name_(std::move(name)),
        size_(size),
        fetch_(std::move(fetch)) {}

  int64_t size() const override { return size_; }

  absl::Status Read(int64_t offset, std::span<std::byte> out) const override {
    const auto wanted = static_cast<int64_t>(out.size());
    if (offset < 0 || offset > size_ || wanted > size_ - offset) {
      return absl::OutOfRangeError(StrCat("read past the end of a file: ", Place(), ", ", offset,
                                          "+", wanted, " of ", size_));
    }
    if (wanted == 0) return absl::OkStatus();
    int64_t done = 0;
    GRADQ_RETURN_IF_ERROR(
        (*fetch_)(name_, offset, wanted, [&](const v1::FileChunk& chunk) -> absl::Status {
          const auto bytes = static_cast<int64_t>(chunk.data().size());
          if (chunk.offset() != offset + done || bytes > wanted - done) {
            return absl::DataLossError(StrCat("piece of a file out of place: ", Place(), ", ",
                                              chunk.offset(), "+", bytes, " instead of ",
                                              offset + done));
          }
          if (Xxh3(chunk.data()) != chunk.xxh3()) {
            return absl::DataLossError(StrCat("checksum of a file piece is wrong: ", Place(),
                                              ", offset ", chunk.offset()));
          }
          std::memcpy(out.data() + done, chunk.data().data(), static_cast<size_t>(bytes));
          done += bytes;
          return absl::OkStatus();
        }));
    if (done != wanted) {
      return absl::DataLossError(
          StrCat("file transfer ended early: ", Place(), ", ", done, " of ", wanted, " bytes"));
    }
    return absl::OkStatus();
  }

 private:
  std::string Place() const { return StrCat(description_, "/", name_); }

  std::string description_;
  std::string name_;
  int64_t size_;
  std::shared_ptr<const FetchRange> fetch_;
};

class RemoteFolder : public ReadableFolder {
 public:
  RemoteFolder(std::string description, std::vector<FolderEntry> entries,
               std::shared_ptr<const FetchRange> fetch)
      : description_(std::move(description)),
        entries_(std::move(entries)),
        fetch_(std::move(fetch)) {}

  std::string_view path() const override { return description_; }
  absl::StatusOr<std::vector<FolderEntry>> List() const override { return entries_; }

  absl::StatusOr<std::unique_ptr<RandomAccessFile>> Open(std::string_view name) const override {
    if (name.empty() || name == "." || name == ".." || name.find('/') != std::string_view::npos) {
      return absl::InvalidArgumentError(StrCat("not a plain file name: ", name));
    }
    const auto it = std::find_if(entries_.begin(), entries_.end(),
                                 [&](const FolderEntry& entry) { return entry.name == name; });
    if (it == entries_.end()) {
      return absl::NotFoundError(StrCat("no such file: ", description_, "/", name));
    }
    return std::make_unique<RemoteFile>(description_, it->name, it->size, fetch_);
  }

 private:
  std::string description_;
  std::vector<FolderEntry> entries_;
  // Shared: files may outlive the folder they were opened from.
  std::shared_ptr<const FetchRange> fetch_;
};

}  // namespace

absl::Status SendFile(const RandomAccessFile& file, const std::string& name, int64_t offset,
                      int64_t length, absl::FunctionRef<bool(const v1::FileChunk&)> send) {
  const int64_t size = file.size();
  if (offset < 0 || length < 0 || offset > size || length > size - offset) {
    return absl::OutOfRangeError(
        StrCat("range outside the file: ", name, ", ", offset, "+", length, " of ", size));
  }
  const int64_t end = length == 0 ? size : offset + length;
  v1::FileChunk chunk;
  chunk.set_file(name);
  chunk.set_total_size(size);
  do {
    const int64_t bytes = std::min(kMessageBytes, end - offset);
    std::string* data = chunk.mutable_data();
    data->resize(static_cast<size_t>(bytes));
    GRADQ_RETURN_IF_ERROR(file.Read(offset, std::as_writable_bytes(std::span(*data))));
    chunk.set_offset(offset);
    chunk.set_xxh3(Xxh3(*data));
    if (!send(chunk)) return absl::CancelledError(StrCat("reader of a file is gone: ", name));
    offset += bytes;
  } while (offset < end);
  return absl::OkStatus();
}

absl::Status SendListing(const ReadableFolder& folder,
                         absl::FunctionRef<bool(const v1::FileChunk&)> send) {
  GRADQ_ASSIGN_OR_RETURN(const std::vector<FolderEntry> entries, folder.List());
  for (const FolderEntry& entry : entries) {
    v1::FileChunk chunk;
    chunk.set_file(entry.name);
    chunk.set_total_size(entry.size);
    if (!send(chunk)) {
      return absl::CancelledError(StrCat("reader of a listing is gone: ", folder.path()));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<ReadableFolder>> OpenRemoteFolder(std::string description,
                                                                 FetchRange fetch) {
  std::vector<FolderEntry> entries;
  GRADQ_RETURN_IF_ERROR(fetch("", 0, 0, [&](const v1::FileChunk& chunk) -> absl::Status {
    const std::string& name = chunk.file();
    if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos ||
        chunk.total_size() < 0) {
      return absl::DataLossError(StrCat("listing with an impossible file: ", description, ", '",
                                        name, "', ", chunk.total_size(), " bytes"));
    }
    entries.push_back({name, chunk.total_size()});
    return absl::OkStatus();
  }));
  std::sort(entries.begin(), entries.end(),
            [](const auto& a, const auto& b) { return a.name < b.name; });
  return std::make_unique<RemoteFolder>(std::move(description), std::move(entries),
                                        std::make_shared<const FetchRange>(std::move(fetch)));
}

}  // namespace gradq
