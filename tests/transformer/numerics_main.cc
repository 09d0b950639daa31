// main of every test that links libtorch: the numerics environment must stand before the first
// product.

#include <gtest/gtest.h>

#include <cstdlib>

#include "lib/transformer/numerics.h"

int main(int argc, char** argv) {
  gradq::EnsureNumericsEnvironment(argv);
  if (!gradq::SetUpNumerics(2, "cpu").ok()) return EXIT_FAILURE;
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
