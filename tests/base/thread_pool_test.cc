#include "lib/base/thread_pool.h"

#include <atomic>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace gradq {
namespace {

// Threads, and the time they spin before they sleep.
class ThreadPoolSizes : public testing::TestWithParam<std::tuple<int, absl::Duration>> {
 protected:
  static int Threads() { return std::get<0>(GetParam()); }
  static absl::Duration Spin() { return std::get<1>(GetParam()); }
};

TEST_P(ThreadPoolSizes, RunsEveryItemOnce) {
  ThreadPool pool(Threads(), Spin());
  EXPECT_EQ(pool.threads(), Threads());
  // Many small rounds: a thread that comes late to one must not take items of the next.
  for (int round = 0; round < 500; ++round) {
    const int count = round % 17;
    std::vector<std::atomic<int>> calls(count);
    pool.ParallelFor(count, [&](int64_t i, int worker) {
      ASSERT_GE(worker, 0);
      ASSERT_LT(worker, pool.threads());
      ++calls[i];
    });
    for (const auto& call : calls) ASSERT_EQ(call, 1) << "round " << round;
  }
}

TEST_P(ThreadPoolSizes, WritesOfBodiesAreSeenAfterwards) {
  ThreadPool pool(Threads(), Spin());
  std::vector<int64_t> squares(1000);
  pool.ParallelFor(1000, [&](int64_t i, int) { squares[i] = i * i; });
  for (int64_t i = 0; i < 1000; ++i) ASSERT_EQ(squares[i], i * i);
}

TEST_P(ThreadPoolSizes, AWorkerNumberIsNeverInUseTwice) {
  ThreadPool pool(Threads(), Spin());
  std::vector<std::atomic<int>> busy(Threads());
  pool.ParallelFor(200, [&](int64_t, int worker) {
    EXPECT_EQ(busy[worker].fetch_add(1), 0);
    std::this_thread::yield();
    busy[worker].fetch_sub(1);
  });
}

TEST_P(ThreadPoolSizes, ThrowsABodysExceptionAndWorksOn) {
  ThreadPool pool(Threads(), Spin());
  std::atomic<int> calls{0};
  try {
    pool.ParallelFor(1'000'000, [&](int64_t i, int) {
      ++calls;
      if (i == 3) throw std::runtime_error("item 3");
    });
    FAIL() << "no exception";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "item 3");
  }
  EXPECT_LT(calls, 1'000'000);
  calls = 0;
  pool.ParallelFor(10, [&](int64_t, int) { ++calls; });
  EXPECT_EQ(calls, 10);
}

TEST_P(ThreadPoolSizes, DoesNothingForNoItems) {
  ThreadPool pool(Threads(), Spin());
  pool.ParallelFor(0, [](int64_t, int) { FAIL(); });
  pool.ParallelFor(-1, [](int64_t, int) { FAIL(); });
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolSizes,
                         testing::Combine(testing::Values(1, 2, 3, 8),
                                          testing::Values(absl::ZeroDuration(),
                                                          absl::Microseconds(50))));

// Two items that wait for each other end only when two threads run them.
TEST(ThreadPool, ItemsRunAtTheSameTime) {
  ThreadPool pool(2);
  std::atomic<int> arrived{0};
  pool.ParallelFor(2, [&](int64_t, int) {
    ++arrived;
    while (arrived < 2) std::this_thread::yield();
  });
  EXPECT_EQ(arrived, 2);
}

}  // namespace
}  // namespace gradq
