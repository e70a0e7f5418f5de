// SPDX-License-Identifier: Apache-2.0
// AVX2 and FMA. 16 registers: 12 sums, 2 vectors of b, 1 of a.
#include "backends/cpu/isa/isa.hpp"

#define MPSNN_ISA_LANES 8
#define MPSNN_ISA_ROWS 6
#define MPSNN_ISA_VECTORS 2
#include "backends/cpu/isa/microkernel.inl"
#include "backends/cpu/isa/winograd.inl"

namespace mpsnn::cpu {
const Isa kAvx2Isa = with_winograd(make_isa("avx2"));
}
