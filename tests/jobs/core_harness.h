#pragma once

// One core on a memory store (or one that fails on demand) with a manual clock, driven call by
// call.

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lib/base/clock.h"
#include "lib/jobs/coordinator_core.h"
#include "tests/jobs/job_fixture.h"

namespace gradq {

// A store whose commits fail while `failure` is set.
class FailingStore final : public JobStore {
 public:
  absl::Status failure;
  absl::Status Commit(const StoreBatch& batch) override {
    return failure.ok() ? store_->Commit(batch) : failure;
  }
  absl::StatusOr<StoreContent> Load() override { return store_->Load(); }
  absl::StatusOr<std::vector<StoreEvent>> Events(const std::string& job, int64_t after,
                                                 int limit) override {
    return store_->Events(job, after, limit);
  }

 private:
  std::unique_ptr<JobStore> store_ = MakeMemoryStore();
};

class CoreHarness {
 public:
  CoreHarness() { Restart(); }

  Now now() const { return {clock.Monotonic(), clock.Wall()}; }
  void Restart();
  // Advances in steps no longer than the core asks for, with the sessions in `beating`
  // heartbeating.
  void Pass(absl::Duration time, const std::vector<std::string>& beating = {});

  v1::Job Create(const NewJob& job) { return core->CreateJob(now(), job).value(); }
  std::string Register(const std::string& name, int64_t memory = 0,
                       const std::string& numerics = "class",
                       v1::Worker::Kind kind = v1::Worker::COMPUTE);
  std::string RegisterInference(const std::string& name) {
    return Register(name, 0, "", v1::Worker::INFERENCE);
  }
  // Nullopt: nothing to do.
  std::optional<v1::Lease> Lease(const std::string& session) {
    return core->TryLease(now(), session).value();
  }
  // The lease's task without the job's name, "" when there is nothing to do.
  std::string LeaseName(const std::string& session);
  absl::Status Finish(const std::string& session, const v1::Lease& lease,
                      v1::FinishTaskRequest::Outcome outcome = v1::FinishTaskRequest::SUCCEEDED,
                      const std::string& message = "");
  v1::HeartbeatResponse Beat(const std::string& session,
                             const std::vector<std::pair<v1::Lease, int>>& running = {});
  // Leases and finishes with success until the session gets nothing more; the names in order.
  std::vector<std::string> WorkOff(const std::string& session);
  // Rename and publish of what TakeActions asks for.
  void AssembleAll();
  v1::Task Task(const std::string& id, const std::string& job = "jobs/1") const;
  v1::Job Job(const std::string& name = "jobs/1") const { return core->GetJob(name).value(); }
  std::vector<std::string> EventTypes(const std::string& job) const;

  ManualClock clock;
  FailingStore store;
  CoreOptions options;
  std::unique_ptr<CoordinatorCore> core;
};

}  // namespace gradq
