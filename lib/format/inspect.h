#pragma once

// What `gradq inspect` shows of an artifact folder: the records of its gradq.json, no weights read.
// Also used by reports.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/base/files.h"

namespace gradq {

struct InspectedLinear {
  std::string name;
  std::string method;
  std::string encoding;
  int bits = 0;
  double average_bits = 0;  // with tables, scales and padding
  int64_t out_features = 0;
  int64_t in_features = 0;
  std::optional<double> objective_initial;
  std::optional<double> objective_final;
  std::optional<double> predicted_loss_increase;  // nats per token
  double outlier_fraction = 0;
  std::map<std::string, double> numbers;  // more about the solve, by method and policy
  std::string sha256;                     // of the shard
};

struct Inspection {
  std::vector<InspectedLinear> linears;  // in checkpoint order
  double average_bits = 0;               // over quantized weights
  int64_t bytes = 0;                     // of all files but report.json
  std::optional<double> predicted_loss_increase;
  std::string recipe_json;  // canonical, one line
  std::string numerics_class;
};

// Opens the folder as an artifact (all its checks) and reads the records. Errors as Artifact::Open.
absl::StatusOr<Inspection> InspectArtifact(std::unique_ptr<ReadableFolder> folder);

// The object that `gradq inspect --json` prints; its keys are a contract.
std::string InspectionJson(const Inspection& inspection);

// Compares size and SHA-256 of every file with gradq.json. DATA_LOSS naming the first file that
// differs or is missing.
absl::Status VerifyArtifactFiles(const ReadableFolder& folder);

}  // namespace gradq
