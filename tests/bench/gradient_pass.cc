// The gradient pass of a job beside one plain pass of the same tokens, in the same run: ATen
// forward and autograd backward with weight gradients. Shows what forward and backward cost without
// statistics, and with fisher_blocks of every linear.
//
//   gradient_pass MODEL_FOLDER [threads [sequences [length]]]

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "lib/base/files.h"
#include "lib/base/status_macros.h"
#include "lib/base/thread_pool.h"
#include "lib/catalog/statistics.h"
#include "lib/format/checkpoint.h"
#include "lib/statistics/statistic.h"
#include "lib/transformer/fused_ops.h"
#include "lib/transformer/numerics.h"
#include "lib/transformer/stage.h"
#include "tests/transformer/golden_file.h"

namespace gradq {
namespace {

constexpr int64_t kChunk = 4;
constexpr int kGroups = 4;

struct Setup {
  const Checkpoint& checkpoint;
  at::Tensor tokens;  // [sequences, length]
  ThreadPool& pool;
};

template <typename F>
double Seconds(F&& body) {
  double best = 1e30;
  for (int trial = 0; trial < 3; ++trial) {
    const auto start = std::chrono::steady_clock::now();
    body();
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

double PlainPass(const Setup& setup) {
  const ModelGeometry& geometry = setup.checkpoint.geometry();
  const auto graded = [](at::Tensor& tensor) {
    if (tensor.defined()) tensor.set_requires_grad(true);
  };
  std::vector<BlockWeights> blocks;
  for (int block = 0; block < geometry.blocks; ++block) {
    blocks.push_back(*LoadBlock(setup.checkpoint, geometry, block, at::kCPU, at::kFloat, true));
    for (at::Tensor& weight : blocks.back().weight) graded(weight);
    graded(blocks.back().input_norm);
    graded(blocks.back().post_norm);
  }
  at::Tensor embedding = *LoadEmbedding(setup.checkpoint, geometry, at::kCPU, at::kFloat);
  HeadWeights head = *LoadHead(setup.checkpoint, geometry, at::kCPU, at::kFloat);
  graded(embedding);
  graded(head.norm);
  graded(head.lm_head);
  const RotaryTable rotary = MakeRotaryTable(geometry, setup.tokens.size(1), at::kCPU);
  const PlainOps plain;
  return Seconds([&] {
    for (int64_t n = 0; n < setup.tokens.size(0); n += kChunk) {
      const at::Tensor tokens = setup.tokens.slice(0, n, n + kChunk);
      DenseLinearOp linears(blocks, 0);
      CausalAttention attention(geometry);
      at::Tensor x = Embed(embedding, tokens);
      for (int block = 0; block < geometry.blocks; ++block) {
        x = RunBlock(geometry, blocks[block], rotary, block, x, linears, attention);
      }
      TokenLosses(Logits(geometry, head, x), tokens).mean().backward();
    }
  });
}

double StagePass(const Setup& setup, Stage& stage, const LinearSet& wanted,
                 const Observer& observer) {
  return Seconds([&] {
    for (int64_t n = 0; n < setup.tokens.size(0); n += kChunk) {
      const at::Tensor tokens = setup.tokens.slice(0, n, n + kChunk);
      stage.ForwardBackward(tokens, {}, tokens, wanted, observer);
    }
  });
}

void Run(const Setup& setup) {
  const ModelGeometry& geometry = setup.checkpoint.geometry();
  const auto stage =
      *Stage::Load(setup.checkpoint, geometry,
                   {.first_block = 0, .end_block = static_cast<int>(geometry.blocks)});
  const auto recomputing = *Stage::Load(
      setup.checkpoint, geometry,
      {.first_block = 0, .end_block = static_cast<int>(geometry.blocks), .recompute = true});
  std::map<std::pair<int, LinearKind>, std::unique_ptr<Statistic>> blocks, diagonals;
  for (const LinearShape& linear : LinearsOf(geometry)) {
    const auto make = [&](std::string_view name) {
      return *MakeStatistic(name, linear.out_features, linear.in_features, kGroups, at::kCPU,
                            &setup.pool);
    };
    blocks[{linear.block, linear.kind}] = make(kFisherBlocks);
    diagonals[{linear.block, linear.kind}] = make(kFisherDiagonal);
  }
  const auto into = [](auto& statistics) {
    return [&statistics](const Observation& o) {
      statistics[{o.block, o.kind}]->Accumulate(o.x, o.dz, o.sequences);
    };
  };
  const double plain = PlainPass(setup);
  const auto print = [&](const char* what, double seconds) {
    std::printf("%-52s %7.3f s  %5.2f x plain\n", what, seconds, seconds / plain);
  };
  print("plain pass (ATen, with weight gradients)", plain);
  print("forward", Seconds([&] {
          for (int64_t n = 0; n < setup.tokens.size(0); n += kChunk)
            stage->Forward(setup.tokens.slice(0, n, n + kChunk));
        }));
  print("forward and backward",
        StagePass(setup, *stage, stage->linears(), [](const Observation&) {}));
  print("forward and backward, recompute",
        StagePass(setup, *recomputing, stage->linears(), [](const Observation&) {}));
  print("forward and backward, fisher_blocks g=4",
        StagePass(setup, *stage, stage->linears(), into(blocks)));
  print("forward and backward, fisher_diagonal",
        StagePass(setup, *stage, stage->linears(), into(diagonals)));
}

}  // namespace
}  // namespace gradq

int main(int argc, char** argv) {
  gradq::EnsureNumericsEnvironment(argv);
  const auto number = [&](int i, int64_t otherwise) {
    return argc > i ? std::atoll(argv[i]) : otherwise;
  };
  GRADQ_CHECK(argc > 1);
  const int threads = static_cast<int>(number(2, std::thread::hardware_concurrency()));
  std::printf("%s, %d threads\n", gradq::SetUpNumerics(threads, "cpu")->c_str(), threads);
  const auto checkpoint = *gradq::Checkpoint::Open(*gradq::OpenLocalFolder(argv[1]));
  gradq::ThreadPool pool(threads);
  // Which tokens does not matter here.
  const at::Tensor uniform = gradq::Pseudorandom({number(3, 64), number(4, 512)}, 5).add(1);
  const at::Tensor tokens =
      uniform.mul(0.5 * static_cast<double>(checkpoint->geometry().vocab_size)).to(at::kInt);
  gradq::Run({*checkpoint, tokens, pool});
}
