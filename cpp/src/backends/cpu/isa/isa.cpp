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

const Isa& choose() {
  // Best last.
  const Candidate candidates[] = {
      {&kGenericIsa, true},
#if defined(__x86_64__)
      {&kAvx2Isa, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
      {&kAvx512Isa, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("fma")},
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
  if (wanted && *wanted && !named)
    std::fprintf(stderr, "mpsnn: MPSNN_ISA=%s is unknown or not supported by this machine; using %s\n", wanted, best->name);
  return named ? *named : *best;
}

}  // namespace

const Isa& isa() {
  static const Isa& chosen = choose();
  return chosen;
}

const Isa& isa_for_columns(int columns) {
#if defined(__x86_64__)
  if (&isa() == &kAvx512Isa && columns <= kAvx2Isa.lanes) return kAvx2Isa;  // whoever has the first has the second
#endif
  (void)columns;
  return isa();
}

}  // namespace mpsnn::cpu
