// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/isa/isa.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace mpsnn::cpu {
namespace {

struct Candidate {
  const Isa* table;
  bool is_supported;
};

#if MPSNN_AMX
/// AVX-512 with a matrix unit beside it.
const Isa& amx_isa() {
  static const Isa table = [] {
    Isa isa = kAvx512Isa;
    isa.name = "amx";
    isa.matrix_unit = &kAmx;
    return isa;
  }();
  return table;
}
#endif

const Isa& choose() {
#if defined(__x86_64__)
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma");
#endif
  // Best last.
  const Candidate candidates[] = {
      {&kGenericIsa, true},
#if defined(__x86_64__)
      {&kAvx2Isa, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
      {&kAvx512Isa, has_avx512},
#if MPSNN_AMX
      {&amx_isa(), has_avx512 && may_use_amx()},
#endif
#elif defined(__aarch64__)
      {&kNeonIsa, true},
#endif
  };
  const char* wanted = std::getenv("MPSNN_ISA");
  const Isa* best = nullptr;
  const Isa* named = nullptr;
  for (const Candidate& candidate : candidates) {
    if (!candidate.is_supported) continue;
    best = candidate.table;
    if (wanted && std::strcmp(wanted, candidate.table->name) == 0) named = candidate.table;
  }
  if (wanted && *wanted && !named) {
    std::fprintf(stderr, "mpsnn: MPSNN_ISA=%.100s is unknown or not supported by this machine, which has", wanted);
    for (const Candidate& candidate : candidates)
      if (candidate.is_supported) std::fprintf(stderr, " %s", candidate.table->name);
    std::fprintf(stderr, "; using %s\n", best->name);
  }
  return named ? *named : *best;
}

}  // namespace

const Isa& isa() {
  static const Isa& chosen = choose();
  return chosen;
}

const Isa& isa_for_columns(int columns) {
#if defined(__x86_64__)
  if (isa().lanes == kAvx512Isa.lanes && columns <= kAvx2Isa.lanes) return kAvx2Isa;  // whoever has the first has the second
#endif
  (void)columns;
  return isa();
}

}  // namespace mpsnn::cpu
