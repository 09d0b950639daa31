#include "services/coordinator/job_service.h"

#include <string>
#include <utility>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/catalog/export_formats.h"
#include "lib/catalog/geometry.h"
#include "lib/catalog/outlier_policies.h"
#include "lib/catalog/quantizers.h"
#include "lib/catalog/statistics.h"
#include "services/coordinator/reactors.h"
#include "services/coordinator/watch_reactor.h"

namespace gradq {
namespace {

constexpr int64_t kMaxTextBytes = int64_t{1} << 30;

template <typename Row>
v1::Capabilities::Method MethodOf(const Row& row) {
  v1::Capabilities::Method method;
  method.set_name(std::string(row.name));
  method.set_summary(std::string(row.summary));
  method.set_paper(std::string(row.paper));
  for (const OptionSpec& spec : row.options) {
    v1::Capabilities::Option* option = method.add_options();
    option->set_name(std::string(spec.name));
    option->set_default_value(std::string(spec.default_value));
    option->set_help(std::string(spec.help));
  }
  return method;
}

}  // namespace

v1::Capabilities MakeCapabilities() {
  v1::Capabilities capabilities;
  for (const QuantizerRow& row : Quantizers()) {
    v1::Capabilities::Method method = MethodOf(row);
    method.set_min_bits(row.min_bits);
    method.set_max_bits(row.max_bits);
    *capabilities.add_quantizers() = std::move(method);
  }
  for (const OutlierPolicyRow& row : OutlierPolicies()) {
    *capabilities.add_outlier_policies() = MethodOf(row);
  }
  for (const StatisticRow& row : Statistics()) capabilities.add_statistics(std::string(row.name));
  for (const FamilyRow& row : Families()) capabilities.add_families(std::string(row.model_type));
  for (const ExportFormatRow& row : ExportFormats()) {
    v1::Capabilities::Method* format = capabilities.add_export_formats();
    format->set_name(std::string(row.name));
    format->set_summary(std::string(row.summary));
  }
  for (const Objective objective : {Objective::kGuided, Objective::kPlain, Objective::kCoupled})
    capabilities.add_objectives(std::string(ObjectiveName(objective)));
  capabilities.set_version(GRADQ_VERSION);
  return capabilities;
}

grpc::ServerUnaryReactor* JobServiceImpl::CreateJob(grpc::CallbackServerContext* context,
                                                    const v1::CreateJobRequest* request,
                                                    v1::Job* response) {
  return AnswerOn(coordinator_.admission_work(), context, response,
                  [this, request] { return coordinator_.CreateJob(*request); });
}

grpc::ServerUnaryReactor* JobServiceImpl::PlanJob(grpc::CallbackServerContext* context,
                                                  const v1::PlanJobRequest* request,
                                                  v1::PlanJobResponse* response) {
  return AnswerOn(coordinator_.admission_work(), context, response,
                  [this, request] { return coordinator_.PlanJob(*request); });
}

grpc::ServerUnaryReactor* JobServiceImpl::GetJob(grpc::CallbackServerContext* context,
                                                 const v1::GetJobRequest* request,
                                                 v1::Job* response) {
  return AnswerOn(coordinator_.control(), context, response, [this, request] {
    return coordinator_.WithCore(
        [&](CoordinatorCore& core, Now) { return core.GetJob(request->name()); });
  });
}

grpc::ServerUnaryReactor* JobServiceImpl::ListJobs(grpc::CallbackServerContext* context,
                                                   const v1::ListJobsRequest* request,
                                                   v1::ListJobsResponse* response) {
  return AnswerOn(coordinator_.control(), context, response, [this, request] {
    return coordinator_.WithCore(
        [&](CoordinatorCore& core, Now) { return core.ListJobs(*request); });
  });
}

grpc::ServerUnaryReactor* JobServiceImpl::CancelJob(grpc::CallbackServerContext* context,
                                                    const v1::CancelJobRequest* request,
                                                    v1::Job* response) {
  return AnswerOn(coordinator_.control(), context, response, [this, request] {
    return coordinator_.WithCore(
        [&](CoordinatorCore& core, Now now) { return core.CancelJob(now, *request); });
  });
}

grpc::ServerUnaryReactor* JobServiceImpl::ListTasks(grpc::CallbackServerContext* context,
                                                    const v1::ListTasksRequest* request,
                                                    v1::ListTasksResponse* response) {
  return AnswerOn(coordinator_.control(), context, response, [this, request] {
    return coordinator_.WithCore(
        [&](CoordinatorCore& core, Now) { return core.ListTasks(*request); });
  });
}

grpc::ServerUnaryReactor* JobServiceImpl::ListWorkers(grpc::CallbackServerContext* context,
                                                      const v1::ListWorkersRequest* request,
                                                      v1::ListWorkersResponse* response) {
  return AnswerOn(coordinator_.control(), context, response, [this, request] {
    return coordinator_.WithCore(
        [&](CoordinatorCore& core, Now) { return core.ListWorkers(*request); });
  });
}

grpc::ServerUnaryReactor* JobServiceImpl::ListEvents(grpc::CallbackServerContext* context,
                                                     const v1::ListEventsRequest* request,
                                                     v1::ListEventsResponse* response) {
  return AnswerOn(coordinator_.control(), context, response, [this, request] {
    return coordinator_.WithCore(
        [&](CoordinatorCore& core, Now) { return core.ListEvents(*request); });
  });
}

grpc::ServerUnaryReactor* JobServiceImpl::GetFrontier(grpc::CallbackServerContext* context,
                                                      const v1::GetFrontierRequest* request,
                                                      v1::Frontier* response) {
  return AnswerOn(coordinator_.control(), context, response, [this, request] {
    return coordinator_.WithCore(
        [&](CoordinatorCore& core, Now) { return core.GetFrontier(*request); });
  });
}

grpc::ServerUnaryReactor* JobServiceImpl::GetCapabilities(grpc::CallbackServerContext* context,
                                                          const v1::GetCapabilitiesRequest*,
                                                          v1::Capabilities* response) {
  *response = MakeCapabilities();
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerWriteReactor<v1::Job>* JobServiceImpl::WatchJob(grpc::CallbackServerContext*,
                                                            const v1::WatchJobRequest* request) {
  return WatchReactor::Start(&coordinator_, request->name(), request->after_revision());
}

grpc::ServerReadReactor<v1::UploadBlobRequest>* JobServiceImpl::UploadBlob(
    grpc::CallbackServerContext*, v1::UploadBlobResponse* response) {
  const auto begin =
      [this, response](
          const v1::UploadBlobRequest& first) -> absl::StatusOr<std::optional<BlobStore::Upload>> {
    if (first.size() > kMaxTextBytes) {
      return absl::InvalidArgumentError(
          StrCat("text larger than the limit: ", first.size(), " bytes, ", kMaxTextBytes));
    }
    response->set_sha256(first.sha256());
    response->set_size(first.size());
    if (coordinator_.blobs().Use(first.sha256())) return std::nullopt;
    GRADQ_ASSIGN_OR_RETURN(BlobStore::Upload upload,
                           coordinator_.blobs().Begin(first.sha256(), first.size()));
    return std::optional(std::move(upload));
  };
  const auto commit = [](BlobStore::Upload& upload) { return upload.Commit(); };
  return new ReceiveBlobReactor<v1::UploadBlobRequest>(coordinator_.io(), begin, commit);
}

grpc::ServerWriteReactor<v1::FileChunk>* JobServiceImpl::DownloadArtifact(
    grpc::CallbackServerContext*, const v1::DownloadArtifactRequest* request) {
  return new SendFileReactor(coordinator_.io(), [this, request]() -> absl::StatusOr<FileSource> {
    GRADQ_ASSIGN_OR_RETURN(const v1::Job job,
                           coordinator_.WithCore([&](CoordinatorCore& core, Now) {
                             return core.GetJob(request->name());
                           }));
    if (job.artifact_path().empty()) {
      return absl::FailedPreconditionError(StrCat("job has no artifact yet: ", job.name(), ", ",
                                                  std::string(v1::Job::State_Name(job.state()))));
    }
    GRADQ_ASSIGN_OR_RETURN(const auto folder, OpenLocalFolder(job.artifact_path()));
    FileSource source;
    if (request->file().empty()) {
      GRADQ_ASSIGN_OR_RETURN(source.listing, folder->List());
      return source;
    }
    GRADQ_ASSIGN_OR_RETURN(source.file, folder->Open(request->file()));
    source.name = request->file();
    source.offset = request->offset();
    return source;
  });
}

}  // namespace gradq
