#include "lib/pipeline/tensors.h"

#include <ATen/ops/from_blob.h>
#include <c10/util/Exception.h>

#include <exception>
#include <memory>
#include <new>
#include <utility>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"

namespace gradq {
namespace {

constexpr size_t kMaxMessage = 2048;

std::string Cut(std::string text) {
  if (text.size() > kMaxMessage) text.resize(kMaxMessage);
  return text;
}

}  // namespace

HostTensor ToHost(std::string name, const at::Tensor& tensor) {
  HostTensor host;
  host.name = std::move(name);
  switch (tensor.scalar_type()) {
    case at::kFloat:
      host.dtype = "float32";
      break;
    case at::kDouble:
      host.dtype = "float64";
      break;
    case at::kInt:
      host.dtype = "int32";
      break;
    default:
      GRADQ_CHECK(!"dtype of a stream tensor");
  }
  host.shape = tensor.sizes().vec();
  // The owner is the tensor itself, kept in the deleter's place by an aliasing pointer.
  auto owner = std::make_shared<at::Tensor>(tensor.detach().cpu().contiguous());
  const auto* bytes = static_cast<const std::byte*>(owner->const_data_ptr());
  host.data = {{owner, bytes}, owner->nbytes()};
  return host;
}

absl::StatusOr<at::Tensor> ToTensor(const HostTensor& tensor) {
  GRADQ_ASSIGN_OR_RETURN(const int64_t bytes, TensorBytes(tensor.dtype, tensor.shape));
  if (bytes != static_cast<int64_t>(tensor.data.size)) {
    return absl::InvalidArgumentError(
        StrCat("bytes of a stream tensor do not fit its shape: ", tensor.name, ", ",
               tensor.data.size, " instead of ", bytes));
  }
  const at::ScalarType type = tensor.dtype == "float32"   ? at::kFloat
                              : tensor.dtype == "float64" ? at::kDouble
                                                          : at::kInt;
  void* data = const_cast<std::byte*>(tensor.data.data.get());
  return at::from_blob(
      data, tensor.shape, [keep = tensor.data.data](void*) {}, at::TensorOptions().dtype(type));
}

absl::StatusOr<at::Tensor> FindTensor(const Chunk& chunk, std::string_view name) {
  for (const HostTensor& tensor : chunk.tensors) {
    if (tensor.name == name) return ToTensor(tensor);
  }
  return absl::DataLossError(StrCat("tensor missing in a chunk: ", name));
}

absl::Status CatchTorch(std::string_view what, absl::FunctionRef<absl::Status()> body) {
  try {
    return body();
  } catch (const c10::OutOfMemoryError& error) {
    return absl::ResourceExhaustedError(
        Cut(StrCat("out of device memory: ", what, ": ", error.what_without_backtrace())));
  } catch (const c10::Error& error) {
    const std::string text = error.what_without_backtrace();
    // The CPU allocator reports a failed allocation as a plain error.
    if (text.find("not enough memory") != std::string::npos ||
        text.find("can't allocate memory") != std::string::npos) {
      return absl::ResourceExhaustedError(Cut(StrCat("out of memory: ", what, ": ", text)));
    }
    return absl::InternalError(Cut(StrCat(what, ": ", text)));
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(StrCat("out of memory: ", what));
  } catch (const std::exception& error) {
    return absl::InternalError(Cut(StrCat(what, ": ", error.what())));
  }
}

}  // namespace gradq
