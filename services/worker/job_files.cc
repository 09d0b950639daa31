#include "services/worker/job_files.h"

#include <cstddef>
#include <cstring>
#include <span>
#include <utility>

#include "lib/base/digest.h"
#include "lib/base/files.h"
#include "lib/base/logging.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"

namespace gradq {

absl::Status JobFiles::Open(const v1::JobContext& context, Session* session) {
  if (job_ == context.name()) return absl::OkStatus();
  *this = {};
  absl::StatusOr<std::unique_ptr<ReadableFolder>> local = OpenLocalFolder(context.model_path());
  if (local.ok()) {
    absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(*std::move(local));
    // A folder of the same name that holds another model is no error: the coordinator has the right
    // one.
    if (checkpoint.ok() && (*checkpoint)->layout_digest() == context.model_digest()) {
      LogInfo("model is read from its local path: ", context.model_path());
      checkpoint_ = *std::move(checkpoint);
    }
  }
  if (checkpoint_ == nullptr) {
    LogInfo("model is read through the coordinator: ", context.model_path());
    GRADQ_ASSIGN_OR_RETURN(std::unique_ptr<ReadableFolder> remote,
                           OpenRemoteFolder(StrCat(context.name(), ":", context.model_path()),
                                            session->ModelReader(context.name())));
    GRADQ_ASSIGN_OR_RETURN(checkpoint_, Checkpoint::Open(std::move(remote)));
  }
  job_ = context.name();
  return absl::OkStatus();
}

absl::Status JobFiles::ReadTokens(const v1::JobContext& context, Session* session) {
  if (!tokens_.empty()) return absl::OkStatus();
  const int64_t count = static_cast<int64_t>(context.plan().sequences()) * context.plan().length();
  if (count <= 0) {
    return absl::InvalidArgumentError(StrCat(
        "calibration set is empty: ", context.plan().sequences(), " x ", context.plan().length()));
  }
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  const std::span<std::byte> bytes = std::as_writable_bytes(std::span(tokens));
  size_t done = 0;
  GRADQ_RETURN_IF_ERROR(session->ModelReader(context.name())(
      context.calibration_tokens(), 0, static_cast<int64_t>(bytes.size()),
      [&](const v1::FileChunk& chunk) -> absl::Status {
        const std::string& data = chunk.data();
        if (Xxh3(data) != chunk.xxh3() || chunk.offset() != static_cast<int64_t>(done) ||
            data.size() > bytes.size() - done) {
          return absl::DataLossError(StrCat(
              "calibration tokens are damaged: ", context.calibration_tokens(), ", offset ", done));
        }
        std::memcpy(bytes.data() + done, data.data(), data.size());
        done += data.size();
        return absl::OkStatus();
      }));
  if (done != bytes.size()) {
    return absl::DataLossError(
        StrCat("calibration tokens end early: ", context.calibration_tokens(), ", ", done, " of ",
               bytes.size(), " bytes"));
  }
  const int64_t vocabulary = checkpoint_->geometry().vocab_size;
  for (const int32_t token : tokens) {
    if (token < 0 || token >= vocabulary) {
      return absl::InvalidArgumentError(
          StrCat("calibration token beyond the vocabulary: ", token, " of ", vocabulary));
    }
  }
  tokens_ = std::move(tokens);
  return absl::OkStatus();
}

}  // namespace gradq
