#include "services/coordinator/assembly.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>
#include <vector>

#include "lib/base/digest.h"
#include "lib/base/files.h"
#include "lib/base/logging.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "lib/format/artifact.h"
#include "lib/format/checkpoint.h"
#include "services/coordinator/report.h"

namespace gradq {
namespace {

using nlohmann::json;

constexpr int64_t kMaxShardBytes = int64_t{1} << 34;
constexpr std::string_view kReportName = "report.json";

// What a job is about to publish, or has published: lets a restarted coordinator tell its own
// finished folder from someone else's.
struct Note {
  std::string staging;
  AssembleResult result;  // digest empty until the folder is written
};

absl::Status WriteNote(const std::string& path, const Note& note) {
  const json object = {{"staging", note.staging},
                       {"artifact_path", note.result.artifact_path},
                       {"digest", note.result.digest},
                       {"bytes", note.result.bytes},
                       {"average_bits", note.result.average_bits}};
  return WriteFileAtomically(path, object.dump());
}

Note ReadNote(const std::string& path) {
  Note note;
  if (!PathExists(path)) return note;
  const auto text = ReadFile(path, 1 << 20);
  if (!text.ok()) return note;
  const json object = json::parse(*text, nullptr, false);
  if (!object.is_object()) return note;
  note.staging = object.value("staging", "");
  note.result.artifact_path = object.value("artifact_path", "");
  note.result.digest = object.value("digest", "");
  note.result.bytes = object.value("bytes", int64_t{0});
  note.result.average_bits = object.value("average_bits", 0.0);
  return note;
}

absl::StatusOr<std::string> FileDigest(const RandomAccessFile& file) {
  std::vector<std::byte> buffer(int64_t{1} << 20);
  Sha256 digest;
  for (int64_t offset = 0; offset < file.size();) {
    const auto piece = std::span(buffer).first(static_cast<size_t>(
        std::min<int64_t>(static_cast<int64_t>(buffer.size()), file.size() - offset)));
    GRADQ_RETURN_IF_ERROR(file.Read(offset, piece));
    digest.Update(piece);
    offset += static_cast<int64_t>(piece.size());
  }
  return digest.FinishHex();
}

}  // namespace

absl::StatusOr<std::string> FolderDigest(const std::string& folder) {
  GRADQ_ASSIGN_OR_RETURN(const auto readable, OpenLocalFolder(folder));
  GRADQ_ASSIGN_OR_RETURN(const std::vector<FolderEntry> entries, readable->List());
  Sha256 digest;
  for (const FolderEntry& entry : entries) {
    if (entry.name == kReportName) continue;
    GRADQ_ASSIGN_OR_RETURN(const auto file, readable->Open(entry.name));
    GRADQ_ASSIGN_OR_RETURN(const std::string sha256, FileDigest(*file));
    digest.Update(StrCat(entry.name, " ", entry.size, " ", sha256, "\n"));
  }
  return digest.FinishHex();
}

Assembler::Assembler(const AssemblyHost* host) : host_(*host), thread_([this] { Run(); }) {}

Assembler::~Assembler() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

bool Assembler::stopping() {
  const std::lock_guard lock(mutex_);
  return stopping_;
}

void Assembler::Enqueue(const std::string& job) {
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(job);
  }
  wake_.notify_all();
}

void Assembler::Run() {
  while (true) {
    std::string job;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
      if (stopping_) return;
      job = std::move(queue_.front());
      queue_.pop_front();
    }
    Assemble(job);
  }
}

void Assembler::Assemble(const std::string& job) {
  const absl::StatusOr<AssembleResult> result = Make(job);
  if (!result.ok() && stopping()) return;
  if (result.ok()) {
    LogInfo("artifact of ", job, " stands: ", result->artifact_path, ", ", result->bytes, " bytes");
  } else {
    LogWarning("assembly of ", job, " failed: ", result.status().message());
  }
  // The store may be full or busy; the outcome must reach it before anything else counts on it.
  while (true) {
    const absl::Status status = host_.finish(job, result);
    if (status.ok()) break;
    LogWarning("cannot record the artifact of ", job, ": ", status.message());
    const bool again = absl::IsResourceExhausted(status) || absl::IsUnavailable(status);
    std::unique_lock lock(mutex_);
    if (!again || wake_.wait_for(lock, std::chrono::seconds(1), [this] { return stopping_; })) {
      return;
    }
  }
}

absl::StatusOr<AssembleResult> Assembler::Make(const std::string& job) {
  GRADQ_ASSIGN_OR_RETURN(const v1::JobRecord record, host_.record(job));
  GRADQ_ASSIGN_OR_RETURN(const std::string output, host_.output_path(record));
  const std::string note_path = host_.note_path(job);
  Note note = ReadNote(note_path);
  if (!note.result.digest.empty() && note.result.artifact_path == output && PathExists(output)) {
    // An earlier run of this coordinator may have ended between the rename and its record.
    const auto standing = FolderDigest(output);
    if (standing.ok() && *standing == note.result.digest && host_.begin_rename(job)) {
      return note.result;
    }
  }
  if (note.staging.starts_with(output + ".")) {
    RemoveRecursively(note.staging).IgnoreError();  // left by an earlier run
  }

  GRADQ_ASSIGN_OR_RETURN(auto model, OpenLocalFolder(record.model_path()));
  GRADQ_ASSIGN_OR_RETURN(const auto original, Checkpoint::Open(std::move(model)));
  if (original->layout_digest() != record.model_digest()) {
    return absl::FailedPreconditionError(
        StrCat("model changed while the job ran: ", record.model_path()));
  }
  GRADQ_ASSIGN_OR_RETURN(const std::vector<v1::ShardSummary> shards, host_.shards(job));
  std::map<std::string, std::string> digests;
  for (const v1::ShardSummary& shard : shards) digests[shard.linear()] = shard.sha256();
  GRADQ_ASSIGN_OR_RETURN(const BlobStore store, host_.shard_store(job));

  const bool replace = record.job().spec().force() || record.job().spec().output().empty();
  GRADQ_ASSIGN_OR_RETURN(AtomicFolder folder, AtomicFolder::Create(output, replace));
  note = Note{folder.staging(), {}};
  GRADQ_RETURN_IF_ERROR(WriteNote(note_path, note));

  ArtifactInputs inputs;
  inputs.original = original.get();
  inputs.recipe_json = RecipeJson(record);
  inputs.numerics_class = record.job().plan().numerics_class();
  inputs.read_shard = [&](const std::string& linear) -> absl::StatusOr<std::string> {
    if (stopping()) return absl::CancelledError("coordinator is shutting down");
    const auto it = digests.find(linear);
    if (it == digests.end()) {
      return absl::InternalError(StrCat("linear without a durable shard: ", linear));
    }
    return store.Read(it->second, kMaxShardBytes);
  };
  GRADQ_ASSIGN_OR_RETURN(const ArtifactSummary summary, WriteArtifact(inputs, folder.staging()));

  note.result = {output, summary.digest, summary.bytes, summary.average_bits};
  GRADQ_RETURN_IF_ERROR(WriteNote(note_path, note));
  if (!host_.begin_rename(job)) {
    return absl::CancelledError("job was cancelled before its artifact was renamed");
  }
  GRADQ_RETURN_IF_ERROR(folder.Commit());
  return note.result;
}

absl::Status WriteReport(const AssemblyHost& host, const std::string& job) {
  GRADQ_ASSIGN_OR_RETURN(const v1::JobRecord record, host.record(job));
  const std::string folder = record.job().artifact_path();
  if (folder.empty() || !PathExists(folder)) return absl::OkStatus();
  GRADQ_ASSIGN_OR_RETURN(const auto tasks, host.tasks(job));
  GRADQ_ASSIGN_OR_RETURN(const auto workers, host.workers());
  return WriteFileAtomically(StrCat(folder, "/", kReportName),
                             ReportJson(record.job(), tasks, workers));
}

}  // namespace gradq
