#pragma once

// What a stage of a job holds and computes in one round, estimated from shapes. Used by plan.cc.
// All numbers are doubles: absurd geometries must give large numbers, not overflow. Estimates count
// the tensors that live at the peak; allocators and code come on top (kProcessBytes).

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
  double retained = 0;      // of earlier rounds, for a solve that is still to come
  double solve = 0;         // the largest linear's solve, beside the finished statistics
  double streams = 0;       // chunks in flight, process overhead
};

// Of a round's pass: what a node costs per token and what the stages hold.
class MemoryModel {
 public:
  // `inputs` must outlive this. `retained`: statistics of earlier rounds that a later solve reads.
  MemoryModel(const PlanInputs& inputs, const Round& round,
              std::vector<const StatisticRow*> statistics,
              std::vector<const StatisticRow*> retained);

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
  std::vector<const StatisticRow*> retained_;
  bool backward_;
  bool blended_;                      // weights of a path: the original ones and those of a node
  std::vector<LinearShape> linears_;  // of one block
};

// Stored bits of one linear at `bits`, outliers not counted: codes with their padding, tables,
// scales, zero points.
double StoredBits(const LinearShape& linear, const QuantizerRow& row, const OptionMap& options,
                  int bits);
// Of the outliers at the recipe's fraction: columns, values and row pointers.
double OutlierBits(const LinearShape& linear, const Recipe& recipe);

// All of them follow the resolved recipe in `inputs`.
double ArtifactBytes(const PlanInputs& inputs, const QuantizerRow& row);
// Shards of all rounds and variants.
double ShardBytes(const PlanInputs& inputs, const QuantizerRow& row,
                  const std::vector<Round>& program);
double SolveFlop(const PlanInputs& inputs, const QuantizerRow& row,
                 const std::vector<Round>& program);

}  // namespace gradq
