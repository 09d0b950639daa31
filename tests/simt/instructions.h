#pragma once

// What single GPU instructions compute, on the CPU, written from the PTX manual and not from the
// kernels: the emulator (emulator.h) is made of them. Pure functions, any thread.

#include <cstdint>

namespace gradq::kernels {

// prmt.b32, default mode: byte i of the result is picked by nibble i of `selector` from the eight
// bytes of {low, high}; a nibble's top bit replicates the picked byte's sign over the whole byte.
uint32_t PermuteBytes(uint32_t low, uint32_t high, uint32_t selector);

// IEEE half, round to nearest even: infinity from 65520 on, subnormals, NaN stays NaN. From a
// double, so that a sum, difference or product of two halves, exact there, is rounded once.
uint16_t RoundToHalf(double value);
// Exact.
float HalfValue(uint16_t half);

// Both halves of a register each; one rounding.
uint32_t SubtractHalves(uint32_t a, uint32_t b);
uint32_t MultiplyHalves(uint32_t a, uint32_t b);

// The registers of one lane in a mma.m16n8k16.
struct MmaLane {
  float* c = nullptr;           // 4
  const uint32_t* a = nullptr;  // 4 registers of two halves
  const uint32_t* b = nullptr;  // 2
};
// mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 with c as accumulator and result. The manual
// leaves order and rounding of a sum's 17 terms open: here they are summed in fp64, k ascending
// and c first, and rounded to fp32 once.
void MultiplyAccumulate(const MmaLane (&lanes)[32]);

}  // namespace gradq::kernels
