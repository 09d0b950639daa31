#pragma once

// A folder made of one fuzz input: a container of named files, each "name length(4 bytes, little
// end) bytes". Whatever the lengths say, files end with the input.

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lib/base/files.h"

namespace gradq {

class MemoryFile : public RandomAccessFile {
 public:
  explicit MemoryFile(std::string bytes) : bytes_(std::move(bytes)) {}
  int64_t size() const override { return static_cast<int64_t>(bytes_.size()); }
  absl::Status Read(int64_t offset, std::span<std::byte> out) const override {
    if (offset < 0 || offset > size() || static_cast<int64_t>(out.size()) > size() - offset)
      return absl::OutOfRangeError("past the end");
    if (!out.empty()) std::memcpy(out.data(), bytes_.data() + offset, out.size());
    return absl::OkStatus();
  }

 private:
  std::string bytes_;
};

class MemoryFolder : public ReadableFolder {
 public:
  explicit MemoryFolder(std::map<std::string, std::string> files) : files_(std::move(files)) {}
  std::string_view path() const override { return "memory"; }
  absl::StatusOr<std::vector<FolderEntry>> List() const override {
    std::vector<FolderEntry> entries;
    for (const auto& [name, bytes] : files_)
      entries.push_back({name, static_cast<int64_t>(bytes.size())});
    return entries;
  }
  absl::StatusOr<std::unique_ptr<RandomAccessFile>> Open(std::string_view name) const override {
    const auto it = files_.find(std::string(name));
    if (it == files_.end()) return absl::NotFoundError("no such file");
    return std::make_unique<MemoryFile>(it->second);
  }

 private:
  std::map<std::string, std::string> files_;
};

// `names`: of the files in order of the container.
inline std::unique_ptr<ReadableFolder> FolderOf(std::string_view input,
                                                const std::vector<std::string>& names) {
  std::map<std::string, std::string> files;
  for (const std::string& name : names) {
    uint32_t length = 0;
    if (input.size() < sizeof(length)) break;
    std::memcpy(&length, input.data(), sizeof(length));
    input.remove_prefix(sizeof(length));
    const size_t size = std::min<size_t>(length, input.size());
    files[name] = std::string(input.substr(0, size));
    input.remove_prefix(size);
  }
  return std::make_unique<MemoryFolder>(std::move(files));
}

inline std::string ContainerOf(const std::vector<std::string>& files) {
  std::string input;
  for (const std::string& file : files) {
    const uint32_t length = static_cast<uint32_t>(file.size());
    input.append(reinterpret_cast<const char*>(&length), sizeof(length)).append(file);
  }
  return input;
}

}  // namespace gradq
