#pragma once

// What a finished job prints: the table for people and the JSON of the command-line contract.

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "gradq/v1/job.pb.h"

namespace gradq {

// From submission to the terminal state, by the coordinator's clock; without evaluation that is the
// artifact's rename.
absl::Duration JobDuration(const v1::Job& job);

// {job, output, seconds, phases, predicted_loss_increase, average_bits, bytes, evaluation}; seconds
// are JobDuration.
std::string QuantizeJson(const v1::Job& job);

// Original and quantized perplexity, KL, agreement, bytes, predicted and measured loss increase,
// seconds per phase.
std::string QuantizeTable(const v1::Job& job, absl::Duration wall, double idle_share);

// {perplexity, reference_perplexity, kl, top1_agreement, tokens, seconds}
std::string ComparisonJson(const v1::Comparison& comparison);

// Share of [start, end] in which no process was inside a numeric task.
double IdleShare(const std::vector<v1::Task>& tasks, absl::Time start, absl::Time end);

// "1.9 MiB"
std::string FormatBytes(double bytes);

}  // namespace gradq
