#include "services/cli/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_format.h"
#include "lib/base/strings.h"

namespace gradq {
namespace {

// Shares of the wall time up to the artifact, from runs of the bundled models; they only shape the
// bar and the ETA.
constexpr double kChunkShare = 0.75;

std::string PredictedText(const v1::Job& job) {
  if (!job.progress().has_predicted_loss_increase()) return "";
  return absl::StrFormat("  loss +%.4f predicted", job.progress().predicted_loss_increase());
}

// Of a job with several rounds: "round 2/3, requantize".
std::string RoundText(const v1::Job& job) {
  return StrCat("round ", job.progress().round() + 1, "/", job.plan().rounds_size(), ", ",
                job.progress().purpose());
}

// "12/21 linears" of the round that runs; empty where it solves none.
std::string LinearsText(const v1::Job& job) {
  const v1::JobProgress& progress = job.progress();
  const bool runs = job.state() == v1::Job::RUNNING && progress.round() < job.plan().rounds_size();
  if (progress.linears_total() == 0 || !runs) return "";
  if (job.plan().rounds(progress.round()).solve() == v1::RoundPlan::NOTHING) return "";
  const int total = job.plan().linears_size();
  int done = progress.linears_done();
  for (int r = 0; r < progress.round(); ++r) {
    if (job.plan().rounds(r).solve() != v1::RoundPlan::NOTHING) done -= total;
  }
  done = std::clamp(done, 0, total);
  return StrCat(done, "/", total, " linears");
}

}  // namespace

double FractionDone(const v1::Job& job) {
  const v1::JobProgress& progress = job.progress();
  if (job.state() >= v1::Job::ASSEMBLING && job.state() <= v1::Job::SUCCEEDED) return 1;
  const double chunks = progress.chunks_total() == 0
                            ? 1
                            : static_cast<double>(progress.chunks_done()) / progress.chunks_total();
  const double linears =
      progress.linears_total() == 0
          ? 0
          : static_cast<double>(progress.linears_done()) / progress.linears_total();
  const double chunk_share = progress.chunks_total() == 0 ? 0 : kChunkShare;
  return std::clamp(chunk_share * chunks + (1 - chunk_share) * linears, 0.0, 1.0);
}

std::string PhaseName(const v1::Job& job) {
  const v1::JobProgress& progress = job.progress();
  switch (job.state()) {
    case v1::Job::QUEUED:
      return "waiting for workers";
    case v1::Job::ASSEMBLING:
      return "assembling";
    case v1::Job::VALIDATING:
      return "validating";
    case v1::Job::SUCCEEDED:
      return "done";
    case v1::Job::FAILED:
      return "failed";
    case v1::Job::CANCELLING:
      return "cancelling";
    case v1::Job::CANCELLED:
      return "cancelled";
    default:
      if (job.plan().rounds_size() > 1) return RoundText(job);
      if (progress.chunks_done() < progress.chunks_total()) {
        return progress.linears_done() > 0
                   ? "gradients, solving"
                   : (job.plan().needs_backward() ? "gradients" : "forward");
      }
      return "solving";
  }
}

std::string DurationText(absl::Duration duration) {
  const double seconds = absl::ToDoubleSeconds(duration);
  if (seconds < 60) return absl::StrFormat("%.1f s", seconds);
  const int64_t whole = static_cast<int64_t>(seconds + 0.5);
  if (whole < 3600) return absl::StrFormat("%d min %02d s", whole / 60, whole % 60);
  return absl::StrFormat("%d h %02d min", whole / 3600, whole % 3600 / 60);
}

ProgressView::Style ProgressView::StyleForStderr() {
  return isatty(STDERR_FILENO) ? Style::kBar : Style::kLines;
}

void ProgressView::Update(const v1::Job& job, absl::Time now) {
  if (style_ == Style::kNone) return;
  if (start_ == absl::InfinitePast()) start_ = now;
  const double fraction = FractionDone(job);
  const std::string phase = PhaseName(job);
  const absl::Duration elapsed = now - start_;
  // Before a few percent are done the extrapolation says nothing.
  std::string eta;
  if (fraction > 0.05 && fraction < 1)
    eta = StrCat("  ETA ", DurationText(elapsed * ((1 - fraction) / fraction)));

  std::string counts = LinearsText(job);
  if (!counts.empty()) counts = "  " + counts;
  if (style_ == Style::kLines) {
    const int tenth = static_cast<int>(fraction * 10);
    if (phase == last_phase_ && tenth == last_tenth_) return;
    last_phase_ = phase;
    last_tenth_ = tenth;
    std::fprintf(stderr, "%7s  %3d %%  %s%s%s%s\n", DurationText(elapsed).c_str(),
                 static_cast<int>(fraction * 100), phase.c_str(), counts.c_str(),
                 PredictedText(job).c_str(), eta.c_str());
    return;
  }
  int columns = 80;
  if (winsize size; ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
    columns = size.ws_col;
  constexpr int kBarWidth = 24;
  const int filled = static_cast<int>(fraction * kBarWidth + 0.5);
  std::string line = "[";
  for (int i = 0; i < kBarWidth; ++i) line += i < filled ? '#' : '.';
  line += absl::StrFormat("] %3d %%  %s", static_cast<int>(fraction * 100), phase);
  line += StrCat(counts, PredictedText(job), eta);
  if (static_cast<int>(line.size()) >= columns) line.resize(static_cast<size_t>(columns - 1));
  std::fprintf(stderr, "\r\x1b[K%s", line.c_str());
  std::fflush(stderr);
  drawn_ = true;
}

void ProgressView::Clear() {
  if (!drawn_) return;
  std::fprintf(stderr, "\r\x1b[K");
  std::fflush(stderr);
  drawn_ = false;
}

}  // namespace gradq
