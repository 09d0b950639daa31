#pragma once

// Early returns on absl::Status, and the check for broken invariants. Included everywhere.
//
//   GRADQ_RETURN_IF_ERROR(Write(...));
//   GRADQ_ASSIGN_OR_RETURN(auto bytes, Read(...));
//   GRADQ_CHECK(row < rows) << ... is not supported: the message is the expression and its place.

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define GRADQ_RETURN_IF_ERROR(expression)                                                  \
  do {                                                                                     \
    if (absl::Status gradq_status = (expression); !gradq_status.ok()) return gradq_status; \
  } while (false)

#define GRADQ_CONCAT_INNER(a, b) a##b
#define GRADQ_CONCAT(a, b) GRADQ_CONCAT_INNER(a, b)

#define GRADQ_ASSIGN_OR_RETURN(target, expression) \
  GRADQ_ASSIGN_OR_RETURN_INNER(GRADQ_CONCAT(gradq_or_, __LINE__), target, expression)
// NOLINTBEGIN(bugprone-macro-parentheses): `target` may be a declaration, which takes none.
#define GRADQ_ASSIGN_OR_RETURN_INNER(or_value, target, expression) \
  auto or_value = (expression);                                    \
  if (!or_value.ok()) return std::move(or_value).status();         \
  target = *std::move(or_value)
// NOLINTEND(bugprone-macro-parentheses)

// A broken invariant of our own; never for data from outside.
#define GRADQ_CHECK(condition)                                                           \
  do {                                                                                   \
    if (!(condition)) {                                                                  \
      std::fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                      \
    }                                                                                    \
  } while (false)
