#include "tests/simt/emulator.h"

#include <boost/context/detail/fcontext.hpp>
#include <cstddef>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "lib/base/status_macros.h"
#include "lib/base/strings.h"

namespace gradq::kernels {
namespace {

// Not boost::context::fiber: it unwinds what has not finished, and address sanitizers lose track of
// a stack that is unwound. Here a block that fails is left where it stands; bodies own nothing.
using boost::context::detail::fcontext_t;
using boost::context::detail::jump_fcontext;
using boost::context::detail::make_fcontext;
using boost::context::detail::transfer_t;

constexpr int kMaxThreads = 1024;
constexpr int kMaxSharedBytes = 227 * 1024;
// 65 cache lines more than a power of two: the tops of all stacks do not meet in one cache set.
constexpr size_t kStackBytes = 128 * 1024 + 65 * 64;
constexpr int kGuardBytes = 256;  // on both sides of shared memory
constexpr char kGuard = 0x5a;
constexpr int kPoison = 0xff;
constexpr uint64_t kStackEnd = 0x5a5a5a5a5a5a5a5a;

enum class State { kReady, kInSync, kInWarpCall, kDone };
enum class WarpCall { kNone, kMma, kShuffle, kSync };

const char* Name(WarpCall call) {
  if (call == WarpCall::kMma) return "Mma";
  return call == WarpCall::kShuffle ? "ShuffleXor" : "SyncWarp";
}

struct AsyncCopy {
  char* to;
  const char* from;  // null: zeros
};

struct Thread {
  fcontext_t context = nullptr;
  State state = State::kReady;
  std::vector<AsyncCopy> uncommitted;
  std::deque<std::vector<AsyncCopy>> groups;
};

struct Warp {
  WarpCall call = WarpCall::kNone;
  int arrived = 0;
  MmaLane mma[kWarpLanes];
  float* shuffled[kWarpLanes] = {};
  int mask = 0;
};

// Of the calling thread's earlier grids: fresh memory would cost a page fault per fiber.
struct Stacks {
  std::unique_ptr<Words4[]> memory;
  int count = 0;
};
thread_local Stacks spare_stacks;

Stacks TakeStacks(int count) {
  if (spare_stacks.count >= count) return std::exchange(spare_stacks, {});
  return {std::make_unique_for_overwrite<Words4[]>(count * (kStackBytes / 16)), count};
}

bool IsAligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

void Land(const std::vector<AsyncCopy>& group) {
  for (const AsyncCopy& copy : group) {
    if (copy.from == nullptr) {
      std::memset(copy.to, 0, 16);
    } else {
      std::memcpy(copy.to, copy.from, 16);
    }
  }
}

}  // namespace

class EmulatedBlock {
 public:
  EmulatedBlock(const GridShape& shape, uint32_t seed,
                absl::FunctionRef<void(const EmulatedSimt&)> body)
      : shape_(shape),
        seed_(seed),
        random_(seed),
        body_(body),
        // The analyzer doesn't see that the destructor gives them back or frees them.
        stacks_(TakeStacks(shape.threads)),  // NOLINT(clang-analyzer-cplusplus.NewDeleteLeaks)
        memory_(new Words4[(shape.shared_bytes + 15) / 16 + 2 * kGuardBytes / 16]),
        shared_(reinterpret_cast<char*>(memory_.get()) + kGuardBytes) {}

  // Stacks of fibers left halfway are not used again.
  ~EmulatedBlock() {
    if (status_.ok()) spare_stacks = std::move(stacks_);
  }
  EmulatedBlock(const EmulatedBlock&) = delete;
  EmulatedBlock& operator=(const EmulatedBlock&) = delete;

  // All threads of block (x, y).
  absl::Status Run(int64_t x, int64_t y);

  const GridShape& shape() const { return shape_; }
  int64_t x() const { return x_; }
  int64_t y() const { return y_; }
  char* shared() const { return shared_; }

  // Called on the fiber of `thread`.
  void Sync(int thread);
  void Shuffle(int thread, float* value, int mask);
  void Mma(int thread, const MmaLane& operands);
  void SyncWarp(int thread) { Arrive(thread, WarpCall::kSync); }
  Words4 LoadVector(int thread, const char* call, const Words4* from, bool streaming);
  void Copy(int thread, void* to, const void* from, bool valid);
  void Commit(int thread);
  void Wait(int thread, int pending);

 private:
  void Reset(int64_t x, int64_t y);
  // Where warps and lanes run; false when no lane can.
  bool RunWarps();
  void RunLanes(int warp);
  void Resume(int thread);
  static void Enter(transfer_t from);
  void Suspend() { scheduler_ = jump_fcontext(scheduler_, nullptr).fctx; }
  char* Stack(int thread) const {
    return reinterpret_cast<char*>(stacks_.memory.get()) + thread * kStackBytes;
  }
  // When no lane can run: opens the barrier, or says what keeps it shut.
  void OpenBarrier();
  std::string Waiting() const;
  void Arrive(int thread, WarpCall call);
  void Complete(Warp* warp);
  // Doesn't return: the block ends with this thread suspended.
  void Fail(int thread, const std::string& what);
  void Report(const std::string& what);
  void CheckGuards();
  enum class Where { kOutside, kInside, kAcross };
  Where InShared(const void* address) const;
  bool WarpCanRun(int warp) const;
  uint32_t Random(uint32_t below) { return static_cast<uint32_t>(random_() % below); }
  void ShuffleWarps();

  const GridShape shape_;
  const uint32_t seed_;
  std::mt19937 random_;
  absl::FunctionRef<void(const EmulatedSimt&)> body_;
  Stacks stacks_;
  std::unique_ptr<Words4[]> memory_;
  char* shared_;
  int64_t x_ = 0;
  int64_t y_ = 0;
  absl::Status status_;
  fcontext_t scheduler_ = nullptr;
  int current_ = 0;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<int> order_;  // of warps, until the next barrier
};

absl::Status EmulatedBlock::Run(int64_t x, int64_t y) {
  Reset(x, y);
  while (status_.ok()) {
    if (RunWarps()) continue;
    if (!status_.ok()) break;
    bool done = true;
    for (const Thread& thread : threads_) done = done && thread.state == State::kDone;
    if (done) break;
    OpenBarrier();
  }
  if (status_.ok()) CheckGuards();
  return status_;
}

void EmulatedBlock::Reset(int64_t x, int64_t y) {
  x_ = x;
  y_ = y;
  const int shared_bytes = shape_.shared_bytes;
  std::memset(shared_ - kGuardBytes, kGuard, kGuardBytes);
  std::memset(shared_, kPoison, shared_bytes);
  std::memset(shared_ + shared_bytes, kGuard, kGuardBytes);
  warps_.assign(shape_.threads / kWarpLanes, Warp());
  ShuffleWarps();
  threads_.clear();
  threads_.resize(shape_.threads);
  for (int i = 0; i < shape_.threads; ++i) {
    std::memcpy(Stack(i), &kStackEnd, sizeof kStackEnd);
    threads_[i].context = make_fcontext(Stack(i) + kStackBytes, kStackBytes, &Enter);
  }
}

void EmulatedBlock::Enter(transfer_t from) {
  auto* block = static_cast<EmulatedBlock*>(from.data);
  const int thread = block->current_;
  block->scheduler_ = from.fctx;
  block->body_(EmulatedSimt(block, thread));
  block->threads_[thread].state = State::kDone;
  block->Suspend();
}

void EmulatedBlock::ShuffleWarps() {
  const auto warps = static_cast<int>(warps_.size());
  order_.resize(warps);
  for (int i = 0; i < warps; ++i) order_[i] = seed_ == 1 ? warps - 1 - i : i;
  if (seed_ < 2) return;
  for (int i = warps - 1; i > 0; --i) std::swap(order_[i], order_[Random(i + 1)]);
}

bool EmulatedBlock::WarpCanRun(int warp) const {
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    if (threads_[warp * kWarpLanes + lane].state == State::kReady) return true;
  }
  return false;
}

bool EmulatedBlock::RunWarps() {
  const bool to_barrier = seed_ < 2 || seed_ % 2 == 0;
  bool ran = false;
  for (const int warp : order_) {
    while (status_.ok() && WarpCanRun(warp)) {
      RunLanes(warp);
      ran = true;
      if (!to_barrier) break;
    }
  }
  if (!to_barrier) ShuffleWarps();
  return ran;
}

void EmulatedBlock::RunLanes(int warp) {
  const uint32_t rotation = seed_ < 2 ? 0 : Random(kWarpLanes);
  const uint32_t flip = seed_ == 0 ? 0 : seed_ == 1 ? kWarpLanes - 1 : Random(kWarpLanes);
  for (uint32_t i = 0; i < kWarpLanes && status_.ok(); ++i) {
    const uint32_t lane = (i + rotation) % kWarpLanes ^ flip;
    const int thread = warp * kWarpLanes + static_cast<int>(lane);
    if (threads_[thread].state == State::kReady) Resume(thread);
  }
}

void EmulatedBlock::Resume(int thread) {
  Thread& now = threads_[thread];
  current_ = thread;
  now.context = jump_fcontext(now.context, this).fctx;
  // A body with more local variables than a stack holds has written into the next one.
  GRADQ_CHECK(std::memcmp(Stack(thread), &kStackEnd, sizeof kStackEnd) == 0);
  if (now.state != State::kDone) return;
  // What a thread leaves under way lands all the same.
  for (const auto& group : now.groups) Land(group);
  Land(now.uncommitted);
}

void EmulatedBlock::OpenBarrier() {
  for (const Thread& thread : threads_) {
    if (thread.state != State::kInSync) {
      Report(StrCat("threads diverge: ", Waiting()));
      return;
    }
  }
  for (Thread& thread : threads_) thread.state = State::kReady;
  ShuffleWarps();
}

std::string EmulatedBlock::Waiting() const {
  int returned = 0;
  int in_sync = 0;
  int in_call[4] = {};
  for (int i = 0; i < shape_.threads; ++i) {
    returned += threads_[i].state == State::kDone;
    in_sync += threads_[i].state == State::kInSync;
    if (threads_[i].state == State::kInWarpCall) {
      ++in_call[static_cast<int>(warps_[i / kWarpLanes].call)];
    }
  }
  std::string text = StrCat(in_sync, " wait in Sync, ", returned, " have returned");
  for (const WarpCall call : {WarpCall::kMma, WarpCall::kShuffle, WarpCall::kSync}) {
    const int count = in_call[static_cast<int>(call)];
    if (count > 0) text += StrCat(", ", count, " wait for the rest of their warp in ", Name(call));
  }
  return text;
}

void EmulatedBlock::Sync(int thread) {
  threads_[thread].state = State::kInSync;
  Suspend();
}

void EmulatedBlock::Shuffle(int thread, float* value, int mask) {
  if (mask < 0 || mask >= kWarpLanes) Fail(thread, StrCat("ShuffleXor over mask ", mask));
  Warp& warp = warps_[thread / kWarpLanes];
  if (warp.arrived > 0 && warp.call == WarpCall::kShuffle && warp.mask != mask) {
    Fail(thread, StrCat("lanes of a warp shuffle with different masks: ", mask, ", ", warp.mask));
  }
  warp.shuffled[thread % kWarpLanes] = value;
  warp.mask = mask;
  Arrive(thread, WarpCall::kShuffle);
}

void EmulatedBlock::Mma(int thread, const MmaLane& operands) {
  warps_[thread / kWarpLanes].mma[thread % kWarpLanes] = operands;
  Arrive(thread, WarpCall::kMma);
}

void EmulatedBlock::Arrive(int thread, WarpCall call) {
  Warp& warp = warps_[thread / kWarpLanes];
  if (warp.arrived > 0 && warp.call != call) {
    Fail(thread,
         StrCat("lanes of a warp meet in different calls: ", Name(call), ", ", Name(warp.call)));
  }
  warp.call = call;
  ++warp.arrived;
  if (warp.arrived < kWarpLanes) {
    threads_[thread].state = State::kInWarpCall;
    Suspend();
    return;
  }
  Complete(&warp);
  // The last to arrive goes on at once.
  const int first = thread / kWarpLanes * kWarpLanes;
  for (int lane = 0; lane < kWarpLanes; ++lane) threads_[first + lane].state = State::kReady;
}

void EmulatedBlock::Complete(Warp* warp) {
  if (warp->call == WarpCall::kMma) {
    MultiplyAccumulate(warp->mma);
  } else if (warp->call == WarpCall::kShuffle) {
    float values[kWarpLanes];
    for (int lane = 0; lane < kWarpLanes; ++lane) values[lane] = *warp->shuffled[lane];
    for (int lane = 0; lane < kWarpLanes; ++lane) {
      *warp->shuffled[lane] = values[lane ^ warp->mask];
    }
  }
  warp->arrived = 0;
}

EmulatedBlock::Where EmulatedBlock::InShared(const void* address) const {
  const auto begin = reinterpret_cast<uintptr_t>(shared_);
  const auto at = reinterpret_cast<uintptr_t>(address);
  const uintptr_t end = begin + shape_.shared_bytes;
  if (at >= begin && at + 16 <= end) return Where::kInside;
  const bool apart = at >= end + kGuardBytes || at + 16 <= begin - kGuardBytes;
  return apart ? Where::kOutside : Where::kAcross;
}

Words4 EmulatedBlock::LoadVector(int thread, const char* call, const Words4* from, bool streaming) {
  if (!IsAligned(from)) Fail(thread, StrCat(call, " of an address that is not 16-byte aligned"));
  const Where where = InShared(from);
  if (where == Where::kAcross) Fail(thread, StrCat(call, " beyond shared memory"));
  if (streaming && where == Where::kInside) Fail(thread, StrCat(call, " of shared memory"));
  Words4 words;
  std::memcpy(&words, from, sizeof words);
  return words;
}

void EmulatedBlock::Copy(int thread, void* to, const void* from, bool valid) {
  if (!IsAligned(to) || (valid && !IsAligned(from))) {
    Fail(thread, StrCat("CopyAsync ", IsAligned(to) ? "from" : "to",
                        " an address that is not 16-byte aligned"));
  }
  if (InShared(to) != Where::kInside) Fail(thread, "CopyAsync to outside of shared memory");
  if (valid && InShared(from) != Where::kOutside) Fail(thread, "CopyAsync from shared memory");
  std::memset(to, kPoison, 16);
  threads_[thread].uncommitted.push_back(
      {static_cast<char*>(to), valid ? static_cast<const char*>(from) : nullptr});
}

void EmulatedBlock::Commit(int thread) {
  Thread& now = threads_[thread];
  now.groups.push_back(std::move(now.uncommitted));
  now.uncommitted.clear();
}

void EmulatedBlock::Wait(int thread, int pending) {
  auto& groups = threads_[thread].groups;
  while (groups.size() > static_cast<size_t>(pending)) {
    Land(groups.front());
    groups.pop_front();
  }
}

void EmulatedBlock::Fail(int thread, const std::string& what) {
  Report(StrCat("thread ", thread, ": ", what));
  Suspend();
}

void EmulatedBlock::Report(const std::string& what) {
  if (status_.ok()) {
    status_ = absl::InternalError(StrCat("emulated block (", x_, ", ", y_, "): ", what));
  }
}

void EmulatedBlock::CheckGuards() {
  for (int i = 0; i < kGuardBytes; ++i) {
    const int before = i - kGuardBytes;
    const int behind = shape_.shared_bytes + i;
    for (const int offset : {before, behind}) {
      if (shared_[offset] != kGuard) {
        Report(
            StrCat("write outside of shared memory: byte ", offset, " of ", shape_.shared_bytes));
        return;
      }
    }
  }
}

int EmulatedSimt::threads() const { return block_->shape().threads; }
int64_t EmulatedSimt::block_x() const { return block_->x(); }
int64_t EmulatedSimt::block_y() const { return block_->y(); }
char* EmulatedSimt::shared() const { return block_->shared(); }
void EmulatedSimt::Sync() const { block_->Sync(thread_); }
void EmulatedSimt::SyncWarp() const { block_->SyncWarp(thread_); }
float EmulatedSimt::ShuffleXor(float value, int mask) const {
  block_->Shuffle(thread_, &value, mask);
  return value;
}
void EmulatedSimt::Mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) const {
  block_->Mma(thread_, {c, a, b});
}
Words4 EmulatedSimt::LoadStreaming(const Words4* from) const {
  return block_->LoadVector(thread_, "LoadStreaming", from, true);
}
Words4 EmulatedSimt::Load(const Words4* from) const {
  return block_->LoadVector(thread_, "Load", from, false);
}
void EmulatedSimt::CopyAsync(void* shared, const void* from, bool valid) const {
  block_->Copy(thread_, shared, from, valid);
}
void EmulatedSimt::CommitCopies() const { block_->Commit(thread_); }
void EmulatedSimt::WaitForCopies(int pending) const { block_->Wait(thread_, pending); }

absl::Status RunGrid(const GridShape& shape, uint32_t seed,
                     absl::FunctionRef<void(const EmulatedSimt&)> body) {
  if (shape.grid_x < 1 || shape.grid_y < 1 || shape.grid_y > 65535 || shape.threads < kWarpLanes ||
      shape.threads > kMaxThreads || shape.threads % kWarpLanes != 0 || shape.shared_bytes < 0 ||
      shape.shared_bytes > kMaxSharedBytes) {
    return absl::InvalidArgumentError(StrCat("no such grid: ", shape.grid_x, " x ", shape.grid_y,
                                             " blocks, ", shape.threads, " threads, ",
                                             shape.shared_bytes, " bytes of shared memory"));
  }
  EmulatedBlock block(shape, seed, body);
  const int64_t blocks = shape.grid_x * shape.grid_y;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t at = seed % 2 == 1 ? blocks - 1 - i : i;
    if (absl::Status status = block.Run(at % shape.grid_x, at / shape.grid_x); !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

}  // namespace gradq::kernels
