// SPDX-License-Identifier: Apache-2.0
// NEON. 32 registers: 24 sums, 3 vectors of b, 1 of a.
#include "backends/cpu/isa/isa.hpp"

#define MPSNN_ISA_LANES 4
#define MPSNN_ISA_ROWS 8
#define MPSNN_ISA_VECTORS 3
#include "backends/cpu/isa/microkernel.inl"
#include "backends/cpu/isa/winograd.inl"

namespace mpsnn::cpu {
const Isa kNeonIsa = with_winograd(make_isa("neon"));
}
