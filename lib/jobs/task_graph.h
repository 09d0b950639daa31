#pragma once

// The tasks of a job and what they read from each other, from the plan alone: the same plan gives
// the same names and edges, so a restarted coordinator rebuilds the edges and takes only the tasks'
// states from its store.
//
//   with gradients     forward-0-s   s = 0 .. S-2          activations leaving stage s
//                      backward-0-s  s = S-1 .. 0          reads activations of s-1 and gradients
//                      of s+1; statistics; the last one the loss
//   without gradients  forward-0-s   s = 0 .. S-1          accumulates; the last one makes no
//   stream no statistics      no stage tasks at all then               solve-0-{block}-{kind},
//   assemble, validate (when there is evaluation text)

#include "absl/status/status.h"
#include "lib/catalog/geometry.h"
#include "lib/jobs/job_state.h"

namespace gradq {

// Fills tasks (PENDING), linears, edges and orders of a job whose record holds a plan.
void BuildTaskGraph(const ModelGeometry& geometry, JobState* job);

}  // namespace gradq
