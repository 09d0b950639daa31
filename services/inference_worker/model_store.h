#pragma once

// Models that were loaded for clients, the most recently used kept. A folder that was replaced or
// changed since is loaded anew. Compute thread only.

#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/inference/model.h"
#include "lib/tokenizer/tokenizer.h"

namespace gradq {

struct ServedModel {
  std::string path;
  // Names, sizes and times of the folder's files when it was loaded.
  std::string fingerprint;
  std::unique_ptr<Model> model;
  std::unique_ptr<Tokenizer> tokenizer;
  // Any of these ends a text.
  std::vector<int32_t> end_tokens;
};

class ModelStore {
 public:
  // Keeps at most `limit` ≥ 1 models.
  ModelStore(LoadOptions options, size_t limit) : options_(std::move(options)), limit_(limit) {}

  // shared_ptr: a model that is pushed out by another stays until its calls end. `path` is
  // resolved. Where memory does not suffice, idle ones are put away.
  // Errors as Model::Load; FAILED_PRECONDITION without tokenizer.json; INVALID_ARGUMENT
  // for a broken one or wrong end tokens.
  absl::StatusOr<std::shared_ptr<ServedModel>> Get(const std::string& path);

 private:
  // The least recently used model that no call uses; false when there is none.
  bool PutIdleAway();

  const LoadOptions options_;
  const size_t limit_;
  std::list<std::shared_ptr<ServedModel>> models_;  // the most recently used first
};

}  // namespace gradq
