#pragma once

// The tasks of a job and what they read from each other, from the plan alone: the same plan gives
// the same names and edges, so a restarted coordinator rebuilds the edges and takes only the tasks'
// states from its store. Of round r:
//
//   with gradients     forward-r-s   s = 0 .. S-2    activations leaving stage s
//                      backward-r-s  s = S-1 .. 0    reads activations of s-1 and gradients of s+1;
//                                                    statistics; the last one the loss
//   without gradients  forward-r-s   s = 0 .. S-1    accumulates; the last one makes no stream, and
//                                                    the loss where a choice follows from it
//   no nodes           no stage tasks at all
//   score-r-{block}-{kind}, decide-r, solve-r-{block}-{kind} where the round has them
//
// then assemble, and validate when there is evaluation text. What a round waits for besides streams
// are barriers (job_state.h).

#include "absl/status/status.h"
#include "lib/catalog/geometry.h"
#include "lib/jobs/job_state.h"

namespace gradq {

// Fills tasks (PENDING), rounds, linears, edges and orders of a job whose record holds a plan.
// INVALID_ARGUMENT: its recipe does not read.
absl::Status BuildTaskGraph(const ModelGeometry& geometry, JobState* job);

}  // namespace gradq
