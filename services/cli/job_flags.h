#pragma once

// The flags that describe a job, shared by quantize, submit and plan; method options come from the
// catalog. A job file is the same flags as YAML keys.

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "gradq/v1/job.pb.h"

namespace gradq {

struct JobFlags {
  std::string model;
  std::string calibration;
  std::string evaluation;
  std::string output;
  std::string method = "lnq";
  std::string objective = "guided";
  std::string outliers = "none";
  int bits = 3;
  std::optional<double> average_bits;
  bool free_widths = false;
  int groups = 4;
  int sequences = 64;
  int length = 512;
  int evaluation_sequences = 0;
  int stages = 0;
  int chunk_sequences = 4;
  int validate_timeout = 600;
  std::string compute_dtype = "float32";
  std::optional<uint64_t> shuffle_seed;
  bool forward_only = false;
  bool force = false;
  // Options of the method and of the outlier policy that were given, by catalog name.
  std::map<std::string, std::string> method_options;
  std::map<std::string, std::string> outlier_options;
};

// The flag of a catalog option: "--sensitive-fraction", for an outlier policy's
// "--outlier-sensitive-fraction"; a second name follows after a comma.
std::string MethodFlag(std::string_view option);
std::string OutlierFlag(std::string_view option);

// Adds the flags to a subcommand; `flags` must outlive it.
void AddJobFlags(CLI::App& command, JobFlags& flags, bool output_required);

// Spec without blobs (the client uploads the texts and fills them in). Checks nothing that the
// coordinator checks.
v1::JobSpec ToSpec(const JobFlags& flags);

// The flags a job file stands for: {"--model", "DIR", ...}. INVALID_ARGUMENT naming file and key
// for anything but a map of scalars.
absl::StatusOr<std::vector<std::string>> ReadJobFile(const std::string& path);

}  // namespace gradq
