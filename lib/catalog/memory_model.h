#pragma once

// What a stage of a job holds and computes, estimated from shapes. Used by plan.cc. All numbers are
// doubles: absurd geometries must give large numbers, not overflow. Estimates count the tensors
// that live at the peak; allocators and code come on top (kProcessBytes).

#include <vector>

#include "lib/catalog/plan.h"
#include "lib/catalog/statistics.h"

namespace gradq {

// Bytes.
struct StageMemory {
  double weights = 0;
  double graph =
      0;  // what autograd keeps of one chunk, or the largest intermediate of a forward-only job
  double accumulating = 0;  // statistics of all linears of the stage while they are summed
  double finished = 0;      // and when done
  double solve = 0;         // the largest linear's solve, beside the finished statistics
  double streams = 0;       // chunks in flight, process overhead
};

class MemoryModel {
 public:
  // `inputs` must outlive this.
  MemoryModel(const PlanInputs& inputs, std::vector<const StatisticRow*> statistics, bool backward);

  // Blocks [first, end).
  StageMemory OfStage(int first, int end, bool recompute) const;

  // Of one block and token; backward counts input gradients only (weight gradients belong to the
  // statistic that takes them).
  double ForwardFlopPerToken() const;
  double BackwardFlopPerToken() const;
  double StatisticsFlopPerToken() const;
  // Logits, loss and its gradient.
  double HeadFlopPerToken() const;

 private:
  double GraphElementsPerToken() const;

  const PlanInputs& inputs_;
  std::vector<const StatisticRow*> statistics_;
  bool backward_;
  std::vector<LinearShape> linears_;  // of one block
};

double ArtifactBytes(const PlanInputs& inputs, const QuantizerRow& row, const OptionMap& options);
double SolveFlop(const PlanInputs& inputs, const QuantizerRow& row, const OptionMap& options);

}  // namespace gradq
