#pragma once

// What a finished job prints: the table for people and the JSON of the command-line contract.

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "gradq/v1/job_service.pb.h"
#include "lib/format/inspect.h"

namespace gradq {

// From submission to the terminal state, by the coordinator's clock; without evaluation that is the
// artifact's rename.
absl::Duration JobDuration(const v1::Job& job);

// {job, output, seconds, phases, predicted_loss_increase, average_bits, bytes, evaluation,
// path_checks, shrinkage, outlier_fraction}; seconds are JobDuration.
std::string QuantizeJson(const v1::Job& job, double outlier_fraction);

// What came out, indented lines: bits, bytes, outliers, predicted and measured loss increase,
// perplexities, KL, agreement, the checks along the way.
std::string ResultTable(const v1::Job& job, double outlier_fraction);
// The artifact's path, ResultTable, then seconds per phase.
std::string QuantizeTable(const v1::Job& job, absl::Duration wall, double idle_share,
                          double outlier_fraction);

// Bits against loss of a job with mixed widths; the job's own point is marked.
std::string FrontierTable(const std::string& job, const v1::Frontier& frontier);
// {job, least_bits, most_bits, points: [{average_bits, predicted_loss_increase,
// measured_loss_increase, job, linears}]}; linears by width, null where not known.
std::string FrontierJson(const std::string& job, const v1::Frontier& frontier);

// Share of an artifact's weights that are kept apart.
double OutlierFraction(const Inspection& inspection);

// {perplexity, reference_perplexity, kl, top1_agreement, tokens, seconds}
std::string ComparisonJson(const v1::Comparison& comparison);

// Share of [start, end] in which no process was inside a numeric task.
double IdleShare(const std::vector<v1::Task>& tasks, absl::Time start, absl::Time end);

// "1.9 MiB"
std::string FormatBytes(double bytes);

}  // namespace gradq
