#include "tests/jobs/lease_check.h"

#include <utility>

#include "lib/base/strings.h"
#include "tests/jobs/job_fixture.h"

namespace gradq {

std::string WrongInLease(const v1::Lease& lease, const std::set<std::string>& durable) {
  if (lease.spec().has_validate()) return "";
  const v1::JobPlan& plan = lease.job().plan();
  const v1::RoundPlan& round = RoundOfLease(lease);
  const bool solve = lease.spec().has_solve_linear();
  const int reads = solve ? round.statistics_round() : -1;
  if (solve && (lease.statistics_size() == 1) != (reads >= 0)) {
    return StrCat("a solve without its statistics: ", lease.task());
  }
  for (const v1::StreamLocation& statistic : lease.statistics()) {
    if (solve && statistic.stream().round() != reads) {
      return StrCat("statistics of the wrong round: ", lease.task());
    }
  }
  if (solve && round.decision() == v1::RoundPlan::THRESHOLD && !lease.decision().has_threshold()) {
    return StrCat("a solve without its threshold: ", lease.task());
  }
  if (solve && round.decision() == v1::RoundPlan::SHARES &&
      !lease.decision().has_outlier_fraction()) {
    return StrCat("a solve without its share: ", lease.task());
  }
  size_t wanted = 0;
  if (round.weights_round() >= 0 && !(solve && round.solve() == v1::RoundPlan::QUANTIZE)) {
    std::set<int> variants;
    for (const v1::RoundPlan::Node& node : round.nodes()) variants.insert(node.variant());
    size_t linears = 1;
    if (lease.spec().has_run_stage()) {
      const int stage = lease.spec().run_stage().stage();
      const bool last = stage + 1 == plan.first_block_size();
      linears =
          7 * ((last ? plan.blocks() : plan.first_block(stage + 1)) - plan.first_block(stage));
    }
    wanted = linears * variants.size();
  }
  std::set<std::pair<std::string, int>> given;
  for (const v1::ShardRef& shard : lease.shards()) {
    given.emplace(shard.linear(), shard.variant());
    if (durable.count(shard.sha256()) == 0) {
      return StrCat("weights from a shard that is not durable: ", lease.task());
    }
  }
  if (given.size() != wanted || lease.shards_size() != static_cast<int>(wanted)) {
    return StrCat("shards in a lease: ", lease.task(), ", ", given.size(), " of ", wanted);
  }
  return "";
}

}  // namespace gradq
