#pragma once

// Types of stored events (v1.Event.type). Watchers, the dashboard and audits match on these words,
// so they only grow.

#include <string_view>

namespace gradq::events {

inline constexpr std::string_view kJobCreated = "job.created";
inline constexpr std::string_view kJobRunning = "job.running";
inline constexpr std::string_view kJobAssembling = "job.assembling";
inline constexpr std::string_view kJobRenaming = "job.renaming";
inline constexpr std::string_view kJobPublished = "job.published";
inline constexpr std::string_view kJobValidating = "job.validating";
inline constexpr std::string_view kJobSucceeded = "job.succeeded";
inline constexpr std::string_view kJobFailed = "job.failed";
inline constexpr std::string_view kJobCancelling = "job.cancelling";
inline constexpr std::string_view kJobCancelled = "job.cancelled";

// Of a job with mixed widths, --retention after its end.
inline constexpr std::string_view kJobShardsRemoved = "job.shards_removed";

inline constexpr std::string_view kTaskLeased = "task.leased";
inline constexpr std::string_view kTaskSucceeded = "task.succeeded";
// The attempt ended without a result and the task runs again: its worker was lost, it was revoked,
// it was handed back, it failed.
inline constexpr std::string_view kTaskLost = "task.lost";
inline constexpr std::string_view kTaskRevoked = "task.revoked";
inline constexpr std::string_view kTaskHandedBack = "task.handed_back";
inline constexpr std::string_view kTaskRetried = "task.retried";
inline constexpr std::string_view kTaskFailed = "task.failed";
// A finished stage runs again because something it made is gone and still needed.
inline constexpr std::string_view kTaskReopened = "task.reopened";

inline constexpr std::string_view kWorkerRegistered = "worker.registered";
inline constexpr std::string_view kWorkerDraining = "worker.draining";
inline constexpr std::string_view kWorkerGone = "worker.gone";
inline constexpr std::string_view kWorkerLost = "worker.lost";

}  // namespace gradq::events
