// SPDX-License-Identifier: Apache-2.0
// Fully connected layers of few images, whose weights are read once: rows of them times vectors, and rows of them added up. Memory sets the
// pace, so the rows that come next are fetched meanwhile. Included behind softmax.inl.

namespace mpsnn::cpu {
namespace {

/// Floats of a row that are multiplied before the next rows have their turn: what they meet stays in the first-level cache.
constexpr std::size_t kRowStretch = 512;
/// Rows whose sums wait for their next stretch.
constexpr std::size_t kWaitingRows = 24;

/// One stretch of some rows. sums: rows x images vectors, added to.
template <int Rows, int Images>
inline __attribute__((always_inline)) void multiply_rows(const float* a, std::size_t a_stride, const float* next, std::size_t depth,
                                                         const float* b, float* sums) {
  Vector sum[Rows][Images];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int p = 0; p < Images; ++p) sum[r][p] = load(sums + (r * Images + p) * kLanes);
  const auto step = [&](std::size_t k, int count) __attribute__((always_inline)) {
    Vector left[Rows];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) left[r] = load_up_to(a + r * a_stride + k, count);
#pragma GCC unroll 8
    for (int p = 0; p < Images; ++p, b += kLanes) {
      const Vector right = load(b);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) sum[r][p] += left[r] * right;
    }
  };
  std::size_t k = 0;
  for (; k + kLanes <= depth; k += kLanes) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) __builtin_prefetch(next + r * a_stride + k, 0, 2);
    step(k, kLanes);
  }
  if (k < depth) step(k, static_cast<int>(depth - k));
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int p = 0; p < Images; ++p) store(sums + (r * Images + p) * kLanes, sum[r][p]);
}

template <int Images>
void row_products_of(const RowProducts& s) {
  constexpr int kFitting = (MPSNN_ISA_REGISTERS - 1) / (Images + 1), kRows = kFitting > 8 ? 8 : kFitting;
  alignas(64) float sums[kWaitingRows * Images * kLanes];
  for (std::size_t first = 0; first < s.rows; first += kWaitingRows) {
    const std::size_t rows = s.rows - first < kWaitingRows ? s.rows - first : kWaitingRows;
    for (float& sum : sums) sum = 0;
    for (std::size_t k = 0; k < s.depth; k += kRowStretch) {
      const std::size_t depth = s.depth - k < kRowStretch ? s.depth - k : kRowStretch;
      const float *a = s.a + first * s.a_stride + k, *b = s.b + k * Images;
      for (std::size_t r = 0; r < rows;) {
        const bool is_whole = r + kRows <= rows;
        const std::size_t end = r + (is_whole ? kRows : 1);
        const float *from = a + r * s.a_stride, *next = end < rows ? a + end * s.a_stride : a + depth;
        float* to = sums + r * Images * kLanes;
        is_whole ? multiply_rows<kRows, Images>(from, s.a_stride, next, depth, b, to) : multiply_rows<1, Images>(from, s.a_stride, next, depth, b, to);
        r = end;
      }
    }
    for (std::size_t r = 0; r < rows; ++r)
      for (int p = 0; p < Images; ++p)
        s.result[p * s.result_stride + first + r] = sum_of(load(sums + (r * Images + p) * kLanes)) + (s.start ? s.start[first + r] : 0.0f);
  }
}

void row_products(const RowProducts& s) {
  switch (s.images) {
    case 1: return row_products_of<1>(s);
    case 2: return row_products_of<2>(s);
#if MPSNN_ISA_LANES >= 8
    case 3: return row_products_of<3>(s);
    case 4: return row_products_of<4>(s);
#endif
#if MPSNN_ISA_LANES >= 16
    case 5: return row_products_of<5>(s);
    case 6: return row_products_of<6>(s);
    case 7: return row_products_of<7>(s);
    case 8: return row_products_of<8>(s);
#endif
    default: return;
  }
}

/// A few vectors of the result for some images.
template <int Images, int Vectors>
inline __attribute__((always_inline)) void add_weighted_rows(const WeightedRows& s, std::size_t image, std::size_t column, bool fetches) {
  Vector sum[Images][Vectors];
  float* result = s.result + image * s.result_stride + column;
#pragma GCC unroll 8
  for (int p = 0; p < Images; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) sum[p][v] = load(result + p * s.result_stride + v * kLanes);
  const float *row = s.b + column, *factors = s.factors + image * s.factor_stride;
  for (std::size_t k = 0; k < s.depth; ++k, row += s.b_stride, ++factors) {
    Vector right[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      if (fetches) __builtin_prefetch(row + s.depth * s.b_stride + v * kLanes, 0, 2);
      right[v] = load(row + v * kLanes);
    }
#pragma GCC unroll 8
    for (int p = 0; p < Images; ++p) {
      const float factor = factors[p * s.factor_stride];
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[p][v] += factor * right[v];
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < Images; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) store(result + p * s.result_stride + v * kLanes, sum[p][v]);
}

template <int Vectors>
inline void add_weighted_images(const WeightedRows& s, std::size_t column) {
  constexpr int kImages = MPSNN_ISA_REGISTERS == 32 ? 8 : 4;
  std::size_t image = 0;
  for (; image + kImages <= s.images; image += kImages) add_weighted_rows<kImages, Vectors>(s, image, column, image == 0);
  for (; image < s.images; ++image) add_weighted_rows<1, Vectors>(s, image, column, image == 0);
}

void weighted_rows(const WeightedRows& s) {
  constexpr int kVectors = 3;
  std::size_t column = 0;
  for (; column + kVectors * kLanes <= s.columns; column += kVectors * kLanes) add_weighted_images<kVectors>(s, column);
  for (; column + kLanes <= s.columns; column += kLanes) add_weighted_images<1>(s, column);
  for (; column < s.columns; ++column)
    for (std::size_t p = 0; p < s.images; ++p)
      for (std::size_t k = 0; k < s.depth; ++k)
        s.result[p * s.result_stride + column] += s.factors[p * s.factor_stride + k] * s.b[k * s.b_stride + column];
}

}  // namespace
}  // namespace mpsnn::cpu
