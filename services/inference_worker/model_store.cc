#include "services/inference_worker/model_store.h"

#include <sys/stat.h>

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

#include "lib/base/files.h"
#include "lib/base/logging.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"

namespace gradq {
namespace {

constexpr int64_t kTokenizerLimit = int64_t{256} << 20;
constexpr int64_t kConfigLimit = int64_t{16} << 20;

absl::StatusOr<std::string> Fingerprint(const ReadableFolder& folder) {
  GRADQ_ASSIGN_OR_RETURN(const std::vector<FolderEntry> entries, folder.List());
  std::string fingerprint;
  for (const FolderEntry& entry : entries) {
    struct stat info = {};
    // A file that is gone by now makes another fingerprint than one that is there.
    stat(StrCat(folder.path(), "/", entry.name).c_str(), &info);
    fingerprint += StrCat(entry.name, " ", entry.size, " ", info.st_ino, " ", info.st_mtim.tv_sec,
                          ".", info.st_mtim.tv_nsec, "\n");
  }
  return fingerprint;
}

bool HasFile(const std::vector<FolderEntry>& entries, std::string_view name) {
  return std::any_of(entries.begin(), entries.end(),
                     [&](const FolderEntry& entry) { return entry.name == name; });
}

// Adds the ids of "eos_token_id" (a number, a list, null or absent) of a JSON file.
absl::Status AddEndTokens(const ReadableFolder& folder, std::string_view file,
                          std::vector<int32_t>* tokens) {
  GRADQ_ASSIGN_OR_RETURN(const std::string text, folder.ReadAll(file, kConfigLimit));
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return absl::InvalidArgumentError(StrCat("not a JSON object: ", folder.path(), "/", file));
  }
  const auto found = json.find("eos_token_id");
  if (found == json.end() || found->is_null()) return absl::OkStatus();
  const nlohmann::json list = found->is_array() ? *found : nlohmann::json::array({*found});
  for (const nlohmann::json& id : list) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX) {
      return absl::InvalidArgumentError(
          StrCat("eos_token_id is no token id: ", folder.path(), "/", file, ": ", id.dump()));
    }
    tokens->push_back(id.get<int32_t>());
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<ServedModel>> LoadServed(const ReadableFolder& folder,
                                                        const LoadOptions& options) {
  auto served = std::make_shared<ServedModel>();
  served->path = folder.path();
  GRADQ_ASSIGN_OR_RETURN(served->model, Model::Load(folder, options));
  GRADQ_ASSIGN_OR_RETURN(const std::vector<FolderEntry> entries, folder.List());
  if (!HasFile(entries, "tokenizer.json")) {
    return absl::FailedPreconditionError(StrCat("tokenizer.json missing: ", folder.path()));
  }
  GRADQ_ASSIGN_OR_RETURN(const std::string tokenizer,
                         folder.ReadAll("tokenizer.json", kTokenizerLimit));
  absl::StatusOr<std::unique_ptr<Tokenizer>> opened = Tokenizer::Open(tokenizer);
  if (!opened.ok()) {
    return absl::Status(opened.status().code(),
                        StrCat(folder.path(), "/tokenizer.json: ", opened.status().message()));
  }
  served->tokenizer = *std::move(opened);
  for (const char* file : {"config.json", "generation_config.json"}) {
    if (!HasFile(entries, file)) continue;
    GRADQ_RETURN_IF_ERROR(AddEndTokens(folder, file, &served->end_tokens));
  }
  return served;
}

}  // namespace

bool ModelStore::PutIdleAway() {
  for (auto at = models_.rbegin(); at != models_.rend(); ++at) {
    if (at->use_count() > 1) continue;  // a call would keep its memory
    LogInfo("model is put away for another one: ", (*at)->path);
    models_.erase(std::next(at).base());
    return true;
  }
  return false;
}

absl::StatusOr<std::shared_ptr<ServedModel>> ModelStore::Get(const std::string& path) {
  GRADQ_ASSIGN_OR_RETURN(const std::unique_ptr<ReadableFolder> folder, OpenLocalFolder(path));
  GRADQ_ASSIGN_OR_RETURN(std::string fingerprint, Fingerprint(*folder));
  const auto found = std::find_if(models_.begin(), models_.end(),
                                  [&](const auto& model) { return model->path == path; });
  if (found != models_.end()) {
    if ((*found)->fingerprint == fingerprint) {
      models_.splice(models_.begin(), models_, found);
      return models_.front();
    }
    LogInfo("model has changed, loading it again: ", path);
    models_.erase(found);
  }
  // Room first: the old and the new together may be more than memory holds.
  while (models_.size() >= limit_) {
    LogInfo("model is put away: ", models_.back()->path);
    models_.pop_back();
  }
  absl::StatusOr<std::shared_ptr<ServedModel>> loaded = LoadServed(*folder, options_);
  while (absl::IsResourceExhausted(loaded.status()) && PutIdleAway()) {
    loaded = LoadServed(*folder, options_);
  }
  GRADQ_RETURN_IF_ERROR(loaded.status());
  (*loaded)->fingerprint = std::move(fingerprint);
  const ModelMemory memory = (*loaded)->model->memory();
  LogInfo("model is loaded: ", path, (*loaded)->model->quantized() ? ", quantized" : "",
          ", bytes on ", options_.device, ": linears ", memory.linears,
          ", embedding, head, norms and biases ", memory.kept, ", cache per token ",
          memory.cache_per_token, ", scratch about ", memory.scratch);
  models_.push_front(*loaded);
  return loaded;
}

}  // namespace gradq
