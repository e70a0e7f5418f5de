// SPDX-License-Identifier: Apache-2.0
// The weight gradient in the matrix unit against sums in float64, for geometries of every kind; the engine itself would leave the small
// ones to the vector units.
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#define MPSNN_CHECK_NO_MAIN
#include "backends/cpu/convolution_kernels.hpp"
#include "check.hpp"
#include "core/parallel.hpp"

using namespace mpsnn;
using namespace mpsnn::cpu;

namespace {

struct Case {
  ConvolutionGeometry geometry;
  int images;
  bool is_transposed;
};

std::mt19937 random_bits(1);
int draw(int least, int most) { return least + static_cast<int>(random_bits() % (most - least + 1)); }

Axis draw_axis(int most) {
  Axis axis;
  axis.kernel = draw(1, 5);
  axis.stride = draw(1, 3);
  axis.dilation = draw(0, 3) == 0 ? draw(1, 3) : 1;
  axis.input = draw(1, most);
  axis.before = draw(-1, axis.extent() - 1);
  axis.output = draw(1, std::max(1, most / axis.stride));
  return axis;
}

/// Windows of any kind, lines longer than a block, small images, pointwise layers, and windows that do not overlap.
Case draw_case() {
  for (;;) {
    const int kind = draw(0, 4);
    ConvolutionGeometry g;
    g.window = {draw_axis(kind == 0 ? 3 : 20), draw_axis(kind == 0 ? 1500 : 20)};
    if (kind == 1) {
      const int pixels = draw(1, 40);
      g.window = {Axis{pixels, pixels}, Axis{pixels, pixels}};
    }
    if (kind == 2)
      for (Axis* axis : {&g.window.y, &g.window.x}) {
        const int output = draw(1, 12);
        *axis = {2 * output, output, 2, 2};
      }
    g.groups = draw(0, 2) == 0 ? draw(2, 8) : 1;
    g.input_channels = g.groups * (draw(0, 3) == 0 ? draw(2, 4) : draw(2, kind == 1 ? 200 : 40));
    g.output_channels = g.groups * draw(1, kind == 1 ? 200 : 70);
    g.edge_mode = draw(0, 3) == 0 ? ImageEdgeMode::Clamp : ImageEdgeMode::Zero;
    const Case drawn{g, draw(1, 4), draw(0, 1) == 1};
    const Axis &y = g.window.y, &x = g.window.x;
    const double work = double(drawn.images) * y.output * x.output * y.kernel * x.kernel * g.input_channels * g.output_channels / g.groups;
    if (work < 3e6) return drawn;
  }
}

std::vector<float> normal_numbers(std::size_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> numbers(count);
  for (float& number : numbers) number = normal(random_bits);
  return numbers;
}

/// The greatest error of a weight, as a part of the sum of its products' sizes.
double greatest_error(const Case& c, const WeightLayout& layout, const std::vector<float>& source, const std::vector<float>& incoming,
                      const std::vector<float>& weights) {
  const ConvolutionGeometry& g = c.geometry;
  const Axis &y = g.window.y, &x = g.window.x;
  const int inputs = g.input_channels / g.groups, outputs = g.output_channels / g.groups;
  const bool clamps = g.edge_mode == ImageEdgeMode::Clamp;
  double greatest = 0;
  std::vector<double> sums(inputs * outputs), sizes(inputs * outputs);
  for (int tap = 0; tap < g.groups * y.kernel * x.kernel; ++tap) {
    const int group = tap / (y.kernel * x.kernel), ky = tap / x.kernel % y.kernel, kx = tap % x.kernel;
    std::fill(sums.begin(), sums.end(), 0.0);
    std::fill(sizes.begin(), sizes.end(), 0.0);
    for (int pixel = 0; pixel < c.images * y.output * x.output; ++pixel) {
      const int image = pixel / (y.output * x.output), from_y = y.tap(pixel / x.output % y.output, ky), from_x = x.tap(pixel % x.output, kx);
      if (!clamps && (from_y != clamp_index(from_y, y.input) || from_x != clamp_index(from_x, x.input))) continue;
      const std::size_t from = (std::size_t(image) * y.input + clamp_index(from_y, y.input)) * x.input + clamp_index(from_x, x.input);
      for (int i = 0; i < inputs * outputs; ++i) {
        const double product = double(source[from * g.input_channels + group * inputs + i % inputs]) *
                               incoming[std::size_t(pixel) * g.output_channels + group * outputs + i / inputs];
        sums[i] += product;
        sizes[i] += std::fabs(product);
      }
    }
    for (int i = 0; i < inputs * outputs; ++i) {
      const float got = *(layout.at(weights.data(), group) + i / inputs * layout.output + ky * layout.y + kx * layout.x + i % inputs * layout.input);
      const double error = std::fabs(got - sums[i]);
      if (!(error <= greatest * sizes[i])) greatest = sizes[i] > 0 ? error / sizes[i] : INFINITY;
    }
  }
  return greatest;
}

}  // namespace

TEST(weight_gradients_are_sums_over_pixels) {
  for (int i = 0; i < 400; ++i) {
    const Case c = draw_case();
    const ConvolutionGeometry& g = c.geometry;
    const Axis &y = g.window.y, &x = g.window.x;
    const WeightLayout layout = c.is_transposed ? transposed_layout(g) : natural_layout(g);
    const std::unique_ptr<Kernel> kernel = make_matrix_unit_weight_gradient(g, layout, c.images, c.is_transposed);
    std::vector<float> source = normal_numbers(std::size_t(c.images) * y.input * x.input * g.input_channels);
    std::vector<float> incoming = normal_numbers(std::size_t(c.images) * y.output * x.output * g.output_channels);
    void* const inputs[] = {c.is_transposed ? source.data() : incoming.data(), c.is_transposed ? incoming.data() : source.data()};
    const AlignedFloats scratch(kernel->scratch_bytes() / sizeof(float) + 16);
    std::vector<float> weights[2];
    for (int threads = 1; threads <= std::min(2, max_thread_count()); ++threads) {
      std::vector<float>& result = weights[threads - 1];
      result.assign(std::size_t(y.kernel) * x.kernel * g.input_channels / g.groups * g.output_channels, std::numeric_limits<float>::quiet_NaN());
      std::memset(scratch.data(), 0xff, kernel->scratch_bytes());  // nothing that was not written is read
      void* const outputs[] = {result.data()};
      KernelCall call{inputs, outputs};
      call.scratch = scratch.data();
      set_thread_count(threads);
      kernel->run(call);
    }
    // Three parts of eight bits each and sums in float32, of which few are long.
    const double error = greatest_error(c, layout, source, incoming, weights[0]);
    if (!(error <= 8 * std::numeric_limits<float>::epsilon())) std::fprintf(stderr, "case %d: %s\n", i, kernel->algorithm().c_str());
    CHECK(error <= 8 * std::numeric_limits<float>::epsilon());
    if (!weights[1].empty()) CHECK(std::memcmp(weights[0].data(), weights[1].data(), weights[0].size() * sizeof(float)) == 0);
  }
}

int main(int argument_count, char** arguments) {
  constexpr int kSkipped = 77;  // as ctest is told
  if (isa().matrix_unit) return check::run_all(argument_count, arguments);
  std::printf("skipped: this machine has no matrix unit, or MPSNN_ISA leaves it out\n");
  return kSkipped;
}
