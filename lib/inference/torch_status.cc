#include "lib/inference/torch_status.h"

#include <c10/util/Exception.h>

#include <exception>
#include <new>
#include <string>
#include <utility>

#include "lib/base/strings.h"

namespace gradq {
namespace {

class StatusError : public std::exception {
 public:
  explicit StatusError(absl::Status status) : status_(std::move(status)) {}
  const absl::Status& status() const { return status_; }

 private:
  absl::Status status_;
};

}  // namespace

void ThrowIfError(const absl::Status& status) {
  if (!status.ok()) throw StatusError(status);
}

absl::Status TorchStatus(std::string_view what, absl::FunctionRef<absl::Status()> body) {
  try {
    return body();
  } catch (const StatusError& error) {
    return absl::Status(error.status().code(),
                        StrCat(what, ": ", std::string(error.status().message())));
  } catch (const c10::OutOfMemoryError& error) {
    return absl::ResourceExhaustedError(
        StrCat("out of device memory: ", what, ": ", error.what_without_backtrace()));
  } catch (const c10::Error& error) {
    const std::string text = error.what_without_backtrace();
    // The CPU allocator reports a failed allocation as a plain error.
    if (text.find("not enough memory") != std::string::npos ||
        text.find("can't allocate memory") != std::string::npos) {
      return absl::ResourceExhaustedError(StrCat("out of memory: ", what, ": ", text));
    }
    return absl::InternalError(StrCat(what, ": ", text));
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(StrCat("out of memory: ", what));
  } catch (const std::exception& error) {
    return absl::InternalError(StrCat(what, ": ", error.what()));
  }
}

}  // namespace gradq
