// SPDX-License-Identifier: Apache-2.0
// The matrix unit of an instruction set: products of split numbers against float64, and against what chains of float32 multiply-adds reach.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "backends/cpu/gemm.hpp"
#define MPSNN_CHECK_NO_MAIN
#include "check.hpp"

using namespace mpsnn;
using namespace mpsnn::cpu;

namespace {

std::vector<float> draw(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

struct Operands {
  int rows, columns, depth;
  std::vector<float> a, b;
  Operands(int rows, int columns, int depth)
      : rows(rows), columns(columns), depth(depth), a(draw(std::size_t(rows) * depth, 1)), b(draw(std::size_t(depth) * columns, 2)) {}
  double expected(int i, int j) const {
    double sum = 0;
    for (int k = 0; k < depth; ++k) sum += double(a[i * depth + k]) * b[k * columns + j];
    return sum;
  }
  float chain(int i, int j) const {
    float sum = 0;
    for (int k = 0; k < depth; ++k) sum = std::fma(a[i * depth + k], b[k * columns + j], sum);
    return sum;
  }
};

enum class Left { rows, columns };

/// Splits both operands, lets `change` have the product, and multiplies. NaNs stand where nothing may be written.
std::vector<float> multiply(const Operands& o, Left left, const auto& change) {
  const MatrixUnit& unit = *isa().matrix_unit;
  const std::size_t steps = ceil_divide(o.depth, split::kDepth), stride = (steps + 1) * split::kDepth, rows = round_up(o.rows, split::kRows);
  const std::size_t column_tiles = ceil_divide(o.columns, split::kColumns), b_columns = steps * split::kParts * split::kTile;
  const AlignedFloats memory((split::kParts * rows * stride + column_tiles * b_columns) / 2 + 16);
  auto* a = reinterpret_cast<std::uint16_t*>(memory.data());
  std::uint16_t* b = a + split::kParts * rows * stride;
  if (left == Left::rows) {
    unit.split_rows(o.a.data(), o.depth, o.rows, o.depth, a, stride, rows * stride);
  } else {
    std::vector<float> transposed(o.a.size());
    for (int i = 0; i < o.rows; ++i)
      for (int k = 0; k < o.depth; ++k) transposed[std::size_t(k) * o.rows + i] = o.a[std::size_t(i) * o.depth + k];
    unit.split_columns(transposed.data(), o.rows, o.rows, o.depth, a, stride, rows * stride);
  }
  unit.split_pairs(o.b.data(), o.columns, o.depth, o.columns, b, b_columns);
  std::vector<float> c(std::size_t(o.rows) * (o.columns + 1), std::numeric_limits<float>::quiet_NaN());
  SplitProduct product{.rows = o.rows, .columns = o.columns, .steps = steps, .a = a, .a_stride = stride, .a_part = rows * stride, .offsets = nullptr,
                       .b = b, .b_columns = b_columns, .c = c.data(), .c_stride = std::size_t(o.columns) + 1, .start = nullptr, .overwrites = true};
  change(product, c);
  const OpenMatrixUnit open(&unit);
  unit.multiply(product);
  return c;
}

constexpr std::array<std::array<int, 3>, 8> kSizes{{{1, 1, 1}, {16, 16, 32}, {17, 33, 31}, {48, 64, 64}, {37, 50, 75}, {5, 3, 147}, {33, 31, 320}, {16, 16, 2000}}};

}  // namespace

TEST(products_are_more_accurate_than_chains) {
  for (const auto& [rows, columns, depth] : kSizes)
    for (const Left left : {Left::rows, Left::columns}) {
      const Operands o(rows, columns, depth);
      const std::vector<float> c = multiply(o, left, [](auto&, auto&) {});
      double error = 0, chain_error = 0, total = 0;
      for (int i = 0; i < rows; ++i) {
        for (int j = 0; j < columns; ++j) {
          const double expected = o.expected(i, j);
          error += std::pow(c[std::size_t(i) * (columns + 1) + j] - expected, 2);
          chain_error += std::pow(o.chain(i, j) - expected, 2);
          total += expected * expected;
        }
        CHECK(std::isnan(c[std::size_t(i) * (columns + 1) + columns]));
      }
      CHECK(error <= std::max(chain_error, total * std::pow(std::numeric_limits<float>::epsilon(), 2)));
    }
}

TEST(products_begin_with_start_or_are_added) {
  for (const auto& [rows, columns, depth] : kSizes) {
    const Operands o(rows, columns, depth);
    const std::vector<float> plain = multiply(o, Left::rows, [](auto&, auto&) {}), start = draw(columns, 3);
    const std::vector<float> started = multiply(o, Left::rows, [&](SplitProduct& product, auto&) { product.start = start.data(); });
    const std::vector<float> added = multiply(o, Left::rows, [](SplitProduct& product, std::vector<float>& c) {
      std::fill(c.begin(), c.end(), 2.0f);
      product.overwrites = false;
    });
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < columns; ++j) {
        const std::size_t at = std::size_t(i) * (columns + 1) + j;
        CHECK_EQ(started[at], plain[at] + start[j]);
        CHECK_EQ(added[at], plain[at] + 2.0f);
      }
  }
}

TEST(steps_may_lie_anywhere_in_a_row) {
  const Operands o(20, 40, 96);
  const std::vector<float> plain = multiply(o, Left::rows, [](auto&, auto&) {});
  // The steps of b stay where they are, so an exchange of two steps in `a` must give another result, and the same order the same.
  const std::ptrdiff_t same[] = {0, 32, 64}, exchanged[] = {32, 0, 64};
  const auto with = [&](const std::ptrdiff_t* offsets) { return multiply(o, Left::rows, [&](SplitProduct& product, auto&) { product.offsets = offsets; }); };
  const std::vector<float> again = with(same), other = with(exchanged);
  Operands moved = o;
  for (int i = 0; i < o.rows; ++i) std::swap_ranges(&moved.a[i * 96], &moved.a[i * 96 + 32], &moved.a[i * 96 + 32]);
  for (int i = 0; i < o.rows; ++i)
    for (int j = 0; j < o.columns; ++j) {
      const std::size_t at = std::size_t(i) * (o.columns + 1) + j;
      CHECK_EQ(again[at], plain[at]);
      CHECK_NEAR(other[at], moved.expected(i, j), 1e-5 * std::sqrt(96));
    }
}

TEST(numbers_at_the_ends_of_the_range) {
  Operands o(1, 1, 2);
  const auto product = [&](float a, float b) {
    o.a = {a, 0.0f};
    o.b = {b, 0.0f};
    return multiply(o, Left::rows, [](auto&, auto&) {})[0];
  };
  const float largest = std::numeric_limits<float>::max(), infinity = std::numeric_limits<float>::infinity();
  CHECK_EQ(product(3.3e38f, 1.0f), 3.3e38f);
  CHECK(!std::isfinite(product(largest, 2.0f)));
  CHECK(!std::isfinite(product(infinity, 1.0f)));
  CHECK(std::isnan(product(std::numeric_limits<float>::quiet_NaN(), 1.0f)));
  CHECK(std::isnan(product(std::bit_cast<float>(0x7fffffffu), 1.0f)));
  CHECK_NEAR(product(1e-30f, 1e5f), 1e-25, 1e-25 * std::numeric_limits<float>::epsilon());
  CHECK_NEAR(product(1e-39f, 1.0f), 0, 1e-38);  // below the smallest normal number: 0
}

int main(int argument_count, char** arguments) {
  constexpr int kSkipped = 77;  // as ctest is told
  if (isa().matrix_unit) return check::run_all(argument_count, arguments);
  std::printf("skipped: this machine has no matrix unit, or MPSNN_ISA leaves it out\n");
  return kSkipped;
}
