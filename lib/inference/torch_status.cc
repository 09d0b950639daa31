#include "lib/inference/torch_status.h"

#include <c10/util/Exception.h>

#include <exception>
#include <new>
#include <string>

#include "lib/base/strings.h"

namespace gradq {

absl::Status TorchStatus(std::string_view what, absl::FunctionRef<absl::Status()> body) {
  try {
    return body();
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
