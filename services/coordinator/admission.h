#pragma once

// The whole check of a job before any worker is touched: paths, checkpoint, weights, tokenizer,
// texts, recipe, plan, disk. Slow (reads all weights once, tokenizes); runs on the admission
// executor. Leaves nothing behind. Thread-safe.

#include <cstdint>
#include <mutex>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gradq/v1/job.pb.h"
#include "gradq/v1/job_service.pb.h"
#include "gradq/v1/store.pb.h"
#include "lib/catalog/geometry.h"
#include "lib/catalog/plan.h"
#include "lib/format/checkpoint.h"
#include "lib/jobs/coordinator_core.h"
#include "services/coordinator/blobs.h"
#include "services/coordinator/paths.h"

namespace gradq {

// The compute workers that are ready now.
struct Fleet {
  int workers = 0;
  int64_t smallest_memory_bytes = 0;  // 0: unknown
};

struct AdmittedJob {
  // Complete but for the names of the token files.
  NewJob job;
  ModelGeometry geometry;
  Plan plan;
  std::string calibration_tokens;  // int32 little end; empty when the spec names no text (PlanJob)
  std::string evaluation_tokens;
};

// Where the files of a token blob are found with ReadModel.
std::string TokenFileName(std::string_view sha256);
// The digest in such a name; empty for another file.
std::string_view TokenFileDigest(std::string_view file);

class Admission {
 public:
  // `blobs` holds the uploaded texts and must outlive this.
  Admission(PathRoot model_root, PathRoot output_root, std::string data_dir,
            const BlobStore* blobs);

  // Errors as CreateJob's. `needs_text` false: a spec without texts passes (PlanJob).
  absl::StatusOr<AdmittedJob> Check(const v1::JobSpec& spec, const Fleet& fleet,
                                    bool needs_text) const;

  // The spec with defaults, full options and absolute paths, as `Check` stores it; touches no
  // weights. INVALID_ARGUMENT, PERMISSION_DENIED.
  absl::StatusOr<v1::JobSpec> Resolve(const v1::JobSpec& spec) const;

  // Another point of the job `source`, whose kept shards are put together: output, evaluation text
  // (that of the source where the spec names none), disk. Errors as CreateJob's;
  // FAILED_PRECONDITION also when the model has changed.
  absl::StatusOr<AdmittedJob> CheckPoint(const v1::JobSpec& spec,
                                         const v1::JobRecord& source) const;
  // The spec as `CheckPoint` stores it.
  absl::StatusOr<v1::JobSpec> ResolvePoint(v1::JobSpec spec, const v1::JobRecord& source) const;

  // The output of a stored job still lies where it was allowed: no link was put in its way.
  // PERMISSION_DENIED.
  absl::Status RecheckOutput(const std::string& output) const;

 private:
  absl::Status CheckWeights(const Checkpoint& checkpoint) const;
  absl::StatusOr<v1::JobSpec> ResolveSpec(v1::JobSpec spec, PlanInputs* inputs) const;
  absl::Status CheckOutput(const v1::JobSpec& spec) const;
  // The texts that `spec` names, cut for the model.
  absl::Status CutTexts(const Checkpoint& checkpoint, const v1::JobSpec& spec,
                        AdmittedJob* admitted) const;
  absl::Status CheckDisk(const AdmittedJob& admitted) const;

  const PathRoot model_root_;
  const PathRoot output_root_;
  const std::string data_dir_;
  const BlobStore* const blobs_;
  // Layouts whose weights were found finite: a job that is planned and then created reads them
  // once.
  mutable std::mutex mutex_;
  mutable std::set<std::string> finite_;
};

// The plan as clients see it.
v1::JobPlan ToProto(const AdmittedJob& admitted);
v1::InferenceMemory ToProto(const InferenceMemory& memory);

}  // namespace gradq
