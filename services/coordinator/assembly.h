#pragma once

// Makes artifacts: when every linear of a job has its durable shard, writes the folder beside its
// final place, asks the core whether it may be renamed, renames, reports. One thread. After the
// job's end report.json is added (what depends on the run: times, workers, measured losses).

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gradq/v1/job.pb.h"
#include "gradq/v1/store.pb.h"
#include "lib/jobs/coordinator_core.h"
#include "services/coordinator/blobs.h"

namespace gradq {

// What the assembler needs of its owner; all may block and are called without locks.
struct AssemblyHost {
  std::function<absl::StatusOr<v1::JobRecord>(const std::string& job)> record;
  std::function<absl::StatusOr<std::vector<v1::ShardSummary>>(const std::string& job)> shards;
  std::function<absl::StatusOr<std::vector<v1::Task>>(const std::string& job)> tasks;
  std::function<absl::StatusOr<std::vector<v1::Worker>>()> workers;
  std::function<absl::StatusOr<BlobStore>(const std::string& job)> shard_store;
  std::function<bool(const std::string& job)> begin_rename;
  std::function<absl::Status(const std::string& job, const absl::StatusOr<AssembleResult>& result)>
      finish;
  // Where the artifact of a job goes, still allowed.
  std::function<absl::StatusOr<std::string>(const v1::JobRecord& record)> output_path;
  // Folder for the note that says which folder a job has published, kept across restarts.
  std::function<std::string(const std::string& job)> note_path;
};

class Assembler {
 public:
  // `host` must outlive this.
  explicit Assembler(const AssemblyHost* host);
  // A running assembly stops at its next linear and is begun again after a restart.
  ~Assembler();

  void Enqueue(const std::string& job);

 private:
  void Run();
  void Assemble(const std::string& job);
  absl::StatusOr<AssembleResult> Make(const std::string& job);
  bool stopping();

  const AssemblyHost& host_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::string> queue_;
  bool stopping_ = false;
  std::thread thread_;
};

// Adds report.json to the artifact of a job that has ended. Nothing when the artifact is gone.
absl::Status WriteReport(const AssemblyHost& host, const std::string& job);

// SHA-256 over the sorted "name size sha256\n" lines of a folder's files, report.json left out (as
// ArtifactSummary::digest).
absl::StatusOr<std::string> FolderDigest(const std::string& folder);

}  // namespace gradq
