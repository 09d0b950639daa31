#pragma once

// SIGTERM and SIGINT without handlers: Block() first thing in main (before any thread starts), then
// wait on a thread.

#include "absl/time/time.h"

namespace gradq {

class Signals {
 public:
  // Blocks SIGTERM, SIGINT and SIGPIPE in this and all later threads.
  static void Block();
  // Restores the default mask; for the child side of posix_spawn use posix_spawnattr_setsigmask
  // with an empty set. The next signal, or 0 after `timeout`.
  static int Wait(absl::Duration timeout);
};

}  // namespace gradq
