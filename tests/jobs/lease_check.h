#pragma once

// What a lease must tell its worker, for the simulation.

#include <set>
#include <string>

#include "gradq/v1/worker_service.pb.h"

namespace gradq {

// Shards, decisions and statistics that the lease's task needs, and no others. `durable`: digests
// of the shards that workers have written. Empty: all is well; else what is wrong.
std::string WrongInLease(const v1::Lease& lease, const std::set<std::string>& durable);

}  // namespace gradq
