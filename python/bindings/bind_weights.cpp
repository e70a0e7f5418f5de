// SPDX-License-Identifier: Apache-2.0
#include "bindings.hpp"

namespace mpsnn::python {
namespace {

using Descriptor = NNOptimizerDescriptor;

Descriptor descriptor_of(float learning_rate) {
  Descriptor descriptor;
  descriptor.learning_rate = learning_rate;
  return descriptor;
}

/// MPSVector: numbers that belong to an optimizer.
struct Vector {
  Buffer buffer;
};

std::vector<Buffer> buffers(const std::vector<std::shared_ptr<Vector>>& vectors) {
  std::vector<Buffer> result;
  for (const auto& vector : vectors) {
    if (!vector) throw OptionError("a history vector is missing.", {.node = "MPSNNOptimizer", .expected = "MPSVector", .actual = "None", .hint = "MPSVector(count) holds zeros"});
    result.push_back(vector->buffer);
  }
  return result;
}

/// A vector over an array; over a copy where the array must not be written to.
Vector vector_of(const py::object& array) {
  if (py::isinstance<py::array>(array) && !array.cast<py::array>().writeable()) return {view_of(array.attr("copy")(), "a vector").buffer};
  return {view_of(array, "a vector").buffer};
}

void bind_optimizers(py::module_& m) {
  py::class_<Descriptor>(m, "MPSNNOptimizerDescriptor", "Options that every optimizer has (MPS_SEMANTICS 19.1).")
      .def(py::init([](float rate, float rescale, NNRegularizationType type, float scale) { return Descriptor{rate, rescale, false, 0, 0, type, scale}; }),
           "learning_rate"_a, "gradient_rescale"_a, "regularization_type"_a, "regularization_scale"_a)
      .def(py::init([](float rate, float rescale, bool clips, float maximum, float minimum, NNRegularizationType type, float scale) {
             return Descriptor{rate, rescale, clips, maximum, minimum, type, scale};
           }),
           "learning_rate"_a = 0.001f, "gradient_rescale"_a = 1.0f, "apply_gradient_clipping"_a = false, "gradient_clip_max"_a = 0.0f, "gradient_clip_min"_a = 0.0f,
           "regularization_type"_a = NNRegularizationType::None, "regularization_scale"_a = 0.0f)
      .def_readwrite("learning_rate", &Descriptor::learning_rate)
      .def_readwrite("gradient_rescale", &Descriptor::gradient_rescale)
      .def_readwrite("apply_gradient_clipping", &Descriptor::apply_gradient_clipping)
      .def_readwrite("gradient_clip_max", &Descriptor::gradient_clip_max)
      .def_readwrite("gradient_clip_min", &Descriptor::gradient_clip_min)
      .def_readwrite("regularization_type", &Descriptor::regularization_type)
      .def_readwrite("regularization_scale", &Descriptor::regularization_scale);

  py::class_<Vector, std::shared_ptr<Vector>>(m, "MPSVector", "A row of float32 numbers, e.g. an optimizer's momentum: MPSVector(count) of zeros, or MPSVector(array) as a view.")
      .def(py::init([](std::size_t count) { return std::make_shared<Vector>(Vector{Buffer(count, ElementType::float32)}); }), "count"_a)
      .def(py::init([](const py::object& array) { return std::make_shared<Vector>(vector_of(array)); }), "array"_a)
      .def("numpy", [](const Vector& vector) { return numpy_of(vector.buffer); })
      .def("__len__", [](const Vector& vector) { return vector.buffer.count(); });

  py::class_<NNOptimizer, std::shared_ptr<NNOptimizer>>(m, "MPSNNOptimizer", "Base of the optimizers (MPS_SEMANTICS 19).")
      .def_property_readonly("learning_rate", &NNOptimizer::learning_rate)
      .def_property_readonly("gradient_rescale", &NNOptimizer::gradient_rescale)
      .def_property("apply_gradient_clipping", &NNOptimizer::apply_gradient_clipping, &NNOptimizer::set_apply_gradient_clipping)
      .def_property_readonly("gradient_clip_max", &NNOptimizer::gradient_clip_max)
      .def_property_readonly("gradient_clip_min", &NNOptimizer::gradient_clip_min)
      .def_property_readonly("regularization_type", &NNOptimizer::regularization_type)
      .def_property_readonly("regularization_scale", &NNOptimizer::regularization_scale)
      .def_property_readonly("history_count", &NNOptimizer::history_count, "Vectors that the rule keeps for each parameter vector.")
      .def("set_learning_rate", &NNOptimizer::set_learning_rate, "new_learning_rate"_a)
      .def("encode", [](const std::shared_ptr<NNOptimizer>& self, CommandBuffer& command_buffer, const std::shared_ptr<CNNConvolutionGradientState>& gradient,
                        const std::shared_ptr<CNNConvolutionWeightsAndBiasesState>& source, const std::vector<std::shared_ptr<Vector>>& history,
                        const std::shared_ptr<CNNConvolutionWeightsAndBiasesState>& result) {
             encode(command_buffer, self, gradient, source, buffers(history), result);
           }, "command_buffer"_a, py::arg("convolution_gradient_state").none(false), py::arg("convolution_source_state").none(false), "history_vectors"_a,
           py::arg("result_state").none(false),
           R"(Records ``result := updated weights and biases``, one time step. ``history_vectors``: all vectors of the weights, then those of the
biases; without the latter, biases stay as they are. Raises OptionError when counts do not fit.)")
      .def("encode", [](const std::shared_ptr<NNOptimizer>& self, CommandBuffer& command_buffer, const std::shared_ptr<Vector>& gradient, const std::shared_ptr<Vector>& values,
                        const std::vector<std::shared_ptr<Vector>>& history, const std::shared_ptr<Vector>& result) {
             encode(command_buffer, self, gradient->buffer, values->buffer, buffers(history), result->buffer);
           }, "command_buffer"_a, py::arg("input_gradient_vector").none(false), py::arg("input_values_vector").none(false), "history_vectors"_a,
           py::arg("result_values_vector").none(false));

  using SGD = NNOptimizerStochasticGradientDescent;
  py::class_<SGD, NNOptimizer, std::shared_ptr<SGD>>(m, "MPSNNOptimizerStochasticGradientDescent", "v -= lr * g, with momentum or Nesterov's.")
      .def(py::init([](const py::object&, float rate) { return std::make_shared<SGD>(rate); }), "device"_a, "learning_rate"_a)
      .def(py::init([](const py::object&, float momentum, bool nesterov, const Descriptor& d) { return std::make_shared<SGD>(d, momentum, nesterov); }), "device"_a,
           "momentum_scale"_a, "use_nesterov_momentum"_a, "optimizer_descriptor"_a)
      .def(py::init([](const py::object&, float momentum, const Descriptor& d) { return std::make_shared<SGD>(d, momentum, false); }), "device"_a, "momentum_scale"_a,
           "optimizer_descriptor"_a)
      .def_property_readonly("momentum_scale", &SGD::momentum_scale)
      .def_property_readonly("use_nesterov_momentum", &SGD::use_nesterov_momentum);
  using RMSProp = NNOptimizerRMSProp;
  py::class_<RMSProp, NNOptimizer, std::shared_ptr<RMSProp>>(m, "MPSNNOptimizerRMSProp", "Divides by the root of a running mean of squared gradients.")
      .def(py::init([](const py::object&, float rate) { return std::make_shared<RMSProp>(descriptor_of(rate)); }), "device"_a, "learning_rate"_a)
      .def(py::init([](const py::object&, double decay, float epsilon, const Descriptor& d) { return std::make_shared<RMSProp>(d, decay, epsilon); }), "device"_a, "decay"_a,
           "epsilon"_a, "optimizer_descriptor"_a)
      .def_property_readonly("decay", &RMSProp::decay)
      .def_property_readonly("epsilon", &RMSProp::epsilon);
  using Adam = NNOptimizerAdam;
  py::class_<Adam, NNOptimizer, std::shared_ptr<Adam>>(m, "MPSNNOptimizerAdam", "Adam; with uses_amsgrad the largest velocity so far divides (MPS takes a maximum-velocity vector).")
      .def(py::init([](const py::object&, float rate) { return std::make_shared<Adam>(descriptor_of(rate)); }), "device"_a, "learning_rate"_a)
      .def(py::init([](const py::object&, double beta1, double beta2, float epsilon, unsigned time_step, const Descriptor& d, bool amsgrad) {
             return std::make_shared<Adam>(d, beta1, beta2, epsilon, time_step, amsgrad);
           }), "device"_a, "beta1"_a, "beta2"_a, "epsilon"_a, "time_step"_a, "optimizer_descriptor"_a, "uses_amsgrad"_a = false)
      .def_property_readonly("beta1", &Adam::beta1)
      .def_property_readonly("beta2", &Adam::beta2)
      .def_property_readonly("epsilon", &Adam::epsilon)
      .def_property("time_step", &Adam::time_step, &Adam::set_time_step);
}

/// The optimizer and its history on any class with training().
template <class Weights, class... Options>
void def_training(py::class_<Weights, Options...>& c) {
  c.def_property("optimizer", [](Weights& w) { return w.training().optimizer(); },
                 [](Weights& w, const std::shared_ptr<NNOptimizer>& optimizer) { w.training().set_optimizer(optimizer); },
                 "The optimizer, or None. Setting it takes a copy with history of its own, all zeros.")
      .def_property("history", [](Weights& w) {
                      py::list vectors;
                      for (const Buffer& buffer : w.training().history()) vectors.append(numpy_of(buffer));
                      return vectors;
                    }, [](Weights& w, const std::vector<py::object>& arrays) {
                      std::vector<Buffer> history;
                      for (const py::object& array : arrays) {
                        const Buffer given = view_of(array, "history").buffer;
                        history.emplace_back(given.count(), given.type());
                        history.back().copy_from(given);
                      }
                      w.training().set_history(std::move(history));
                    }, "The optimizer's vectors: those of the first parameter, then of the second; empty before the first update. Setting copies.");
}

Initializer initializer_of(const std::string& name) {
  if (name == "he") return Initializer::he;
  if (name == "xavier") return Initializer::xavier;
  if (name == "zeros") return Initializer::zeros;
  throw OptionError("there is no initializer \"" + name + "\".", {.node = "ConvolutionWeights", .expected = "he, xavier or zeros", .actual = name});
}

std::shared_ptr<ConvolutionWeights> make_weights(const CNNConvolutionDescriptor& descriptor, const py::object& weights, const py::object& biases,
                                                 const std::string& initializer, std::uint64_t seed, const std::string& label,
                                                 const std::shared_ptr<NNOptimizer>& optimizer) {
  std::shared_ptr<ConvolutionWeights> result;
  if (weights.is_none()) {
    const bool has_biases = !py::isinstance<py::bool_>(biases) || biases.cast<bool>();
    result = std::make_shared<ConvolutionWeights>(descriptor, initializer_of(initializer), seed, label, has_biases);
    if (!biases.is_none() && !py::isinstance<py::bool_>(biases)) result->set_values(result->weights_buffer(), view_of(biases, "biases").buffer);
  } else {
    const bool has_array = !biases.is_none() && !py::isinstance<py::bool_>(biases);
    result = std::make_shared<ConvolutionWeights>(descriptor, view_of(weights, "weights").buffer, has_array ? view_of(biases, "biases").buffer : Buffer(), label);
  }
  result->training().set_optimizer(optimizer);
  return result;
}

std::vector<py::ssize_t> weight_shape(const CNNConvolutionDescriptor& d) {
  return {d.output_feature_channels, d.kernel_height, d.kernel_width, d.input_channels_per_group()};
}

/// A copy of an array of packed weights, and their type.
std::pair<WeightArray, DataType> packed_array(const py::object& given) {
  py::array array = py::array::ensure(given, py::array::c_style);
  PyErr_Clear();
  const std::string name = array ? py::str(array.dtype()).cast<std::string>() : py::str(py::type::of(given)).cast<std::string>();
  const DataType type = name == "float16" ? DataType::Float16 : name == "uint8" ? DataType::UInt8 : name == "uint32" ? DataType::UInt32 : DataType::Invalid;
  if (type == DataType::Invalid)
    throw WeightError("packed weights are of another type.", {.node = "PackedConvolutionWeights", .expected = "float16, uint8 or uint32", .actual = name,
                                                              .hint = "ConvolutionWeights holds float32 numbers"});
  array = array.attr("copy")();
  return {{array.data(), static_cast<std::size_t>(array.size()), keep_object(array)}, type};
}

/// A copy of an array of numbers as floats; None is none.
WeightArray float_array(const py::object& given, const char* what) {
  if (given.is_none()) return {};
  const Buffer numbers = view_of(given, what).buffer, floats(numbers.count(), ElementType::float32);
  floats.copy_from(numbers);
  return {floats.data(), floats.count(), floats.owner()};
}

std::shared_ptr<PackedConvolutionWeights> make_packed(const CNNConvolutionDescriptor& descriptor, const py::object& weights, const py::object& biases,
                                                      const py::object& ranges, const py::object& lookup_table, const std::string& label) {
  const auto [words, type] = packed_array(weights);
  PackedConvolutionWeights::Arrays arrays{words, float_array(biases, "biases"), float_array(ranges, "ranges"), float_array(lookup_table, "lookup_table")};
  return std::make_shared<PackedConvolutionWeights>(descriptor, type, std::move(arrays), label);
}

py::dict packed_values(const std::shared_ptr<PackedConvolutionWeights>& w) {
  const auto& [weights, biases, ranges, lookup_table] = w->arrays();
  py::dict values;
  auto add = [&](const char* name, const WeightArray& array, const char* type, std::vector<py::ssize_t> shape) {
    if (!array) return;
    py::array view(py::dtype(std::string(type)), std::move(shape), array.data, py::cast(w));
    view.attr("setflags")("write"_a = false);
    values[name] = view;
  };
  std::vector<py::ssize_t> shape = weight_shape(w->sizes());
  const bool is_bits = w->data_type() == DataType::UInt32;
  if (is_bits) shape.back() = ceil_divide(w->sizes().input_feature_channels, 32);
  add("weights", weights, is_bits ? "uint32" : w->data_type() == DataType::UInt8 ? "uint8" : "float16", shape);
  add("biases", biases, "float32", {shape[0]});
  add("ranges", ranges, "float32", {shape[0], 2});
  add("lookup_table", lookup_table, "float32", {256});
  return values;
}

/// The array named `name` among keyword arguments, or the current buffer.
Buffer chosen(const py::kwargs& values, const char* name, const Buffer& current) {
  return values.contains(name) && !values[name].is_none() ? view_of(values[name], name).buffer : current;
}

void require_names(const py::kwargs& values, std::initializer_list<const char*> names) {
  for (const auto& item : values) {
    const std::string given = py::str(item.first).cast<std::string>();
    bool is_known = false;
    for (const char* name : names) is_known |= given == name;
    if (!is_known) throw py::type_error("set_values() has no argument '" + given + "'");
  }
}

template <class Weights, class DataSource>
py::class_<Weights, DataSource, py::smart_holder> bind_affine_weights(py::module_& m, const char* name, const char* doc) {
  py::class_<Weights, DataSource, py::smart_holder> c(m, name, doc);
  c.def_property_readonly("values", [](const Weights& w) {
     return py::dict("gamma"_a = numpy_of(w.gamma_buffer(), {}, false), "beta"_a = numpy_of(w.beta_buffer(), {}, false));
   }, "The numbers as they are now, read-only views by name: gamma, beta.")
      .def("set_values", [](Weights& w, const py::kwargs& values) {
        require_names(values, {"gamma", "beta"});
        w.set_values(chosen(values, "gamma", w.gamma_buffer()), chosen(values, "beta", w.beta_buffer()));
      }, "Takes copies of arrays given by name. Graphs see them after reload_from_data_sources(). Raises WeightError for other sizes.");
  def_training(c);
  return c;
}

}  // namespace

void bind_weights(py::module_& m) {
  bind_optimizers(m);
  py::class_<ConvolutionWeights, CNNConvolutionDataSource, py::smart_holder> convolution(m, "ConvolutionWeights", R"(Weights of a convolution over arrays, with an optimizer.

Args:
    descriptor: sizes and strides.
    weights: array of O x kH x kW x I/groups numbers; None draws them.
    biases: array of O numbers; None or True starts at zeros where weights are drawn, and means none where they are given; False none.
    initializer: "he" (normal, variance 2 / fan_in), "xavier" (uniform, variance 2 / (fan_in + fan_out)) or "zeros".
    seed: of the drawn weights; the same numbers on every platform.
    label: names the weights in errors, files and checkpoints.
    optimizer: who updates them; None keeps them.

Arrays given are never written to: training goes on in memory of its own, which ``values`` shows. Raises WeightError for arrays of
another size.

>>> import mpsnn
>>> weights = mpsnn.ConvolutionWeights(mpsnn.MPSCNNConvolutionDescriptor(3, 3, 1, 8), seed=1, label="stem")
>>> weights.values["weights"].shape
(8, 3, 3, 1)
)");
  convolution
      .def(py::init(&make_weights), "descriptor"_a, "weights"_a = py::none(), "biases"_a = py::none(), py::kw_only(), "initializer"_a = "he", "seed"_a = 0,
           "label"_a = "", "optimizer"_a = py::none())
      .def_property_readonly("values", [](const ConvolutionWeights& w) {
             py::dict values("weights"_a = numpy_of(w.weights_buffer(), weight_shape(const_cast<ConvolutionWeights&>(w).descriptor()), false));
             if (w.biases_buffer()) values["biases"] = numpy_of(w.biases_buffer(), {}, false);
             return values;
           }, "The numbers as they are now, read-only views by name: weights (O, kH, kW, I/groups) and, if there are any, biases (O).")
      .def("set_values", [](ConvolutionWeights& w, const py::kwargs& values) {
             require_names(values, {"weights", "biases"});
             w.set_values(chosen(values, "weights", w.weights_buffer()), chosen(values, "biases", w.biases_buffer()));
           }, "Takes copies of arrays given by name. Graphs see them after reload_from_data_sources(). Raises WeightError for other sizes.");
  def_training(convolution);
  py::class_<PackedConvolutionWeights, CNNConvolutionDataSource, py::smart_holder>(m, "PackedConvolutionWeights", R"(Weights of few bits, which nobody trains.

Args:
    descriptor: sizes and strides.
    weights: float16, or uint8 with one of the next two, of O x kH x kW x I/groups; or uint32 words of O x kH x kW x ceil(I / 32) bits
        for a binary convolution.
    biases: O float32 numbers, or None.
    ranges: O pairs (lower, upper) that 0 and 255 stand for.
    lookup_table: 256 numbers.
    label: names the weights in errors and files.

Takes copies. Raises WeightError for arrays of another size or type.)")
      .def(py::init(&make_packed), "descriptor"_a, "weights"_a, "biases"_a = py::none(), py::kw_only(), "ranges"_a = py::none(), "lookup_table"_a = py::none(), "label"_a = "")
      .def_property_readonly("values", &packed_values, "The arrays, read-only views by name.");
  using BN = BatchNormalizationWeights;
  py::class_<BN, CNNBatchNormalizationDataSource, py::smart_holder> normalization(m, "BatchNormalizationWeights", R"(Parameters and running statistics of a batch normalization, with an optimizer.

``momentum`` is the weight of a new batch: running = (1 - momentum) * running + momentum * batch, with the unbiased variance, as in
PyTorch. Raises OptionError for numbers out of range.)");
  normalization
      .def(py::init([](int channels, const std::string& label, float epsilon, float momentum, const std::shared_ptr<NNOptimizer>& optimizer) {
             auto weights = std::make_shared<BN>(channels, label, epsilon, momentum);
             weights->training().set_optimizer(optimizer);
             return weights;
           }), "feature_channels"_a, py::kw_only(), "label"_a = "", "epsilon"_a = 1e-5f, "momentum"_a = 0.1f, "optimizer"_a = py::none())
      .def_property_readonly("momentum", &BN::momentum)
      .def_property_readonly("values", [](const BN& w) {
             return py::dict("gamma"_a = numpy_of(w.gamma_buffer(), {}, false), "beta"_a = numpy_of(w.beta_buffer(), {}, false),
                             "mean"_a = numpy_of(w.mean_buffer(), {}, false), "variance"_a = numpy_of(w.variance_buffer(), {}, false));
           }, "The numbers as they are now, read-only views by name: gamma, beta, mean, variance.")
      .def("set_values", [](BN& w, const py::kwargs& values) {
             require_names(values, {"gamma", "beta", "mean", "variance"});
             w.set_values(chosen(values, "gamma", w.gamma_buffer()), chosen(values, "beta", w.beta_buffer()), chosen(values, "mean", w.mean_buffer()),
                          chosen(values, "variance", w.variance_buffer()));
           }, "Takes copies of arrays given by name. Graphs see them after reload_from_data_sources(). Raises WeightError for other sizes.");
  def_training(normalization);
  bind_affine_weights<InstanceNormalizationWeights, CNNInstanceNormalizationDataSource>(m, "InstanceNormalizationWeights", "Gamma and beta of an instance normalization, with an optimizer.")
      .def(py::init([](int channels, const std::string& label, float epsilon, const std::shared_ptr<NNOptimizer>& optimizer) {
             auto weights = std::make_shared<InstanceNormalizationWeights>(channels, label, epsilon);
             weights->training().set_optimizer(optimizer);
             return weights;
           }), "feature_channels"_a, py::kw_only(), "label"_a = "", "epsilon"_a = 1e-5f, "optimizer"_a = py::none());
  bind_affine_weights<GroupNormalizationWeights, CNNGroupNormalizationDataSource>(m, "GroupNormalizationWeights", "Gamma and beta of a group normalization, with an optimizer.")
      .def(py::init([](int channels, int groups, const std::string& label, float epsilon, const std::shared_ptr<NNOptimizer>& optimizer) {
             auto weights = std::make_shared<GroupNormalizationWeights>(channels, groups, label, epsilon);
             weights->training().set_optimizer(optimizer);
             return weights;
           }), "feature_channels"_a, "number_of_groups"_a, py::kw_only(), "label"_a = "", "epsilon"_a = 1e-5f, "optimizer"_a = py::none());
}

}  // namespace mpsnn::python
