#pragma once

// The implementations behind the table of statistic.cc: for tensors of the CPU on the kernels of
// lib/kernels, for any device on ATen.

#include <memory>

#include "lib/statistics/statistic.h"

namespace gradq {

std::unique_ptr<Statistic> MakeFisherBlocks(const StatisticSetup& setup);
std::unique_ptr<Statistic> MakeFisherDiagonal(const StatisticSetup& setup);
std::unique_ptr<Statistic> MakeWeightGradient(const StatisticSetup& setup);
std::unique_ptr<Statistic> MakeOutputFisher(const StatisticSetup& setup);
std::unique_ptr<Statistic> MakeGram(const StatisticSetup& setup);

// The ATen forms, which the functions above choose off the CPU; the tests run them on the CPU.
std::unique_ptr<Statistic> MakeFisherBlocksOnDevice(const StatisticSetup& setup);
std::unique_ptr<Statistic> MakeFisherDiagonalOnDevice(const StatisticSetup& setup);
std::unique_ptr<Statistic> MakeWeightGradientOnDevice(const StatisticSetup& setup);
std::unique_ptr<Statistic> MakeOutputFisherOnDevice(const StatisticSetup& setup);
std::unique_ptr<Statistic> MakeGramOnDevice(const StatisticSetup& setup);

// fp32 zeros.
at::Tensor ZeroSums(at::IntArrayRef sizes, at::Device device);
// Checks [tokens, features] fp32 and makes it contiguous.
at::Tensor CheckedTokens(const at::Tensor& tensor, int64_t features);
// Full symmetric [d, d] of any device -> packed lower triangle on the CPU.
at::Tensor PackTriangle(const at::Tensor& full);

}  // namespace gradq
