// SPDX-License-Identifier: Apache-2.0
// Pooling in every direction: vectors over the channels of a pixel, or over the neighbouring pixels that a stretch joins. Included by
// microkernel.inl. A pass says what happens at a tap; pool() walks over the taps.

/// Vectors of a number of lanes: images with few channels are pooled in vectors as short as they need.
template <int Lanes>
struct Lane {
  typedef float Float __attribute__((vector_size(Lanes * sizeof(float))));
  typedef std::int32_t Int __attribute__((vector_size(Lanes * sizeof(float))));
  typedef std::uint8_t Byte __attribute__((vector_size(Lanes)));
};

template <class V>
inline __attribute__((always_inline)) V read_vector(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
inline __attribute__((always_inline)) void write_vector(void* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}

/// Lanes whose saved winner, one byte or four each, is `code`. gcc 12 takes __builtin_convertvector() between bytes and integers apart
/// into single elements, some three instructions each: therefore the other forms here and in write_winners().
template <int Lanes, int CodeBytes>
inline __attribute__((always_inline)) typename Lane<Lanes>::Int is_winner(const void* winners, std::ptrdiff_t at, int code) {
  using Int = typename Lane<Lanes>::Int;
  using Byte = typename Lane<Lanes>::Byte;
  if constexpr (CodeBytes == 4) {
    return read_vector<Int>(static_cast<const std::int32_t*>(winners) + at) == code;
  } else {
    const std::uint8_t* bytes = static_cast<const std::uint8_t*>(winners) + at;
    if constexpr (Lanes == 4) {  // each lane compares its byte of the same word
      typedef std::uint32_t Words __attribute__((vector_size(16)));
      const Words place = {1, 1u << 8, 1u << 16, 1u << 24};
      return (Int)(((Words{} + read_vector<std::uint32_t>(bytes)) & (place * 0xffu)) == place * static_cast<std::uint32_t>(code));
    }
#if defined(__AVX2__) && !defined(__clang__)
    typedef char Bytes16 __attribute__((vector_size(16)));
    typedef long long Words2 __attribute__((vector_size(16)));
    if constexpr (Lanes == 8) return (Int)__builtin_ia32_pmovzxbd256((Bytes16)Words2{read_vector<long long>(bytes), 0}) == code;
#if defined(__AVX512F__)
    if constexpr (Lanes == 16) return (Int)__builtin_ia32_pmovzxbd512_mask(read_vector<Bytes16>(bytes), Int{}, 0xffff) == code;
#endif
#endif
    return __builtin_convertvector(read_vector<Byte>(bytes), Int) == code;
  }
}

template <int Lanes, int CodeBytes>
inline __attribute__((always_inline)) void write_winners(void* winners, std::size_t at, typename Lane<Lanes>::Int codes) {
  using Byte = typename Lane<Lanes>::Byte;
  if constexpr (CodeBytes == 4) {
    write_vector(static_cast<std::int32_t*>(winners) + at, codes);
  } else {
    std::uint8_t* bytes = static_cast<std::uint8_t*>(winners) + at;
    if constexpr (Lanes == 4) {
      typedef std::uint64_t Pairs __attribute__((vector_size(16)));
      Pairs pairs = (Pairs)(codes & 0xff);
      pairs |= pairs >> 24;
      write_vector(bytes, static_cast<std::uint32_t>((pairs[0] & 0xffff) | (pairs[1] & 0xffff) << 16));
    } else if constexpr (Lanes == 8) {
      write_winners<4, 1>(bytes, 0, read_vector<typename Lane<4>::Int>(&codes));
      write_winners<4, 1>(bytes, 4, read_vector<typename Lane<4>::Int>(reinterpret_cast<const std::int32_t*>(&codes) + 4));
    } else {
      write_vector(bytes, __builtin_convertvector(codes, Byte));  // one instruction of AVX-512
    }
  }
}

/// The largest value of a window. A NaN wins over everything, the first one. `CodeBytes` of a winner's number, 0 to forget it.
template <int CodeBytes>
struct MaximumPass {
  template <int Lanes>
  struct On {
    using Float = typename Lane<Lanes>::Float;
    using Int = typename Lane<Lanes>::Int;
    Float best;
    Int winner;
    inline __attribute__((always_inline)) void begin(const PoolingRow& row, const PoolingStretch& s, std::size_t) {
      best = Float{} - __builtin_inff();
      winner = Int{} + (row.line_count > 0 && s.tap_count > 0 ? row.lines[0].code + row.taps[s.first_tap].code : -1);
    }
    inline __attribute__((always_inline)) void tap(const PoolingRow& row, std::ptrdiff_t at, int code, float) {
      const Float value = read_vector<Float>(row.values + at);
      const Int wins = ~(value <= best) & (best == best);
      best = wins ? value : best;
      if constexpr (CodeBytes > 0) winner = wins ? Int{} + code : winner;
    }
    inline __attribute__((always_inline)) void end_line() {}
    inline __attribute__((always_inline)) void end(const PoolingRow& row, const PoolingStretch& s, std::size_t to) {
      if (row.reads_zeros || s.reads_zeros) {  // zeros around the image win over negative pixels, and then nobody gets the gradient (8.5)
        const Int is_negative = best < Float{};
        best = is_negative ? Float{} : best;
        winner = is_negative ? Int{} - 1 : winner;
      }
      if (row.result) write_vector(row.result + to, best);
      if constexpr (CodeBytes > 0) write_winners<Lanes, CodeBytes>(row.saved, to, winner);
    }
  };
};

/// The sum of a window's values or squares, line by line: a chain over all of a large window would lose digits.
template <bool Squares>
struct SumPass {
  template <int Lanes>
  struct On {
    using Float = typename Lane<Lanes>::Float;
    Float sum, line;
    inline __attribute__((always_inline)) void begin(const PoolingRow&, const PoolingStretch&, std::size_t) { sum = line = Float{}; }
    inline __attribute__((always_inline)) void tap(const PoolingRow& row, std::ptrdiff_t at, int, float factor) {
      const Float value = read_vector<Float>(row.values + at);
      line += Squares ? factor * (value * value) : value;
    }
    inline __attribute__((always_inline)) void end_line() {
      sum += line;
      line = Float{};
    }
    inline __attribute__((always_inline)) void end(const PoolingRow& row, const PoolingStretch& s, std::size_t to) {
      if constexpr (Squares) {
        for (int i = 0; i < Lanes; ++i) sum[i] = __builtin_sqrtf(sum[i]);
      } else if (row.line_count > 0 && s.tap_count > 0) {
        sum /= row.divisor * s.divisor;
      }
      write_vector(row.result + to, sum);
    }
  };
};

/// What a source pixel gets from the windows that read it: those where it won, ...
template <int CodeBytes>
struct MaximumGradientPass {
  template <int Lanes>
  struct On {
    using Float = typename Lane<Lanes>::Float;
    using Int = typename Lane<Lanes>::Int;
    Float sum;
    inline __attribute__((always_inline)) void begin(const PoolingRow&, const PoolingStretch&, std::size_t) { sum = Float{}; }
    inline __attribute__((always_inline)) void tap(const PoolingRow& row, std::ptrdiff_t at, int code, float) {
      const Float value = read_vector<Float>(row.values + at);  // loaded whether it won or not: a branch would be slower
      sum += is_winner<Lanes, CodeBytes>(row.winners, at, code) ? value : Float{};
    }
    inline __attribute__((always_inline)) void end_line() {}
    inline __attribute__((always_inline)) void end(const PoolingRow& row, const PoolingStretch&, std::size_t to) { write_vector(row.result + to, sum); }
  };
};

/// ... a share of each, ...
template <int Lanes>
struct AverageGradientPass {
  using Float = typename Lane<Lanes>::Float;
  Float sum;
  inline __attribute__((always_inline)) void begin(const PoolingRow&, const PoolingStretch&, std::size_t) { sum = Float{}; }
  inline __attribute__((always_inline)) void tap(const PoolingRow& row, std::ptrdiff_t at, int, float factor) {
    sum += factor * read_vector<Float>(row.values + at);
  }
  inline __attribute__((always_inline)) void end_line() {}
  inline __attribute__((always_inline)) void end(const PoolingRow& row, const PoolingStretch&, std::size_t to) { write_vector(row.result + to, sum); }
};

/// ... or its part of their norms. x / norm is at most 1, however small the norm; a norm of 0 has no gradient.
template <int Lanes>
struct NormGradientPass {
  using Float = typename Lane<Lanes>::Float;
  Float sum, x;
  inline __attribute__((always_inline)) void begin(const PoolingRow& row, const PoolingStretch&, std::size_t to) {
    sum = Float{};
    x = read_vector<Float>(row.x + to);
  }
  inline __attribute__((always_inline)) void tap(const PoolingRow& row, std::ptrdiff_t at, int, float factor) {
    const Float value = read_vector<Float>(row.values + at), norm = read_vector<Float>(row.norms + at);
    const auto is_zero = norm == Float{};
    const Float share = factor * value * (x / (is_zero ? Float{} + 1.0f : norm));
    sum += is_zero ? Float{} : share;
  }
  inline __attribute__((always_inline)) void end_line() {}
  inline __attribute__((always_inline)) void end(const PoolingRow& row, const PoolingStretch&, std::size_t to) { write_vector(row.result + to, sum); }
};

/// Elements [first, first + Vectors * lanes of On) of a stretch. Taps: their number in a line, 0 for any.
template <class On, int Lanes, int Vectors, int Taps>
inline __attribute__((always_inline)) void pool_vectors(const PoolingRow& row, const PoolingStretch& s, std::size_t first) {
  On pass[Vectors];
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) pass[v].begin(row, s, s.at + first + v * Lanes);
  const PoolingTap* taps = row.taps + s.first_tap;
  const int tap_count = Taps > 0 ? Taps : s.tap_count;
  for (int l = 0; l < row.line_count; ++l) {
    const PoolingTap line = row.lines[l];
#pragma GCC unroll 3
    for (int t = 0; t < tap_count; ++t) {
      const PoolingTap tap = taps[t];
      const std::ptrdiff_t at = line.offset + tap.offset + first;
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) pass[v].tap(row, at + v * Lanes, line.code + tap.code, line.factor * tap.factor);
    }
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) pass[v].end_line();
  }
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) pass[v].end(row, s, s.at + first + v * Lanes);
}

/// Fewer elements than a vector of the instruction set has: shorter vectors, the last of which overlaps the one before it.
template <template <int> class On, int Lanes>
void pool_few(const PoolingRow& row, const PoolingStretch& s, std::size_t begin, std::size_t end) {
  if constexpr (Lanes > 1) {
    if (end - begin < Lanes) return pool_few<On, (Lanes > 4 ? Lanes / 2 : 1)>(row, s, begin, end);
  }
  for (; begin + Lanes <= end; begin += Lanes) pool_vectors<On<Lanes>, Lanes, 1, 0>(row, s, begin);
  if (begin < end) pool_vectors<On<Lanes>, Lanes, 1, 0>(row, s, end - Lanes);
}

template <template <int> class On, int Taps>
void pool_stretch(const PoolingRow& row, const PoolingStretch& s, std::size_t begin, std::size_t end) {
  for (; begin + 4 * kLanes <= end; begin += 4 * kLanes) pool_vectors<On<kLanes>, kLanes, 4, Taps>(row, s, begin);
  for (; begin + kLanes <= end; begin += kLanes) pool_vectors<On<kLanes>, kLanes, 1, Taps>(row, s, begin);
  if (begin < end) pool_vectors<On<kLanes>, kLanes, 1, Taps>(row, s, end - kLanes);  // overlaps: what both compute is the same
}

template <template <int> class On>
void pool(const PoolingRow& row) {
  for (int i = 0; i < row.stretch_count; ++i) {
    const PoolingStretch& s = row.stretches[i];
    const std::size_t begin = row.first, end = s.count < row.last ? s.count : row.last;
    if (end - begin < kLanes) {
      pool_few<On, (kLanes > 4 ? kLanes / 2 : 1)>(row, s, begin, end);
      continue;
    }
    switch (s.tap_count) {
      case 1: pool_stretch<On, 1>(row, s, begin, end); break;
      case 2: pool_stretch<On, 2>(row, s, begin, end); break;
      case 3: pool_stretch<On, 3>(row, s, begin, end); break;
      default: pool_stretch<On, 0>(row, s, begin, end);
    }
  }
}

/// By PoolingPass.
constexpr void (*kPoolingKernels[kPoolingPasses])(const PoolingRow&) = {
    pool<MaximumPass<0>::On>,         pool<MaximumPass<1>::On>,         pool<MaximumPass<4>::On>,
    pool<SumPass<false>::On>,         pool<SumPass<true>::On>,          pool<MaximumGradientPass<1>::On>,
    pool<MaximumGradientPass<4>::On>, pool<AverageGradientPass>,        pool<NormGradientPass>,
};
