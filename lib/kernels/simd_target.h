#pragma once

// Which instruction set the kernels of this folder dispatch to: part of the numerics class.

namespace gradq::kernels {

// Highway's name of the best target this processor and build have: "AVX3", "AVX2", "SCALAR". Static
// storage.
const char* SimdTargetName();

}  // namespace gradq::kernels
