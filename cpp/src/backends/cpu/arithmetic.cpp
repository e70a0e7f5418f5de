// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/epilogue.hpp"
#include "backends/cpu/isa/isa.hpp"
#include "backends/cpu/kernels.hpp"
#include "backends/cpu/loops.hpp"
#include "mpsnn/error.hpp"

namespace mpsnn::cpu {
namespace {

/// Floats between neighbours of an operand along each dimension of the result; 0 where it is broadcast.
struct Strides {
  std::size_t image = 0, row = 0, pixel = 0, channel = 0;

  static Strides of(const Shape& shape, const ArithmeticOp::Source& source) {
    if (shape.count() == 0) return {};
    const std::size_t pixel = shape.channels, row = pixel * shape.width;
    return {row * shape.height, source.stride_y ? row : 0, source.stride_x ? pixel : 0, std::size_t(source.stride_channels ? 1 : 0)};
  }
  static Strides of(const Shape& shape) { return of(shape, {}); }
  bool operator==(const Strides&) const = default;
};

bool holds(NNComparisonType relation, float x, float y) {
  switch (relation) {
    case NNComparisonType::Equal: return x == y;
    case NNComparisonType::NotEqual: return x != y;
    case NNComparisonType::Less: return x < y;
    case NNComparisonType::LessOrEqual: return x <= y;
    case NNComparisonType::Greater: return x > y;
    case NNComparisonType::GreaterOrEqual: return x >= y;
  }
  return false;
}

float limit(float value, float minimum, float maximum) {
  const float raised = value < minimum ? minimum : value;
  return raised > maximum ? maximum : raised;
}

/// Calls visit(f) with the unclamped result as a function of one element of each operand.
template <class Visit>
void with_function(const ArithmeticOp& op, Visit visit) {
  const float ps = op.primary.scale, ss = op.secondary.scale, bias = op.bias;
  switch (op.kind) {
    case ArithmeticKind::add: return visit([=](float x, float y) { return ps * x + ss * y + bias; });
    case ArithmeticKind::subtract: return visit([=](float x, float y) { return ps * x - ss * y + bias; });
    case ArithmeticKind::multiply: return visit([=](float x, float y) { return (ps * x) * (ss * y) + bias; });
    case ArithmeticKind::divide: return visit([=](float x, float y) { return (ps * x) / (ss * y) + bias; });
    case ArithmeticKind::compare:
      return visit([relation = op.comparison_type](float x, float y) { return holds(relation, x, y) ? 1.0f : 0.0f; });
  }
}

/// r[i] := f(x[i * x_stride], y[i * y_stride]), where `r` may be `x`; the strides are 0 or more, and 1 is what memory speed needs.
template <class F>
void combine(F f, const float* __restrict x, std::size_t x_stride, const float* __restrict y, std::size_t y_stride,
             float* __restrict r, std::size_t count) {
  // In place `x` is not looked at: the compiler would find that it overlaps `r` and not make vectors.
  if (x == r && x_stride == 1 && y_stride == 1) for (std::size_t i = 0; i < count; ++i) r[i] = f(r[i], y[i]);
  else if (x_stride == 1 && y_stride == 1) for (std::size_t i = 0; i < count; ++i) r[i] = f(x[i], y[i]);
  else if (x_stride == 1 && y_stride == 0) for (std::size_t i = 0; i < count; ++i) r[i] = f(x[i], *y);
  else if (x_stride == 0 && y_stride == 1) for (std::size_t i = 0; i < count; ++i) r[i] = f(*x, y[i]);
  else for (std::size_t i = 0; i < count; ++i) r[i] = f(x[i * x_stride], y[i * y_stride]);
}

/// Calls row(x, x_stride, y, y_stride, r, count) for stretches that make up the whole result: all of it where neither operand
/// is broadcast, else the channels of a pixel (or, of one-channel images, the pixels of a row).
template <class Row>
void for_each_stretch(const Shape& result, const Strides& x, const Strides& y, const float* primary, const float* secondary,
                      float* r, Row row) {
  const Strides plain = Strides::of(result);
  if (x == plain && y == plain) {
    parallel_ranges(result.count(), 1, [&](std::size_t begin, std::size_t end, int) {
      row(primary + begin, 1, secondary + begin, 1, r + begin, end - begin);
    });
    return;
  }
  parallel_ranges(static_cast<std::size_t>(result.images) * result.height, plain.row, [&](std::size_t begin, std::size_t end, int) {
    for (std::size_t i = begin; i < end; ++i) {
      const std::size_t n = i / result.height, h = i % result.height;
      const float* px = primary + n * x.image + h * x.row;
      const float* py = secondary + n * y.image + h * y.row;
      float* pr = r + i * plain.row;
      if (result.channels == 1) {
        row(px, x.pixel, py, y.pixel, pr, result.width);
        continue;
      }
      for (int w = 0; w < result.width; ++w)
        row(px + w * x.pixel, x.channel, py + w * y.pixel, y.channel, pr + w * plain.pixel, result.channels);
    }
  });
}

/// Sums, differences and products of images of one size.
std::unique_ptr<Kernel> plain_arithmetic(const ArithmeticOp& op, const Shape& result, const Epilogue& epilogue) {
  const auto function = op.kind == ArithmeticKind::multiply ? isa().scaled_product : isa().scaled_sum;
  const float a = op.primary.scale, b = op.kind == ArithmeticKind::subtract ? -op.secondary.scale : op.secondary.scale;
  const EpilogueStage stage(epilogue, result.pixels(), result.channels);
  return function_kernel([=, bias = op.bias](const KernelCall& call) {
    parallel_ranges(result.pixels(), result.channels, [&](std::size_t first, std::size_t last, int) {
      const std::size_t begin = first * result.channels, end = last * result.channels;
      function(a, call.input<float>(0) + begin, b, call.input<float>(1) + begin, bias, call.output<float>(0) + begin, end - begin);
      stage.apply(call, 0, call.output<float>(0) + begin, last - first, {0, result.channels}, nullptr);
    });
  });
}

/// What one result element hands to an operand that is not broadcast, or adds to one that is.
struct Share {
  ArithmeticGradientOp op;
  bool is_product, is_masked;

  explicit Share(const ArithmeticGradientOp& op_)
      : op(op_), is_product(op.forward.kind == ArithmeticKind::multiply), is_masked(op.forward.clamps()) {}

  float unclamped(float x, float y) const {
    const ArithmeticOp& f = op.forward;
    const float sx = f.primary.scale * x, sy = f.secondary.scale * y;
    if (is_product) return sx * sy + f.bias;
    return (f.kind == ArithmeticKind::add ? sx + sy : sx - sy) + f.bias;
  }
  float of(float e, float x, float y) const {
    float share = op.primary_scale * e;
    if (is_masked) {
      const float r = unclamped(x, y);
      share = ((op.forward.minimum_value < r) & (r < op.forward.maximum_value)) ? share : 0.0f;
    }
    return is_product ? share * (op.secondary_scale * (op.is_secondary_source_filter ? x : y)) : share;
  }
  float finished(float sum) const {
    constexpr ArithmeticOp kDefaults;
    const bool limits = op.minimum_value != kDefaults.minimum_value || op.maximum_value != kDefaults.maximum_value;
    return limits ? limit(sum + op.bias, op.minimum_value, op.maximum_value) : sum + op.bias;
  }
};

/// Operand shapes and strides of a gradient.
struct GradientPlan {
  Shape result, own;
  Strides e, x, y;
};

/// No broadcasting: one pass over everything. `x` and `y` may be null where the share does not look at them.
void plain_gradient(const Share& share, const float* e, const float* x, const float* y, float* gradient, std::size_t count) {
  if (!share.is_product && !share.is_masked) {
    const float scale = share.op.primary_scale;
    for (std::size_t i = 0; i < count; ++i) gradient[i] = share.finished(scale * e[i]);
  } else if (share.is_product && !share.is_masked) {
    const float* other = share.op.is_secondary_source_filter ? x : y;
    const float ps = share.op.primary_scale, ss = share.op.secondary_scale;
    for (std::size_t i = 0; i < count; ++i) gradient[i] = share.finished(ps * e[i] * (ss * other[i]));
  } else {
    for (std::size_t i = 0; i < count; ++i) gradient[i] = share.finished(share.of(e[i], x ? x[i] : 0, y ? y[i] : 0));
  }
}

/// Broadcasting: each element of the operand sums the results that read it, in double, as they may be a whole image.
/// Index 0 is all that is read along a broadcast dimension: elements behind it get nothing.
class BroadcastGradient {
 public:
  BroadcastGradient(const Share& share, const GradientPlan& plan)
      : share_(share), plan_(plan),
        source_(share.op.is_secondary_source_filter ? share.op.forward.secondary : share.op.forward.primary),
        blocks_(ceil_divide(plan.own.channels, kBlock)) {}

  void run(const KernelCall& call) const {
    const std::size_t tasks = plan_.own.pixels() * blocks_;
    const std::size_t terms = tasks == 0 ? 1 : std::max<std::size_t>(1, plan_.result.count() / tasks);
    parallel_ranges(tasks, terms, [&](std::size_t begin, std::size_t end, int) {
      for (std::size_t task = begin; task < end; ++task) block(call, task / blocks_, static_cast<int>(task % blocks_) * kBlock);
    });
  }

 private:
  static constexpr int kBlock = 64;

  /// Result indices that read index `own` of a dimension of `extent` results.
  static Range readers(int stride, int own, int extent) {
    if (stride == 0) return own == 0 ? Range{0, extent} : Range{};
    return own < extent ? Range{own, own + 1} : Range{};
  }

  void block(const KernelCall& call, std::size_t pixel, int first) const {
    const Shape& own = plan_.own;
    const int n = static_cast<int>(pixel / (static_cast<std::size_t>(own.height) * own.width));
    const Range ys = readers(source_.stride_y, static_cast<int>(pixel / own.width % own.height), plan_.result.height);
    const Range xs = readers(source_.stride_x, static_cast<int>(pixel % own.width), plan_.result.width);
    const int channels = std::min(kBlock, own.channels - first);
    double sums[kBlock] = {};
    for (int h = ys.begin; h < ys.end; ++h)
      for (int w = xs.begin; w < xs.end; ++w) add_pixel(call, n, h, w, first, channels, sums);
    float* gradient = call.output<float>(0) + pixel * own.channels + first;
    for (int c = 0; c < channels; ++c) gradient[c] = share_.finished(static_cast<float>(sums[c]));
  }

  void add_pixel(const KernelCall& call, int n, int h, int w, int first, int channels, double* sums) const {
    const auto at = [&](const float* data, const Strides& s) { return data ? data + n * s.image + h * s.row + w * s.pixel : nullptr; };
    const float* e = at(call.input<float>(0), plan_.e);
    const float* x = at(call.input<float>(1), plan_.x);
    const float* y = at(call.input<float>(2), plan_.y);
    const auto share = [&](int c) {
      return share_.of(e[c], x ? x[c * plan_.x.channel] : 0, y ? y[c * plan_.y.channel] : 0);
    };
    if (source_.stride_channels != 0) {
      for (int c = 0; c < channels && first + c < plan_.result.channels; ++c) sums[c] += share(first + c);
    } else if (first == 0) {
      for (int c = 0; c < plan_.result.channels; ++c) sums[0] += share(c);
    }
  }

  Share share_;
  GradientPlan plan_;
  ArithmeticOp::Source source_;
  int blocks_;
};

}  // namespace

std::unique_ptr<Kernel> make_kernel(const ArithmeticOp& op, const OperandShapes& shapes) {
  const Strides plain = Strides::of(shapes.outputs[0]);
  const bool is_plain = Strides::of(shapes.inputs[0], op.primary) == plain && Strides::of(shapes.inputs[1], op.secondary) == plain;
  const Epilogue epilogue{.neuron = op.neuron, .is_gradient = op.is_neuron_gradient};
  if (is_plain && !op.clamps() && op.kind <= ArithmeticKind::multiply) return plain_arithmetic(op, shapes.outputs[0], epilogue);
  auto kernel = function_kernel([op, result = shapes.outputs[0], x = Strides::of(shapes.inputs[0], op.primary),
                          y = Strides::of(shapes.inputs[1], op.secondary)](const KernelCall& call) {
    with_function(op, [&](auto f) {
      const auto run = [&](auto g) {
        for_each_stretch(result, x, y, call.input<float>(0), call.input<float>(1), call.output<float>(0),
                         [&](const float* px, std::size_t sx, const float* py, std::size_t sy, float* r, std::size_t count) {
                           combine(g, px, sx, py, sy, r, count);
                         });
      };
      if (op.clamps()) run([f, low = op.minimum_value, high = op.maximum_value](float a, float b) { return limit(f(a, b), low, high); });
      else run(f);
    });
  });
  return with_epilogue(std::move(kernel), epilogue, shapes.outputs[0].pixels(), shapes.outputs[0].channels);
}

std::unique_ptr<Kernel> make_kernel(const ArithmeticGradientOp& op, const OperandShapes& shapes) {
  const ArithmeticOp& forward = op.forward;
  if (forward.kind == ArithmeticKind::divide || forward.kind == ArithmeticKind::compare)
    throw GraphError("division and comparison have no gradient.", {.hint = "multiply by a reciprocal, or stop the gradient here"});
  const auto shape_of = [&](std::size_t i) { return i < shapes.inputs.size() ? shapes.inputs[i] : Shape{0, 0, 0, 0}; };
  const Share share(op);
  const GradientPlan plan{shapes.inputs[0], shapes.outputs[0], Strides::of(shapes.inputs[0]), Strides::of(shape_of(1), forward.primary),
                          Strides::of(shape_of(2), forward.secondary)};
  const bool looks_at_x = share.is_masked || (share.is_product && op.is_secondary_source_filter);
  const bool looks_at_y = share.is_masked || (share.is_product && !op.is_secondary_source_filter);
  const bool is_plain = plan.own == plan.result && (!looks_at_x || plan.x == plan.e) && (!looks_at_y || plan.y == plan.e);
  const ArithmeticOp::Source& own = op.is_secondary_source_filter ? forward.secondary : forward.primary;
  const auto is_one_or_moves = [](int stride, int extent) { return stride != 0 || extent == 1; };
  const bool reads_all = is_one_or_moves(own.stride_x, plan.own.width) && is_one_or_moves(own.stride_y, plan.own.height) &&
                         is_one_or_moves(own.stride_channels, plan.own.channels);
  if (!is_plain || !reads_all)
    return function_kernel([gradient = BroadcastGradient(share, plan)](const KernelCall& call) { gradient.run(call); });
  return function_kernel([share, count = plan.own.count()](const KernelCall& call) {
    parallel_ranges(count, 1, [&](std::size_t begin, std::size_t end, int) {
      const auto at = [&](std::size_t i) { return call.input<float>(i) ? call.input<float>(i) + begin : nullptr; };
      plain_gradient(share, at(0), at(1), at(2), call.output<float>(0) + begin, end - begin);
    });
  });
}

}  // namespace mpsnn::cpu
