// SPDX-License-Identifier: Apache-2.0
#pragma once

// How AVX-512 splits float32 numbers into bfloat16 parts for the matrix unit.
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in GCC's own header, of operands that it leaves undefined on purpose
#endif
#include <immintrin.h>

namespace mpsnn::cpu {
namespace {

using namespace split;

inline __m512i high_half() { return _mm512_set1_epi32(static_cast<int>(0xffff0000u)); }

/// The nearest bfloat16 number, as a float.
inline __m512 rounded(__m512 x) {
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000)), high_half()));
}

/// The parts of sixteen numbers, each a bfloat16 number in a float's upper half; below the last one are bits that do not count.
struct Parts {
  __m512i part[kParts];
  explicit Parts(__m512 x) {
    const __m512 first = rounded(x), rest = _mm512_sub_ps(x, first), second = rounded(rest);
    part[0] = _mm512_castps_si512(first);
    part[1] = _mm512_castps_si512(second);
    part[2] = _mm512_castps_si512(_mm512_sub_ps(rest, second));
  }
};

/// `low` and `high` by turns.
inline __m512i pairs(__m512i low, __m512i high) { return _mm512_mask_mov_epi16(_mm512_srli_epi32(low, 16), 0xaaaaaaaa, high); }

inline __mmask16 first_lanes(std::size_t count) { return count >= 16 ? 0xffff : static_cast<__mmask16>((1u << count) - 1); }

/// Sixteen vectors of sixteen numbers, rows become columns.
inline void transpose(__m512 (&v)[16]) {
  __m512 t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 2])));
    v[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 2])));
    v[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[i + 1]), _mm512_castps_pd(t[i + 3])));
    v[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[i + 1]), _mm512_castps_pd(t[i + 3])));
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(v[i], v[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(v[i], v[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(v[i + 8], v[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(v[i + 8], v[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    v[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    v[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
    v[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

}  // namespace
}  // namespace mpsnn::cpu
