#pragma once

// A job on this machine, from its files to its end: child processes, uploads, progress on stderr,
// Ctrl-C. What `gradq quantize` does, and `gradq export` where weights must be solved again. One at
// a time.

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gradq/v1/job_service.pb.h"
#include "services/cli/job_client.h"
#include "services/cli/local_cluster.h"

namespace gradq {

struct LocalJob {
  v1::JobSpec spec;         // without blobs; paths may be relative
  std::string calibration;  // files whose texts are uploaded
  std::string evaluation;   // empty: none
  ClusterOptions cluster;
};

struct FinishedJob {
  v1::Job job;
  std::vector<v1::Task> tasks;
  std::optional<v1::Frontier> frontier;  // of a job with mixed widths
  // Share of the wall time in which no process computed.
  double idle_share = 0;
};

// Cheap refusals before any process starts: NOT_FOUND for absent files, ALREADY_EXISTS for an
// output that stands (the coordinator checks all of it again).
absl::Status CheckFiles(const LocalJob& local);

// Runs it to its end. CANCELLED after Ctrl-C; the job's own error, with the children's last log
// lines, when it failed.
absl::StatusOr<FinishedJob> RunLocalJob(const LocalJob& local);

// The spec as the coordinator wants it: absolute paths, texts uploaded.
absl::StatusOr<v1::JobSpec> PrepareSpec(const LocalJob& local, JobClient& client);

// Watches a job of a local coordinator with its children to a good end; errors as RunLocalJob.
absl::StatusOr<v1::Job> FollowLocalJob(const std::string& name, JobClient& client,
                                       LocalCluster& cluster);

// Absolute, whatever the user's folder is.
absl::StatusOr<std::string> AbsolutePath(const std::string& path);

}  // namespace gradq
