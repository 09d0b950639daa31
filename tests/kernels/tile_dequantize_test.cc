#include "lib/kernels/cuda/tile_dequantize.cuh"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "lib/kernels/float16.h"
#include "lib/kernels/tile_matmul.h"
#include "tests/kernels/device_tile_matrix.h"
#include "tests/kernels/tile_problem.h"
#include "tests/simt/emulator.h"

namespace gradq::kernels {
namespace {

constexpr uint32_t kDevice = ~0u;
// So many elements before and behind the rows must stay as they are.
constexpr int64_t kMargin = 8;

template <class T>
std::vector<float> Floats(const std::vector<T>& elements) {
  std::vector<float> floats;
  for (const T& element : elements) {
    if constexpr (std::is_same_v<T, float>) {
      floats.push_back(element);
    } else if constexpr (std::is_same_v<T, Half>) {
      floats.push_back(Float16ToFloat(element.bits));
    } else {
      floats.push_back(BFloat16ToFloat(element.bits));
    }
  }
  return floats;
}

template <class T>
FloatType TypeOf() {
  if (std::is_same_v<T, float>) return FloatType::kFloat32;
  return std::is_same_v<T, Half> ? FloatType::kFloat16 : FloatType::kBFloat16;
}

// The rows of a problem with `shift` elements (the misalignment) and kMargin before them, all else
// NaN.
template <class T>
class Rows {
 public:
  Rows(const TileProblem& problem, int64_t begin, int64_t end, int64_t shift)
      : problem_(problem),
        begin_(begin),
        end_(end),
        offset_(kMargin + shift),
        count_((end - begin) * problem.matrix.view().in_features) {}

  std::vector<float> Emulate(uint32_t seed) const {
    // Vectors of 16 bytes, so that kMargin elements begin at a multiple of that.
    std::vector<Words4> memory((offset_ + count_ + kMargin) * sizeof(T) / sizeof(Words4) + 1);
    std::memset(memory.data(), 0xff, memory.size() * sizeof(Words4));
    T* elements = reinterpret_cast<T*>(memory.data());
    const TileView view = problem_.matrix.view();
    const TileDequantizeArgs<T> args = {view, begin_, end_, elements + offset_};
    switch (view.bits) {
      case 2:
        Run<2>(args, seed);
        break;
      case 3:
        Run<3>(args, seed);
        break;
      case 4:
        Run<4>(args, seed);
        break;
      default:
        Run<8>(args, seed);
    }
    return Inner(std::vector<T>(elements, elements + offset_ + count_ + kMargin));
  }

  std::vector<float> OnDevice() const {
    const auto matrix = DeviceTileMatrix::Upload(problem_.matrix);
    const auto memory = DeviceBuffer<T>::Allocate(offset_ + count_ + kMargin);
    EXPECT_TRUE(matrix.ok() && memory.ok()) << matrix.status() << memory.status();
    if (!matrix.ok() || !memory.ok()) return {};
    const absl::Status status = TileDequantize(Queue::Cuda(nullptr), matrix->view(), begin_, end_,
                                               TypeOf<T>(), memory->data() + offset_);
    EXPECT_TRUE(status.ok()) << status;
    const auto elements = memory->Download();
    EXPECT_TRUE(elements.ok()) << elements.status();
    return elements.ok() ? Inner(*elements) : std::vector<float>();
  }

 private:
  template <int kBits>
  static void Run(const TileDequantizeArgs<T>& args, uint32_t seed) {
    if (args.matrix.encoding == TileEncoding::kLut) {
      if constexpr (kBits != 8) Run<TileEncoding::kLut, kBits>(args, seed);
    } else {
      Run<TileEncoding::kAffine, kBits>(args, seed);
    }
  }
  template <TileEncoding kEncoding, int kBits>
  static void Run(const TileDequantizeArgs<T>& args, uint32_t seed) {
    const LaunchShape shape = ShapeOfTileDequantize(args);
    const absl::Status status =
        RunGrid({shape.grid_x, shape.grid_y, shape.threads, shape.shared_bytes}, seed,
                [&](const EmulatedSimt& s) {
                  TileDequantizeWarp<EmulatedSimt, kEncoding, kBits, T>(s, args).Run();
                });
    EXPECT_TRUE(status.ok()) << status;
  }
  std::vector<float> Inner(const std::vector<T>& elements) const {
    const std::vector<float> all = Floats(elements);
    for (int64_t i = 0; i < std::ssize(all); ++i) {
      if (i >= offset_ && i < offset_ + count_) continue;
      EXPECT_TRUE(std::isnan(all[i])) << "margin " << i;
    }
    return {all.begin() + offset_, all.begin() + offset_ + count_};
  }

  const TileProblem& problem_;
  const int64_t begin_;
  const int64_t end_;
  const int64_t offset_;
  const int64_t count_;
};

class TileDequantizeTest
    : public testing::TestWithParam<std::tuple<uint32_t, std::pair<TileEncoding, int>>> {
 protected:
  // Half an ulp of T at `value`, and half the least one.
  template <class T>
  static double HalfUlp(double value) {
    if (std::is_same_v<T, Half>) return std::abs(value) * 0x1p-11 + 0x1p-25;
    return std::abs(value) * (std::is_same_v<T, float> ? 0x1p-24 : 0x1p-8);
  }

  template <class T>
  void Check(const TileProblemOptions& o, const TileProblem& problem, int64_t begin, int64_t end,
             int64_t shift) {
    SCOPED_TRACE(testing::Message() << o.out << " x " << o.in << " rows " << begin << " .. " << end
                                    << " outliers " << static_cast<int>(o.outliers) << " type "
                                    << static_cast<int>(TypeOf<T>()) << " shift " << shift);
    const Rows<T> rows(problem, begin, end, shift);
    const uint32_t seed = std::get<0>(GetParam());
    const std::vector<float> found = seed == kDevice ? rows.OnDevice() : rows.Emulate(seed);
    std::vector<T> oracle((end - begin) * o.in);
    ASSERT_TRUE(
        TileDequantize(Queue::Cpu(), problem.matrix.view(), begin, end, TypeOf<T>(), oracle.data())
            .ok());
    const std::vector<float> expected = Floats(oracle);
    ASSERT_EQ(found.size(), expected.size());
    const std::vector<double> exact = problem.WithOutliers(o.in);
    for (size_t i = 0; i < found.size(); ++i) {
      if (o.encoding == TileEncoding::kLut) {
        ASSERT_EQ(found[i], expected[i]) << "row " << i / o.in << " column " << i % o.in;
        continue;
      }
      // The dense part is rounded to fp16 first.
      const double weight = exact[begin * o.in + i];
      const double dense = problem.weights[begin * o.in + i];
      const double bound = HalfUlp<Half>(dense) * (1 + 0x1p-8) + HalfUlp<T>(weight);
      ASSERT_NEAR(found[i], weight, bound) << "row " << i / o.in << " column " << i % o.in;
    }
  }
};

TEST_P(TileDequantizeTest, EqualsTheOracle) {
  const auto [seed, kind] = GetParam();
  if (seed == kDevice) {
    if (const auto why = WhyNoDevice()) GTEST_SKIP() << *why;
  }
  const auto [encoding, bits] = kind;
  struct Shape {
    int64_t out, in;
  };
  std::vector<Shape> shapes = {{1, 1}, {17, 65}, {33, 328}, {16, 2056}, {3, 4165}};
  if (seed == kDevice) shapes = {{1, 1}, {17, 65}, {333, 4165}, {100, 12296}, {4096, 1024}};
  for (const auto& [out, in] : shapes) {
    for (const OutlierKind kind :
         {OutlierKind::kNone, OutlierKind::kSparse, OutlierKind::kOneRow}) {
      const TileProblemOptions o{encoding, bits, out, in, 48, kind};
      const TileProblem problem = MakeTileProblem(o);
      Check<Half>(o, problem, 0, out, 0);
      Check<BFloat16>(o, problem, 0, out, 0);
      Check<float>(o, problem, 0, out, 0);
      if (HasFatalFailure()) return;
    }
  }
}

// Only some rows; an output that no vector can be stored to.
TEST_P(TileDequantizeTest, RowsInTheMiddle) {
  const auto [seed, kind] = GetParam();
  if (seed == kDevice) {
    if (const auto why = WhyNoDevice()) GTEST_SKIP() << *why;
  }
  const TileProblemOptions o{kind.first, kind.second, 70, 136, 64, OutlierKind::kSparse};
  const TileProblem problem = MakeTileProblem(o);
  for (const int64_t shift : {0, 1}) {
    Check<Half>(o, problem, 16, 50, shift);
    Check<float>(o, problem, 32, 33, shift);
    Check<BFloat16>(o, problem, 64, 70, shift);
  }
}

std::vector<uint32_t> Machines() {
  std::vector<uint32_t> machines(std::begin(kEmulatorSeeds), std::end(kEmulatorSeeds));
  machines.push_back(kDevice);
  return machines;
}

using Param = std::tuple<uint32_t, std::pair<TileEncoding, int>>;
std::string NameOfParam(const testing::TestParamInfo<Param>& info) {
  const auto& [seed, kind] = info.param;
  return (seed == kDevice ? "Device" : "Seed" + std::to_string(seed)) + "_" +
         NameOf(kind.first, kind.second);
}

INSTANTIATE_TEST_SUITE_P(Machines, TileDequantizeTest,
                         testing::Combine(testing::ValuesIn(Machines()),
                                          testing::ValuesIn(TileKinds())),
                         NameOfParam);

}  // namespace
}  // namespace gradq::kernels
