// gradq beside the published code's results on a bundled model, all rows.
//
//   build/release/bin/yardstick [docs-llama-6m | tiny-llama]

#include "tests/yardstick/yardstick.h"

#include <algorithm>
#include <cstdio>
#include <string>
#include <thread>

#include "lib/base/status_macros.h"
#include "lib/base/thread_pool.h"
#include "lib/transformer/numerics.h"

int main(int argc, char** argv) {
  gradq::EnsureNumericsEnvironment(argv);
  const int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  GRADQ_CHECK(gradq::SetUpNumerics(threads, "cpu").ok());
  gradq::ThreadPool pool(threads);
  const std::string model = argc > 1 ? argv[1] : "docs-llama-6m";
  const auto yardstick = gradq::RunYardstick(model, &pool, {});
  if (!yardstick.ok()) {
    std::fprintf(stderr, "%s\n", yardstick.status().ToString().c_str());
    return 1;
  }
  std::printf("%s: dense perplexity %.6f, published %.6f\n", model.c_str(),
              yardstick->dense_perplexity, yardstick->published_dense_perplexity);
  std::printf("%-36s %4s %2s  %9s %9s %7s  %9s %9s  %9s %9s  %7s\n", "method", "bits", "g", "ppl",
              "published", "ratio", "objective", "worst", "predicted", "measured", "solve s");
  for (const gradq::YardstickRow& row : yardstick->rows) {
    std::printf("%-36s %4d %2d  %9.3f %9.3f %7.4f  %9.4f %9.4f  %9.4f %9.4f  %7.2f\n",
                row.method.c_str(), row.bits, row.groups, row.perplexity, row.published_perplexity,
                row.perplexity / row.published_perplexity, row.objective_ratio,
                row.worst_linear_ratio, row.predicted_loss_increase, row.measured_loss_increase,
                row.solve_seconds);
  }
  return 0;
}
