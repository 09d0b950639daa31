#pragma once

// Every page of a List call of the core, for the coordinator's own use.

#include "absl/status/status.h"
#include "lib/base/status_macros.h"

namespace gradq {

// Calls take(response) for each page of list(request).
template <typename Response, typename Request, typename List, typename Take>
absl::Status ForEachPage(Request request, const List& list, const Take& take) {
  request.set_page_size(1000);
  do {
    GRADQ_ASSIGN_OR_RETURN(const Response response, list(request));
    take(response);
    request.set_page_token(response.next_page_token());
  } while (!request.page_token().empty());
  return absl::OkStatus();
}

}  // namespace gradq
