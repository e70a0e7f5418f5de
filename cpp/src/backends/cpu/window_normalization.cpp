// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <vector>

#include "backends/cpu/kernels.hpp"
#include "backends/cpu/loops.hpp"

/// Normalizations by the surroundings of an element (docs/semantics.md, 11). Gradients gather: each element is written by the task
/// that owns it, from sums over the windows that read it, which are windows of the mirrored axes.
namespace mpsnn::cpu {
namespace {

/// values := values^-beta. The usual exponents become vectors; std::pow does not.
void inverse_power(float* __restrict values, std::size_t count, float beta) {
  if (beta == 0.5f) {
    for (std::size_t i = 0; i < count; ++i) values[i] = 1.0f / std::sqrt(values[i]);
  } else if (beta == 0.75f) {
    for (std::size_t i = 0; i < count; ++i) values[i] = 1.0f / (std::sqrt(values[i]) * std::sqrt(std::sqrt(values[i])));
  } else if (beta == 1.0f) {
    for (std::size_t i = 0; i < count; ++i) values[i] = 1.0f / values[i];
  } else if (beta == 5.0f) {
    for (std::size_t i = 0; i < count; ++i) {
      const float square = values[i] * values[i];
      values[i] = 1.0f / (square * square * values[i]);
    }
  } else {
    for (std::size_t i = 0; i < count; ++i) values[i] = std::pow(values[i], -beta);
  }
}

/// sums[o] += terms[tap] for every tap inside of an axis with stride 1 whose pixels are `width` elements: one long addition
/// for each tap, however narrow the pixels.
class AxisSums {
 public:
  explicit AxisSums(const Axis& axis) {
    // With stride 1, taps move inwards from the last output to the first: no others meet the image.
    const int begin = axis.taps_inside(std::max(0, axis.output - 1)).begin, end = axis.taps_inside(0).end;
    for (int t = begin; t < end; ++t) {
      const Range outputs = axis.outputs_inside(t);
      if (outputs.size() > 0) pieces_.push_back({outputs.begin, axis.tap(outputs.begin, t), outputs.size()});
    }
  }
  template <class T>
  void add(const T* terms, T* sums, int width) const {
    for (const Piece& piece : pieces_)
      add_stretch(terms + static_cast<std::ptrdiff_t>(piece.from) * width, sums + static_cast<std::ptrdiff_t>(piece.to) * width,
                  static_cast<std::size_t>(piece.count) * width);
  }

 private:
  struct Piece {
    int to, from, count;
  };
  template <class T>
  static void add_stretch(const T* __restrict terms, T* __restrict sums, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) sums[i] += terms[i];
  }
  std::vector<Piece> pieces_;
};

/// Sums over the windows of a row of an image: down the columns, then along the row.
class WindowSums {
 public:
  WindowSums(const Window& window, const Shape& shape)
      : y_(window.y), x_(window.x), width_(shape.channels), elements_(static_cast<std::size_t>(shape.width) * shape.channels) {}

  /// sums := the sums of row `i`. add_row(columns, row) adds a row of the image's terms to `columns`, a row of scratch.
  template <class T, class AddRow>
  void row(int i, T* columns, T* sums, AddRow add_row) const {
    std::fill_n(columns, elements_, T(0));
    std::fill_n(sums, elements_, T(0));
    const Range taps = y_.taps_inside(i);
    for (int t = taps.begin; t < taps.end; ++t) add_row(columns, y_.tap(i, t));
    x_.add(columns, sums, width_);
  }

 private:
  Axis y_;
  AxisSums x_;
  int width_;
  std::size_t elements_;
};

Window mirrored(const Window& window) { return {window.y.mirrored(), window.x.mirrored()}; }

template <class T>
void add_row(const T* __restrict row, T* __restrict sums, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) sums[i] += row[i];
}
void add_squares(const float* __restrict row, float* __restrict sums, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) sums[i] += row[i] * row[i];
}

/// What spatial and local contrast normalization share: rows as tasks, scratch of a row for each thread, and images taken in groups
/// of some 256 Ki elements, which bounds the scratch that gradients keep from their first pass to their second.
struct Rows {
  Shape shape;
  std::size_t elements;  ///< of a row
  int taps_y, taps_x, group;

  Rows(const Shape& shape_, const Window& window)
      : shape(shape_), elements(static_cast<std::size_t>(shape.width) * shape.channels), taps_y(window.y.kernel), taps_x(window.x.kernel) {
    constexpr std::size_t kGroupElements = 262144;
    group = std::clamp(static_cast<int>(kGroupElements / std::max<std::size_t>(1, shape.image_count())), 1, std::max(1, shape.images));
  }
  float tap_count() const { return static_cast<float>(taps_y) * static_cast<float>(taps_x); }
  std::size_t group_elements() const { return shape.image_count() * group; }

  /// Calls body(row of the image, elements in front of the image, elements in front of the row, thread) for the rows of some images.
  template <class Body>
  void run(int first_image, int last_image, Body&& body) const {
    const std::size_t height = shape.height, first = first_image * height;
    parallel_ranges(last_image * height - first, elements * (taps_y + taps_x), [&](std::size_t begin, std::size_t end, int thread) {
      for (std::size_t row = first + begin; row < first + end; ++row)
        body(static_cast<int>(row % height), row / height * shape.image_count(), row * elements, thread);
    });
  }
  /// Calls body(first image, last image + 1) for every group.
  template <class Body>
  void for_each_group(Body&& body) const {
    for (int n = 0; n < shape.images; n += group) body(n, std::min(shape.images, n + group));
  }
};

/// T of 11.1 in one row.
struct SpatialRow {
  SpatialNormalizationOp op;
  WindowSums sums;
  std::size_t elements;
  float alpha;

  SpatialRow(const SpatialNormalizationOp& op_, const Rows& rows)
      : op(op_), sums(op_.window, rows.shape), elements(rows.elements), alpha(op_.alpha / rows.tap_count()) {}
  void run(const float* image, int i, float* columns, float* denominators) const {
    sums.row(i, columns, denominators, [&](float* to, int y) { add_squares(image + y * elements, to, elements); });
    for (std::size_t e = 0; e < elements; ++e) denominators[e] = op.delta + alpha * denominators[e];
  }
};

/// M and V of 11.2 in one row, in double: V is the small difference of large numbers wherever an image is bright.
struct ContrastRow {
  LocalContrastNormalizationOp op;
  WindowSums sums;
  std::size_t elements;
  double taps;

  ContrastRow(const LocalContrastNormalizationOp& op_, const Rows& rows)
      : op(op_), sums(op_.window, rows.shape), elements(rows.elements), taps(rows.tap_count()) {}
  /// means, denominators and powers = denominators^-beta, one row each, and a row of scratch.
  void run(const float* image, int i, double* columns, double* means, double* denominators, float* powers) const {
    sums.row(i, columns, means, [&](double* to, int y) {
      const float* row = image + y * elements;
      for (std::size_t e = 0; e < elements; ++e) to[e] += row[e];
    });
    sums.row(i, columns, denominators, [&](double* to, int y) {
      const float* row = image + y * elements;
      for (std::size_t e = 0; e < elements; ++e) to[e] += static_cast<double>(row[e]) * row[e];
    });
    for (std::size_t e = 0; e < elements; ++e) {
      means[e] /= taps;
      denominators[e] = op.delta + op.alpha * (denominators[e] / taps - means[e] * means[e]);
      powers[e] = static_cast<float>(denominators[e]);
    }
    inverse_power(powers, elements, op.beta);
  }
};

/// Sums of squares along the channels of pixels.
struct ChannelRow {
  CrossChannelNormalizationOp op;
  AxisSums sums, mirrored_sums;
  int channels;
  float alpha;

  explicit ChannelRow(const CrossChannelNormalizationOp& op_)
      : op(op_), sums(op_.channels), mirrored_sums(op_.channels.mirrored()), channels(op_.channels.input),
        alpha(op_.alpha / static_cast<float>(op_.channels.kernel)) {}
  /// L of 11.3 for some pixels; `squares` is scratch for as many elements.
  void run(const float* x, std::size_t pixels, float* __restrict squares, float* __restrict denominators) const {
    const std::size_t count = pixels * channels;
    for (std::size_t e = 0; e < count; ++e) squares[e] = x[e] * x[e];
    add(sums, squares, denominators, pixels);
    for (std::size_t e = 0; e < count; ++e) denominators[e] = op.delta + alpha * denominators[e];
  }
  void add(const AxisSums& along, const float* terms, float* result, std::size_t pixels) const {
    std::fill_n(result, pixels * channels, 0.0f);
    for (std::size_t p = 0; p < pixels; ++p) along.add(terms + p * channels, result + p * channels, 1);
  }
  /// Elements of a task, which bounds its scratch.
  std::size_t task_elements() const { return std::max<std::size_t>(kTaskElements, channels); }
};

}  // namespace

std::unique_ptr<Kernel> make_kernel(const SpatialNormalizationOp& op, const OperandShapes& shapes) {
  const Rows rows(shapes.outputs[0], op.window);
  const auto run = [rows, spatial = SpatialRow(op, rows)](const KernelCall& call) {
    rows.run(0, rows.shape.images, [&](int i, std::size_t image, std::size_t row, int thread) {
      const float* x = call.input<float>(0);
      float* y = call.output<float>(0) + row;
      spatial.run(x + image, i, static_cast<float*>(call.scratch) + thread * rows.elements, y);
      inverse_power(y, rows.elements, spatial.op.beta);
      for (std::size_t e = 0; e < rows.elements; ++e) y[e] *= x[row + e];
    });
  };
  return function_kernel(run, sizeof(float) * rows.elements * max_thread_count());
}

std::unique_ptr<Kernel> make_kernel(const SpatialNormalizationGradientOp& gradient_op, const OperandShapes& shapes) {
  const SpatialNormalizationOp& op = gradient_op.forward;
  const Rows rows(shapes.outputs[0], op.window);
  const auto run = [rows, spatial = SpatialRow(op, rows), readers = WindowSums(mirrored(op.window), rows.shape)](const KernelCall& call) {
    const float *incoming = call.input<float>(0), *x = call.input<float>(1);
    const std::size_t elements = rows.elements;
    float* gradient = call.output<float>(0);
    float* products = static_cast<float*>(call.scratch);
    float* threads = products + rows.group_elements();
    const float factor = 2 * spatial.alpha * spatial.op.beta;
    rows.for_each_group([&](int first, int last) {
      const std::size_t start = first * rows.shape.image_count();
      rows.run(first, last, [&](int i, std::size_t image, std::size_t row, int thread) {
        float *columns = threads + thread * 2 * elements, *denominators = columns + elements;
        spatial.run(x + image, i, columns, denominators);
        float* powers = gradient + row;
        std::copy_n(denominators, elements, powers);
        inverse_power(powers, elements, spatial.op.beta);
        for (std::size_t e = 0; e < elements; ++e) {
          const float direct = incoming[row + e] * powers[e];
          products[row - start + e] = direct * x[row + e] / denominators[e];
          gradient[row + e] = direct;
        }
      });
      rows.run(first, last, [&](int i, std::size_t image, std::size_t row, int thread) {
        float *columns = threads + thread * 2 * elements, *sums = columns + elements;
        readers.row(i, columns, sums, [&](float* to, int y) { add_row(products + (image - start) + y * elements, to, elements); });
        for (std::size_t e = 0; e < elements; ++e) gradient[row + e] -= factor * x[row + e] * sums[e];
      });
    });
  };
  return function_kernel(run, sizeof(float) * (rows.group_elements() + 2 * rows.elements * max_thread_count()));
}

std::unique_ptr<Kernel> make_kernel(const LocalContrastNormalizationOp& op, const OperandShapes& shapes) {
  const Rows rows(shapes.outputs[0], op.window);
  const auto run = [rows, contrast = ContrastRow(op, rows)](const KernelCall& call) {
    rows.run(0, rows.shape.images, [&](int i, std::size_t image, std::size_t row, int thread) {
      const LocalContrastNormalizationOp& op = contrast.op;
      const float* x = call.input<float>(0);
      float* y = call.output<float>(0) + row;
      double* columns = static_cast<double*>(call.scratch) + thread * 3 * rows.elements;
      double *means = columns + rows.elements, *denominators = means + rows.elements;
      contrast.run(x + image, i, columns, means, denominators, y);
      for (std::size_t e = 0; e < rows.elements; ++e)
        y[e] = static_cast<float>(op.pm + op.ps * (x[row + e] - op.p0 * means[e]) * y[e]);
    });
  };
  return function_kernel(run, sizeof(double) * 3 * rows.elements * max_thread_count());
}

std::unique_ptr<Kernel> make_kernel(const LocalContrastNormalizationGradientOp& gradient_op, const OperandShapes& shapes) {
  const LocalContrastNormalizationOp& op = gradient_op.forward;
  const Rows rows(shapes.outputs[0], op.window);
  const auto run = [rows, contrast = ContrastRow(op, rows), readers = WindowSums(mirrored(op.window), rows.shape)](const KernelCall& call) {
    const LocalContrastNormalizationOp& op = contrast.op;
    const float *incoming = call.input<float>(0), *x = call.input<float>(1);
    const std::size_t elements = rows.elements;
    float* gradient = call.output<float>(0);
    // dX = ps * (E * V^-beta - sum of `constants` - x * sum of `slopes`), in double: the two sums almost cancel in bright images.
    double *constants = static_cast<double*>(call.scratch), *slopes = constants + rows.group_elements();
    double* threads = slopes + rows.group_elements();
    const double by_mean = op.p0 / contrast.taps, by_variance = 2.0 * op.alpha * op.beta / contrast.taps;
    rows.for_each_group([&](int first, int last) {
      const std::size_t start = first * rows.shape.image_count();
      rows.run(first, last, [&](int i, std::size_t image, std::size_t row, int thread) {
        double *columns = threads + thread * 3 * elements, *means = columns + elements, *denominators = means + elements;
        float* powers = gradient + row;
        contrast.run(x + image, i, columns, means, denominators, powers);
        double *constant = constants + (row - start), *slope = slopes + (row - start);
        for (std::size_t e = 0; e < elements; ++e) {
          const double direct = static_cast<double>(incoming[row + e]) * powers[e];
          slope[e] = by_variance * direct * (x[row + e] - op.p0 * means[e]) / denominators[e];
          constant[e] = by_mean * direct - slope[e] * means[e];
        }
      });
      rows.run(first, last, [&](int i, std::size_t image, std::size_t row, int thread) {
        double *columns = threads + thread * 3 * elements, *constant = columns + elements, *slope = constant + elements;
        const std::size_t at = image - start;
        readers.row(i, columns, constant, [&](double* to, int y) { add_row(constants + at + y * elements, to, elements); });
        readers.row(i, columns, slope, [&](double* to, int y) { add_row(slopes + at + y * elements, to, elements); });
        for (std::size_t e = 0; e < elements; ++e) {
          const double direct = static_cast<double>(incoming[row + e]) * gradient[row + e];  // the first pass left V^-beta there
          gradient[row + e] = static_cast<float>(op.ps * (direct - constant[e] - x[row + e] * slope[e]));
        }
      });
    });
  };
  return function_kernel(run, sizeof(double) * (2 * rows.group_elements() + 3 * rows.elements * max_thread_count()));
}

std::unique_ptr<Kernel> make_kernel(const CrossChannelNormalizationOp& op, const OperandShapes& shapes) {
  const ChannelRow row(op);
  const auto run = [row, shape = shapes.outputs[0]](const KernelCall& call) {
    parallel_ranges(shape.pixels(), 4 * row.channels, [&](std::size_t begin, std::size_t end, int thread) {
      const std::size_t first = begin * row.channels, count = (end - begin) * row.channels;
      const float* x = call.input<float>(0) + first;
      float* y = call.output<float>(0) + first;
      row.run(x, end - begin, static_cast<float*>(call.scratch) + thread * row.task_elements(), y);
      inverse_power(y, count, row.op.beta);
      for (std::size_t e = 0; e < count; ++e) y[e] *= x[e];
    });
  };
  return function_kernel(run, sizeof(float) * row.task_elements() * max_thread_count());
}

std::unique_ptr<Kernel> make_kernel(const CrossChannelNormalizationGradientOp& op, const OperandShapes& shapes) {
  const ChannelRow row(op.forward);
  const auto run = [row, shape = shapes.outputs[0]](const KernelCall& call) {
    const float factor = 2 * row.alpha * row.op.beta;
    parallel_ranges(shape.pixels(), 4 * row.channels, [&](std::size_t begin, std::size_t end, int thread) {
      const std::size_t first = begin * row.channels, count = (end - begin) * row.channels;
      const float *incoming = call.input<float>(0) + first, *x = call.input<float>(1) + first;
      float* gradient = call.output<float>(0) + first;
      float* products = static_cast<float*>(call.scratch) + thread * 2 * row.task_elements();
      float* denominators = products + row.task_elements();
      row.run(x, end - begin, products, denominators);
      std::copy_n(denominators, count, gradient);
      inverse_power(gradient, count, row.op.beta);
      for (std::size_t e = 0; e < count; ++e) {
        gradient[e] *= incoming[e];
        products[e] = gradient[e] * x[e] / denominators[e];
      }
      row.add(row.mirrored_sums, products, denominators, end - begin);
      for (std::size_t e = 0; e < count; ++e) gradient[e] -= factor * x[e] * denominators[e];
    });
  };
  return function_kernel(run, sizeof(float) * 2 * row.task_elements() * max_thread_count());
}

}  // namespace mpsnn::cpu
