#pragma once

// Artifacts for tests, made from a checkpoint by plain rounding. A failure ends the test process.

#include <memory>
#include <string>

#include "lib/format/artifact.h"

namespace gradq {

struct PlainQuantization {
  Encoding encoding = Encoding::kLut;
  int bits = 4;
  int64_t group_size = 48;  // kAffine
  bool outliers = false;    // keeps every 200th weight apart
};

// Writes an artifact of the checkpoint folder `model` to `output` (which must not exist): every row
// (kLut) or group (kAffine) on a grid of even steps between its extremes.
void WriteQuantizedFolder(const std::string& model, const PlainQuantization& quantization,
                          const std::string& output);

// A fresh folder below the system's temporary one, removed at destruction.
class TestFolder {
 public:
  TestFolder();
  ~TestFolder();
  TestFolder(const TestFolder&) = delete;
  TestFolder& operator=(const TestFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::unique_ptr<ReadableFolder> OpenFolderOrDie(const std::string& path);

}  // namespace gradq
