// SPDX-License-Identifier: Apache-2.0
// The base instruction set. SSE2 has 16 registers: 8 sums, 2 vectors of b, 1 of a.
#include "backends/cpu/isa/isa.hpp"

#define MPSNN_ISA_LANES 4
#define MPSNN_ISA_ROWS 4
#define MPSNN_ISA_VECTORS 2
#include "backends/cpu/isa/microkernel.inl"
#include "backends/cpu/isa/winograd.inl"

namespace mpsnn::cpu {
const Isa kGenericIsa = with_winograd(make_isa("generic"));
}
