// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "backends/reference/kernels.hpp"

namespace mpsnn::reference {
namespace {

/// Calls f(y, x) for every tap of output pixel (i, j), row-major: the source pixel it reads, or y = x = -1 where it reads a
/// zero outside the image.
template <class F>
void for_each_tap(const Window& w, ImageEdgeMode edge_mode, int i, int j, F f) {
  for (int ky = 0; ky < w.y.kernel; ++ky)
    for (int kx = 0; kx < w.x.kernel; ++kx) {
      const int y = source_pixel(w.y, i, ky, edge_mode);
      const int x = source_pixel(w.x, j, kx, edge_mode);
      if (y < 0 || x < 0) f(-1, -1);
      else f(y, x);
    }
}

/// What average pooling divides by (8.4); 0 when a window misses the image altogether.
double divisor(const PoolingOp& op, int i, int j) {
  return static_cast<double>(average_taps(op.window.y, i, op.edge_mode, op.zero_pad_y)) *
         average_taps(op.window.x, j, op.edge_mode, op.zero_pad_x);
}

/// The maximum of one window and the pixel that holds it, -1 where that is a zero outside the image.
struct Winner {
  double value = 0;
  int y = -1, x = -1;
};

/// The first maximum in row-major order wins; zeros outside the image win over negative pixels only. A NaN wins over all.
Winner find_winner(const PoolingOp& op, const Shape& source, const double* image, int n, int i, int j, int c) {
  Winner best;
  bool reads_zeros = false;
  for_each_tap(op.window, op.edge_mode, i, j, [&](int y, int x) {
    if (y < 0) {
      reads_zeros = true;
      return;
    }
    const double value = image[at(source, n, y, x, c)];
    if (best.y < 0 || value > best.value || (std::isnan(value) && !std::isnan(best.value))) best = {value, y, x};
  });
  return reads_zeros && best.value < 0 ? Winner{} : best;
}

double average(const PoolingOp& op, const Shape& source, const double* image, int n, int i, int j, int c) {
  double sum = 0;
  // Taps outside count in the divisor or not at all, so Clamp does not repeat the edge here.
  for_each_tap(op.window, ImageEdgeMode::Zero, i, j, [&](int y, int x) {
    if (y >= 0) sum += image[at(source, n, y, x, c)];
  });
  const double taps = divisor(op, i, j);
  return taps == 0 ? 0 : sum / taps;
}

double l2_norm(const PoolingOp& op, const Shape& source, const double* image, int n, int i, int j, int c) {
  double sum = 0;
  for_each_tap(op.window, op.edge_mode, i, j, [&](int y, int x) {
    if (y >= 0) sum += image[at(source, n, y, x, c)] * image[at(source, n, y, x, c)];
  });
  return std::sqrt(sum);
}

}  // namespace

std::unique_ptr<Kernel> make_kernel(const PoolingOp& op, const OperandShapes& shapes) {
  return kernel([op, source = shapes.inputs[0], result = shapes.outputs[0]](const KernelCall& call) {
    const double* image = call.input<double>(0);
    double* pooled = call.output<double>(0);
    for_each_element(result, [&](int n, int i, int j, int c) {
      double& value = pooled[at(result, n, i, j, c)];
      switch (op.kind) {
        case PoolingKind::max: value = find_winner(op, source, image, n, i, j, c).value; break;
        case PoolingKind::average: value = average(op, source, image, n, i, j, c); break;
        case PoolingKind::l2_norm: value = l2_norm(op, source, image, n, i, j, c); break;
      }
    });
  });
}

std::unique_ptr<Kernel> make_kernel(const PoolingGradientOp& gradient_op, const OperandShapes& shapes) {
  return kernel([op = gradient_op.forward, result = shapes.inputs[0], source = shapes.outputs[0]](const KernelCall& call) {
    const double* incoming = call.input<double>(0);
    const double* image = call.input<double>(1);
    const double* pooled = call.input<double>(2);
    double* gradient = call.output<double>(0);
    std::fill_n(gradient, source.count(), 0.0);
    for_each_element(result, [&](int n, int i, int j, int c) {
      const double e = incoming[at(result, n, i, j, c)];
      switch (op.kind) {
        case PoolingKind::max: {
          const Winner winner = find_winner(op, source, image, n, i, j, c);
          if (winner.y >= 0) gradient[at(source, n, winner.y, winner.x, c)] += e;
          break;
        }
        case PoolingKind::average: {
          const double taps = divisor(op, i, j);
          for_each_tap(op.window, ImageEdgeMode::Zero, i, j, [&](int y, int x) {
            if (y >= 0) gradient[at(source, n, y, x, c)] += e / taps;  // a pixel inside was counted: taps > 0
          });
          break;
        }
        case PoolingKind::l2_norm: {
          const double norm = pooled[at(result, n, i, j, c)];
          if (norm == 0) break;
          for_each_tap(op.window, op.edge_mode, i, j, [&](int y, int x) {
            if (y >= 0) gradient[at(source, n, y, x, c)] += e * image[at(source, n, y, x, c)] / norm;
          });
          break;
        }
      }
    });
  });
}

}  // namespace mpsnn::reference
