#pragma once

// Live progress of a job on stderr: one redrawn line on a terminal, else a line at each phase and
// tenth. One caller at a time.

#include <string>

#include "absl/time/time.h"
#include "gradq/v1/job.pb.h"

namespace gradq {

// Share of the work up to the artifact that is done, in [0, 1].
double FractionDone(const v1::Job& job);

// "backward", "solving", ...: what the job does now.
std::string PhaseName(const v1::Job& job);

// "12.3 s", "4 min 05 s", "2 h 03 min".
std::string DurationText(absl::Duration duration);

class ProgressView {
 public:
  enum class Style { kBar, kLines, kNone };
  // kBar when stderr is a terminal, else kLines.
  static Style StyleForStderr();
  explicit ProgressView(Style style) : style_(style) {}
  ~ProgressView() { Clear(); }

  void Update(const v1::Job& job, absl::Time now);
  // Ends the redrawn line, so that other output starts at the left.
  void Clear();

 private:
  Style style_;
  absl::Time start_ = absl::InfinitePast();
  std::string last_phase_;
  int last_tenth_ = -1;
  bool drawn_ = false;
};

}  // namespace gradq
