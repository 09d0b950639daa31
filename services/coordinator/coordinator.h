#pragma once

// The coordinator without its transport: owns the core and its lock, the store, the blobs, the
// clock's ticks, assembly, and the threads that may block. job_service and worker_service call it.
// Thread-safe.

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gradq/v1/job_service.pb.h"
#include "lib/base/clock.h"
#include "lib/jobs/coordinator_core.h"
#include "services/coordinator/admission.h"
#include "services/coordinator/assembly.h"
#include "services/coordinator/blobs.h"
#include "services/coordinator/executor.h"
#include "services/coordinator/folder_lock.h"
#include "services/coordinator/notifier.h"

namespace gradq {

struct CoordinatorOptions {
  std::string data_dir;     // created when absent
  std::string model_root;   // empty: no model can be named
  std::string output_root;  // empty: artifacts stay in data_dir
  CoreOptions core;
};

class Coordinator {
 public:
  // FAILED_PRECONDITION: another coordinator uses data_dir. NOT_FOUND: a root is absent. DATA_LOSS:
  // the store is damaged.
  static absl::StatusOr<std::unique_ptr<Coordinator>> Start(CoordinatorOptions options,
                                                            const Clock& clock = Clock::Real());
  // Ends waiting calls, lets an assembly stop at its next linear, finishes queued work.
  ~Coordinator();
  Coordinator(const Coordinator&) = delete;
  Coordinator& operator=(const Coordinator&) = delete;

  // Calls `use(core, now)` under the lock, then does what the core asked for and wakes long polls.
  // May block on the store.
  template <typename Use>
  auto WithCore(Use&& use, bool wakes_ticks = true);

  // Slow: on the admission executor. Errors as in job_service.proto.
  absl::StatusOr<v1::Job> CreateJob(const v1::CreateJobRequest& request);
  absl::StatusOr<v1::PlanJobResponse> PlanJob(const v1::PlanJobRequest& request);

  // The durable shards that a job ("jobs/1") makes.
  absl::StatusOr<BlobStore> ShardsOf(std::string_view job) const;
  // A file of a job's model folder, or one of its token files.
  absl::StatusOr<std::unique_ptr<RandomAccessFile>> OpenModelFile(const v1::JobContext& context,
                                                                  const std::string& file) const;
  absl::StatusOr<std::vector<FolderEntry>> ListModelFiles(const v1::JobContext& context) const;

  // The job has an artifact whose report.json is still to be written: its end is not told yet, so
  // that who hears of it finds the folder complete.
  bool ReportPending(const std::string& job);

  const BlobStore& blobs() const { return blobs_; }
  const Clock& clock() const { return clock_; }
  Notifier& notifier() { return notifier_; }
  Executor& control() { return control_; }      // short calls of the core
  Executor& io() { return io_; }                // pieces of files
  Executor& admission_work() { return slow_; }  // checks of jobs

  // From now on long polls end at once with UNAVAILABLE and no task is leased. For SIGTERM.
  void BeginShutdown();
  bool stopping() const { return stopping_; }

 private:
  // Made by Start in an order that can fail.
  struct Parts;
  Coordinator(Parts parts, const Clock& clock);
  // Takes up what an earlier process left: assemblies, reports.
  void Begin();
  AssemblyHost HostForAssembler();
  Now CurrentTime() const { return {clock_.Monotonic(), clock_.Wall()}; }
  void Perform(const std::vector<Action>& actions);
  void RunTicks();
  Fleet ReadyFleet();
  // The checked job of a request; with source_job that job's kept shards make it.
  absl::StatusOr<AdmittedJob> Admit(const v1::JobSpec& spec);
  // The spec as Admit stores it; touches no weights and no texts.
  absl::StatusOr<v1::JobSpec> Resolve(const v1::JobSpec& spec);
  absl::StatusOr<v1::Job> Store(AdmittedJob admitted);
  // ALREADY_EXISTS when an unfinished job has the same output; with create_mutex_ held.
  absl::Status CheckUnclaimed(const NewJob& job);
  void RemoveUnusedBlobs();
  // Called after every change: reports of jobs that have ended.
  void ReportEndedJobs();
  absl::StatusOr<std::string> JobFolder(std::string_view job) const;

  const CoordinatorOptions options_;
  const Clock& clock_;
  const FolderLock lock_;
  const BlobStore blobs_;
  const Admission admission_;
  std::atomic<bool> stopping_ = false;

  // Guards core_ and store_.
  std::mutex mutex_;
  const std::unique_ptr<JobStore> store_;
  const std::unique_ptr<CoordinatorCore> core_;

  const AssemblyHost host_;

  // Jobs with an artifact whose report is not written yet.
  std::mutex unreported_mutex_;
  std::map<std::string, bool> unreported_;  // true: being written

  // Token files are made and, when the core refuses the job, removed by one creator at a time.
  std::mutex create_mutex_;

  Notifier notifier_;
  Executor control_;
  Executor io_;
  Executor slow_;
  std::unique_ptr<Assembler> assembler_;

  std::mutex tick_mutex_;
  std::condition_variable tick_wake_;
  bool tick_due_ = false;
  std::thread ticks_;
};

template <typename Use>
auto Coordinator::WithCore(Use&& use, bool wakes_ticks) {
  std::vector<Action> actions;
  bool changed = false;
  auto result = [&] {
    const std::lock_guard lock(mutex_);
    const int64_t before = core_->changed();
    auto value = use(*core_, CurrentTime());
    changed = core_->changed() != before;
    actions = core_->TakeActions();
    return value;
  }();
  if (changed) {
    notifier_.Poke();
    if (wakes_ticks) {
      const std::lock_guard lock(tick_mutex_);
      tick_due_ = true;
      tick_wake_.notify_all();
    }
  }
  Perform(actions);
  return result;
}

}  // namespace gradq
