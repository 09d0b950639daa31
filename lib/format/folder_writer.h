#pragma once

// Writes the files of a checkpoint-like folder: weight files item by item (sharded with an index
// when large), texts, files copied from another folder, each with its digest. Shared by the
// artifact and the exports; internal to lib/format. Not thread-safe.

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "lib/base/files.h"
#include "lib/format/tensor_source.h"

namespace gradq {

// Takes the next bytes of a file.
using AppendBytes = absl::FunctionRef<absl::Status(std::string_view bytes)>;

// Tensors that lie together in one weight file, and what writes their bytes in order.
struct WeightItem {
  std::vector<TensorInfo> infos;
  std::function<absl::Status(AppendBytes append)> write;

  int64_t bytes() const;
};

// A tensor of `source` as it is, read in slices. `source` must outlive the item.
WeightItem CopiedTensor(const TensorSource& source, TensorInfo info);

class FolderWriter {
 public:
  explicit FolderWriter(std::string folder) : folder_(std::move(folder)) {}

  struct Record {
    std::string name;
    int64_t size = 0;
    std::string sha256;
  };

  // model.safetensors, or shards and an index when the items take more than `file_limit` bytes.
  absl::Status WriteWeights(std::span<const WeightItem> items, int64_t file_limit);
  absl::Status WriteText(std::string name, std::string_view content);
  // Tokenizer and generation files, byte for byte, where `from` has them.
  absl::Status CopySmallFiles(const ReadableFolder& from);
  // What was written, sorted by name.
  const std::vector<Record>& files();

 private:
  absl::Status WriteWeightFile(const std::string& name, std::span<const WeightItem* const> items);

  std::string folder_;
  std::vector<Record> files_;
};

}  // namespace gradq
