// SPDX-License-Identifier: Apache-2.0
// AVX-512. 32 registers: 28 sums, 2 vectors of b, 1 of a.
#include "backends/cpu/isa/isa.hpp"

#define MPSNN_ISA_LANES 16
#define MPSNN_ISA_ROWS 14
#define MPSNN_ISA_VECTORS 2
#include "backends/cpu/isa/microkernel.inl"
#include "backends/cpu/isa/winograd.inl"

namespace mpsnn::cpu {
const Isa kAvx512Isa = with_winograd(make_isa("avx512"));
}
