#pragma once

// Contiguous groups of output channels that share one Fisher block.

#include <cstdint>

namespace gradq {

// The first rows % groups groups get one row more. `groups` in [1, rows].
struct GroupPartition {
  int64_t rows = 0;
  int groups = 1;

  int64_t begin(int group) const {
    const int64_t base = rows / groups, longer = rows % groups;
    return group * base + (group < longer ? group : longer);
  }
  int64_t size(int group) const { return begin(group + 1) - begin(group); }
  int group_of(int64_t row) const {
    const int64_t base = rows / groups, longer = rows % groups;
    const int64_t split = longer * (base + 1);
    return static_cast<int>(row < split ? row / (base + 1) : longer + (row - split) / base);
  }
};

}  // namespace gradq
