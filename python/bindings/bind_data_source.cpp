// SPDX-License-Identifier: Apache-2.0
#include <pybind11/trampoline_self_life_support.h>

#include "bindings.hpp"

namespace mpsnn::python {
namespace {

/// An array that a Python data source returned, as `type`; kept alive until the graph has read it.
WeightArray weight_array(const py::object& array, DataType type, const char* what, const std::string& label) {
  if (array.is_none()) return {};
  const char* name = type == DataType::Float16 ? "float16" : type == DataType::UInt8 ? "uint8" : type == DataType::UInt32 ? "uint32" : "float32";
  py::object dense = py::module_::import("numpy").attr("ascontiguousarray")(array);
  const std::string given = py::str(dense.attr("dtype")).cast<std::string>();
  if (given != name)
    throw WeightError("data source \"" + label + "\" returned " + what + " of another type than it says.",
                      {.node = "data source", .label = label, .expected = name, .actual = given, .hint = std::string("return an array of ") + name});
  const auto numbers = dense.cast<py::array>();
  return {numbers.data(), static_cast<std::size_t>(numbers.size()), keep_object(dense)};
}

/// Calls a method of a Python object, None when it has none.
template <class Base, class... Arguments>
py::object call(const Base* self, const char* name, Arguments&&... arguments) {
  const py::function method = py::get_override(self, name);
  return method ? method(std::forward<Arguments>(arguments)...) : py::none();
}

template <class Result, class Base, class... Arguments>
Result call_or(Result otherwise, const Base* self, const char* name, Arguments&&... arguments) {
  py::gil_scoped_acquire gil;
  const py::object result = call(self, name, std::forward<Arguments>(arguments)...);
  return result.is_none() ? otherwise : result.cast<Result>();
}

/// What a GPU-style update returned: a state, or None for "no change".
template <class StateType>
std::shared_ptr<StateType> returned_state(const py::object& result, const char* method, const char* class_name, const std::string& label) {
  if (result.is_none()) return nullptr;
  if (!py::isinstance<StateType>(result))
    throw WeightError("data source \"" + label + "\": " + method + "() returned something that is no state.",
                      {.node = "data source", .label = label, .expected = std::string(class_name) + ", or None", .actual = py::str(py::type::of(result)).cast<std::string>(),
                       .hint = "return the state that the recorded work fills"});
  return result.cast<std::shared_ptr<StateType>>();
}

/// Throws unless the Python class defines what the protocol cannot do without.
template <class Base>
void require_method(const Base* self, const char* method, const std::string& label) {
  py::gil_scoped_acquire gil;
  if (py::get_override(self, method)) return;
  throw WeightError("data source \"" + label + "\" does not define " + method + "().",
                    {.node = "data source", .label = label, .expected = std::string("a method ") + method, .actual = "none", .hint = "see the class's documentation"});
}

/// A source with a CPU-style update on a node that trains in GPU style would silently never learn.
template <class Base>
void require_gpu_update(const Base* self, const char* cpu_name, const std::string& label) {
  if (!py::get_override(self, cpu_name)) return;
  throw WeightError("data source \"" + label + "\" has " + cpu_name + "(), which runs in CPU style, but its node trains in GPU style.",
                    {.node = "data source", .label = label, .expected = "training_style MPSNNTrainingStyle.UpdateDeviceCPU on the node", .actual = "UpdateDeviceGPU",
                     .hint = std::string("set node.training_style before making gradients, or define ") + cpu_name + "_with_command_buffer()"});
}

class PyConvolutionDataSource : public CNNConvolutionDataSource, public py::trampoline_self_life_support {
  using Base = CNNConvolutionDataSource;
  const Base* self() const { return this; }

 public:
  DataType data_type() override { PYBIND11_OVERRIDE(DataType, Base, data_type); }
  CNNConvolutionDescriptor descriptor() override {
    require_method(self(), "descriptor", label());
    PYBIND11_OVERRIDE_PURE(CNNConvolutionDescriptor, Base, descriptor);
  }
  bool load() override { return call_or(true, self(), "load"); }
  void purge() override { PYBIND11_OVERRIDE(void, Base, purge); }
  std::string label() override { return call_or(std::string(), self(), "label"); }
  CNNWeightsQuantizationType weights_quantization_type() override { PYBIND11_OVERRIDE(CNNWeightsQuantizationType, Base, weights_quantization_type); }
  CNNConvolutionWeightsLayout weights_layout() override { PYBIND11_OVERRIDE(CNNConvolutionWeightsLayout, Base, weights_layout); }
  DataType kernel_weights_data_type() override { PYBIND11_OVERRIDE(DataType, Base, kernel_weights_data_type); }
  WeightArray weights() override {
    py::gil_scoped_acquire gil;
    return weight_array(call(self(), "weights"), data_type(), "weights", label());
  }
  WeightArray bias_terms() override { return floats("bias_terms"); }
  WeightArray lookup_table_for_uint8_kernel() override { return floats("lookup_table_for_uint8_kernel"); }
  WeightArray ranges_for_uint8_kernel() override { return floats("ranges_for_uint8_kernel"); }
  bool update(const std::shared_ptr<CNNConvolutionGradientState>& gradient_state,
              const std::shared_ptr<CNNConvolutionWeightsAndBiasesState>& source_state) override {
    return call_or(false, self(), "update", gradient_state, source_state);
  }
  std::shared_ptr<CNNConvolutionWeightsAndBiasesState> update(CommandBuffer& command_buffer, const std::shared_ptr<CNNConvolutionGradientState>& gradient_state,
                                                              const std::shared_ptr<CNNConvolutionWeightsAndBiasesState>& source_state) override {
    py::gil_scoped_acquire gil;
    if (!py::get_override(self(), "update_with_command_buffer")) require_gpu_update(self(), "update", label());
    const py::object result = call(self(), "update_with_command_buffer", py::cast(&command_buffer, py::return_value_policy::reference), gradient_state, source_state);
    return returned_state<CNNConvolutionWeightsAndBiasesState>(result, "update_with_command_buffer", "MPSCNNConvolutionWeightsAndBiasesState", label());
  }

 private:
  WeightArray floats(const char* name) {
    py::gil_scoped_acquire gil;
    return weight_array(call(self(), name), DataType::Float32, name, label());
  }
};

class PyBatchNormalizationDataSource : public CNNBatchNormalizationDataSource, public py::trampoline_self_life_support {
  using Base = CNNBatchNormalizationDataSource;
  using State = std::shared_ptr<CNNBatchNormalizationState>;
  const Base* self() const { return this; }

 public:
  int number_of_feature_channels() override {
    require_method(self(), "number_of_feature_channels", label());
    PYBIND11_OVERRIDE_PURE(int, Base, number_of_feature_channels);
  }
  WeightArray gamma() override { return floats("gamma"); }
  WeightArray beta() override { return floats("beta"); }
  WeightArray mean() override { return floats("mean"); }
  WeightArray variance() override { return floats("variance"); }
  bool load() override { return call_or(true, self(), "load"); }
  void purge() override { PYBIND11_OVERRIDE(void, Base, purge); }
  std::string label() override { return call_or(std::string(), self(), "label"); }
  float epsilon() override { PYBIND11_OVERRIDE(float, Base, epsilon); }
  bool update_gamma_and_beta(const State& state) override { return call_or(false, self(), "update_gamma_and_beta", state); }
  bool update_mean_and_variance(const State& state) override { return call_or(false, self(), "update_mean_and_variance", state); }
  std::shared_ptr<CNNNormalizationGammaAndBetaState> update_gamma_and_beta(CommandBuffer& command_buffer, const State& state) override {
    return on_command_buffer<CNNNormalizationGammaAndBetaState>("update_gamma_and_beta", command_buffer, state);
  }
  std::shared_ptr<CNNNormalizationMeanAndVarianceState> update_mean_and_variance(CommandBuffer& command_buffer, const State& state) override {
    return on_command_buffer<CNNNormalizationMeanAndVarianceState>("update_mean_and_variance", command_buffer, state);
  }

 private:
  template <class Result>
  std::shared_ptr<Result> on_command_buffer(const char* cpu_name, CommandBuffer& command_buffer, const State& state) {
    py::gil_scoped_acquire gil;
    const std::string name = std::string(cpu_name) + "_with_command_buffer";
    if (!py::get_override(self(), name.c_str())) require_gpu_update(self(), cpu_name, label());
    const py::object result = call(self(), name.c_str(), py::cast(&command_buffer, py::return_value_policy::reference), state);
    return returned_state<Result>(result, name.c_str(), py::str(py::type::of<Result>().attr("__name__")).template cast<std::string>().c_str(), label());
  }
  WeightArray floats(const char* name) {
    py::gil_scoped_acquire gil;
    return weight_array(call(self(), name), DataType::Float32, name, label());
  }
};

/// Instance and group normalization: `Base` is the protocol's class.
template <class Base>
class PyAffineDataSource : public Base, public py::trampoline_self_life_support {
  using States = CNNAffineDataSource::StateBatch;
  const Base* self() const { return this; }

 public:
  int number_of_feature_channels() override {
    require_method(self(), "number_of_feature_channels", label());
    PYBIND11_OVERRIDE_PURE(int, Base, number_of_feature_channels);
  }
  WeightArray gamma() override { return floats("gamma"); }
  WeightArray beta() override { return floats("beta"); }
  bool load() override { return call_or(true, self(), "load"); }
  void purge() override { PYBIND11_OVERRIDE(void, Base, purge); }
  std::string label() override { return call_or(std::string(), self(), "label"); }
  float epsilon() override { PYBIND11_OVERRIDE(float, Base, epsilon); }
  bool update_gamma_and_beta(const States& states) override { return call_or(false, self(), "update_gamma_and_beta", states); }
  std::shared_ptr<CNNNormalizationGammaAndBetaState> update_gamma_and_beta(CommandBuffer& command_buffer, const States& states) override {
    py::gil_scoped_acquire gil;
    constexpr const char* kName = "update_gamma_and_beta_with_command_buffer";
    if (!py::get_override(self(), kName)) require_gpu_update(self(), "update_gamma_and_beta", label());
    const py::object result = call(self(), kName, py::cast(&command_buffer, py::return_value_policy::reference), states);
    return returned_state<CNNNormalizationGammaAndBetaState>(result, kName, "MPSCNNNormalizationGammaAndBetaState", label());
  }

 private:
  WeightArray floats(const char* name) {
    py::gil_scoped_acquire gil;
    return weight_array(call(self(), name), DataType::Float32, name, label());
  }
};

class PyInstanceDataSource final : public PyAffineDataSource<CNNInstanceNormalizationDataSource> {};
class PyGroupDataSource final : public PyAffineDataSource<CNNGroupNormalizationDataSource> {
 public:
  int number_of_groups() override {
    require_method(static_cast<const CNNGroupNormalizationDataSource*>(this), "number_of_groups", label());
    PYBIND11_OVERRIDE_PURE(int, CNNGroupNormalizationDataSource, number_of_groups);
  }
};

std::vector<py::ssize_t> weight_shape(const CNNConvolutionDescriptor& d) {
  return {d.output_feature_channels, d.kernel_height, d.kernel_width, d.input_channels_per_group()};
}

/// The constructor of a convolution descriptor: four sizes, and any property by keyword.
template <class Descriptor, class... Options>
void def_sizes(py::class_<Descriptor, Options...>& c, const char* class_name) {
  c.def(py::init([class_name](int kernel_width, int kernel_height, int input_feature_channels, int output_feature_channels, const py::kwargs& properties) {
          auto descriptor = std::make_unique<Descriptor>();
          descriptor->kernel_width = kernel_width;
          descriptor->kernel_height = kernel_height;
          descriptor->input_feature_channels = input_feature_channels;
          descriptor->output_feature_channels = output_feature_channels;
          const py::object object = py::cast(descriptor.get(), py::return_value_policy::reference);
          for (const auto& [name, value] : properties) {
            if (!py::hasattr(object, name)) throw py::type_error(std::string(class_name) + " has no property '" + py::str(name).cast<std::string>() + "'");
            py::setattr(object, name, value);
          }
          return *descriptor;
        }),
        "kernel_width"_a, "kernel_height"_a, "input_feature_channels"_a, "output_feature_channels"_a);
}

void bind_descriptors(py::module_& m) {
  py::class_<NNNeuronDescriptor>(m, "MPSNNNeuronDescriptor", "An activation function and its parameters (MPS_SEMANTICS 9.1).")
      .def(py::init([](CNNNeuronType type, float a, float b, float c, std::vector<float> data) { return NNNeuronDescriptor{type, a, b, c, std::move(data)}; }),
           "neuron_type"_a, "a"_a = 0.0f, "b"_a = 0.0f, "c"_a = 0.0f, "data"_a = std::vector<float>{})
      .def_static("cnn_neuron_descriptor", [](CNNNeuronType type, float a, float b, float c) { return NNNeuronDescriptor{type, a, b, c, {}}; }, "type"_a,
                  "a"_a = 0.0f, "b"_a = 0.0f, "c"_a = 0.0f)
      .def_static("cnn_neuron_p_re_lu_descriptor", [](std::vector<float> data, bool) { return NNNeuronDescriptor{CNNNeuronType::PReLU, 0, 0, 0, std::move(data)}; },
                  "data"_a, "no_copy"_a = false, "One slope per feature channel.")
      .def_readwrite("neuron_type", &NNNeuronDescriptor::neuron_type)
      .def_readwrite("a", &NNNeuronDescriptor::a)
      .def_readwrite("b", &NNNeuronDescriptor::b)
      .def_readwrite("c", &NNNeuronDescriptor::c)
      .def_readwrite("data", &NNNeuronDescriptor::data)
      .def("__eq__", [](const NNNeuronDescriptor& a, const NNNeuronDescriptor& b) { return a == b; }, py::is_operator());

  using D = CNNConvolutionDescriptor;
  constexpr const char* kDoc = R"(What a convolution's weights are for (MPS_SEMANTICS 7.1). Sizes in pixels; other properties by keyword or afterwards.

>>> import mpsnn
>>> mpsnn.MPSCNNConvolutionDescriptor(3, 3, 16, 32, stride_in_pixels_x=2).weight_shape
(32, 3, 3, 16)
)";
  py::class_<D> base(m, "MPSCNNConvolutionDescriptor", kDoc);
  base.def_readwrite("kernel_width", &D::kernel_width)
      .def_readwrite("kernel_height", &D::kernel_height)
      .def_readwrite("input_feature_channels", &D::input_feature_channels)
      .def_readwrite("output_feature_channels", &D::output_feature_channels)
      .def_readwrite("stride_in_pixels_x", &D::stride_in_pixels_x)
      .def_readwrite("stride_in_pixels_y", &D::stride_in_pixels_y)
      .def_readwrite("dilation_rate_x", &D::dilation_rate_x)
      .def_readwrite("dilation_rate_y", &D::dilation_rate_y)
      .def_readwrite("groups", &D::groups)
      .def_readwrite("fused_neuron_descriptor", &D::fused_neuron_descriptor)
      .def_property_readonly("weight_shape", [](const D& d) { return py::tuple(py::cast(weight_shape(d))); }, "(O, kH, kW, I/groups)")
      .def("set_batch_normalization_parameters_for_inference", [](D& d, std::vector<float> mean, std::vector<float> variance,
                                                                    std::optional<std::vector<float>> gamma, std::optional<std::vector<float>> beta, float epsilon) {
             d.batch_mean = std::move(mean);
             d.batch_variance = std::move(variance);
             d.batch_gamma = gamma.value_or(std::vector<float>{});
             d.batch_beta = beta.value_or(std::vector<float>{});
             d.batch_epsilon = epsilon;
           }, "mean"_a, "variance"_a, "gamma"_a, "beta"_a, "epsilon"_a, "Folded into weights and biases (MPS_SEMANTICS 7.3).")
      .def("__eq__", [](const D& a, const D& b) { return a == b; }, py::is_operator());
  def_sizes(base, "MPSCNNConvolutionDescriptor");
  py::class_<CNNDepthWiseConvolutionDescriptor, D> depthwise(m, "MPSCNNDepthWiseConvolutionDescriptor", "Every input channel has filters of its own; weights (O, kH, kW, 1).");
  def_sizes(depthwise, "MPSCNNDepthWiseConvolutionDescriptor");
  depthwise.def_property_readonly("channel_multiplier", &D::channel_multiplier, "output channels per input channel");
  py::class_<CNNSubPixelConvolutionDescriptor, D> sub_pixel(m, "MPSCNNSubPixelConvolutionDescriptor",
                                                            "Output channels become blocks of r x r pixels; r is sub_pixel_scale_factor.");
  def_sizes(sub_pixel, "MPSCNNSubPixelConvolutionDescriptor");
  sub_pixel.def_readwrite("sub_pixel_scale_factor", &D::sub_pixel_scale_factor);

  using L = CNNLossDescriptor;
  py::class_<L>(m, "MPSCNNLossDescriptor", "Which loss, and how its values are combined (MPS_SEMANTICS 14.1). The gradient ignores the reduction: set weight.")
      .def(py::init([](CNNLossType type, CNNReductionType reduction, float weight, float label_smoothing, int number_of_classes, float epsilon, float delta,
                       bool reduce_across_batch) { return L{type, reduction, reduce_across_batch, weight, label_smoothing, number_of_classes, epsilon, delta}; }),
           "loss_type"_a, "reduction_type"_a, py::kw_only(), "weight"_a = 1.0f, "label_smoothing"_a = 0.0f, "number_of_classes"_a = 1, "epsilon"_a = 1e-7f,
           "delta"_a = 1.0f, "reduce_across_batch"_a = false)
      .def_static("cnn_loss_descriptor", [](CNNLossType type, CNNReductionType reduction) { L l; l.loss_type = type; l.reduction_type = reduction; return l; },
                  "type"_a, "reduction_type"_a)
      .def_readwrite("loss_type", &L::loss_type)
      .def_readwrite("reduction_type", &L::reduction_type)
      .def_readwrite("reduce_across_batch", &L::reduce_across_batch)
      .def_readwrite("weight", &L::weight)
      .def_readwrite("label_smoothing", &L::label_smoothing)
      .def_readwrite("number_of_classes", &L::number_of_classes)
      .def_readwrite("epsilon", &L::epsilon)
      .def_readwrite("delta", &L::delta)
      .def("__eq__", [](const L& a, const L& b) { return a == b; }, py::is_operator());

  using Y = CNNYOLOLossDescriptor;
  py::class_<Y>(m, "MPSCNNYOLOLossDescriptor", "The losses of a grid of object detectors and their scales (MPS_SEMANTICS 14.6). anchor_boxes: width and height of each, in grid units.")
      .def(py::init([](CNNLossType xy, CNNLossType wh, CNNLossType confidence, CNNLossType classes, CNNReductionType reduction, std::vector<float> boxes, int count) {
             Y y;
             y.xy_loss_descriptor.loss_type = xy;
             y.wh_loss_descriptor.loss_type = wh;
             y.confidence_loss_descriptor.loss_type = confidence;
             y.classes_loss_descriptor.loss_type = classes;
             y.reduction_type = reduction;
             y.anchor_boxes = std::move(boxes);
             y.number_of_anchor_boxes = count;
             return y;
           }), "xy_loss_type"_a, "wh_loss_type"_a, "confidence_loss_type"_a, "classes_loss_type"_a, "reduction_type"_a, "anchor_boxes"_a, "number_of_anchor_boxes"_a)
      .def_readwrite("xy_loss_descriptor", &Y::xy_loss_descriptor)
      .def_readwrite("wh_loss_descriptor", &Y::wh_loss_descriptor)
      .def_readwrite("confidence_loss_descriptor", &Y::confidence_loss_descriptor)
      .def_readwrite("classes_loss_descriptor", &Y::classes_loss_descriptor)
      .def_readwrite("reduction_type", &Y::reduction_type)
      .def_readwrite("reduce_across_batch", &Y::reduce_across_batch)
      .def_readwrite("rescore", &Y::rescore)
      .def_readwrite("scale_xy", &Y::scale_xy)
      .def_readwrite("scale_wh", &Y::scale_wh)
      .def_readwrite("scale_no_object", &Y::scale_no_object)
      .def_readwrite("scale_object", &Y::scale_object)
      .def_readwrite("scale_class", &Y::scale_class)
      .def_readwrite("min_iou_for_object_presence", &Y::min_iou_for_object_presence)
      .def_readwrite("max_iou_for_object_absence", &Y::max_iou_for_object_absence)
      .def_readwrite("number_of_anchor_boxes", &Y::number_of_anchor_boxes)
      .def_readwrite("anchor_boxes", &Y::anchor_boxes)
      .def("__eq__", [](const Y& a, const Y& b) { return a == b; }, py::is_operator());
}

void bind_states(py::module_& m) {
  py::class_<State, std::shared_ptr<State>>(m, "MPSState", "Numbers that travel beside images.").def_readwrite("label", &State::label);
  using Weights = CNNConvolutionWeightsAndBiasesState;
  py::class_<Weights, State, std::shared_ptr<Weights>>(m, "MPSCNNConvolutionWeightsAndBiasesState", "Weights (O, kH, kW, I/groups) and biases (O) as a kernel uses them.")
      .def(py::init([](const CNNConvolutionDescriptor& descriptor) { return std::make_shared<Weights>(descriptor); }), "cnn_convolution_descriptor"_a)
      .def_property_readonly("weights", [](const Weights& s) { return numpy_of(s.weights, weight_shape(s.descriptor)); })
      .def_property_readonly("biases", [](const Weights& s) { return numpy_of(s.biases); });
  py::class_<NNGradientState, State, std::shared_ptr<NNGradientState>>(m, "MPSNNGradientState", "What a forward filter remembers for its gradient.");
  using Gradient = CNNConvolutionGradientState;
  py::class_<Gradient, NNGradientState, std::shared_ptr<Gradient>>(m, "MPSCNNConvolutionGradientState", "Weight gradients, summed over the batch, in the layout of the weights.")
      .def_property_readonly("gradient_for_weights", [](const Gradient& s) { return numpy_of(s.gradient_for_weights, weight_shape(s.descriptor)); })
      .def_property_readonly("gradient_for_biases", [](const Gradient& s) { return numpy_of(s.gradient_for_biases); })
      .def_property_readonly("gradient_for_weights_layout", [](const Gradient&) { return CNNConvolutionWeightsLayout::OHWI; })
      .def_readonly("source_width", &Gradient::source_width)
      .def_readonly("source_height", &Gradient::source_height);
  using Normalization = CNNBatchNormalizationState;
  py::class_<Normalization, NNGradientState, std::shared_ptr<Normalization>> normalization(m, "MPSCNNBatchNormalizationState",
                                                                                          "Statistics of one batch and gradients of gamma and beta, C numbers each.");
  for (const auto& [name, member] : {std::pair{"gamma", &Normalization::gamma}, {"beta", &Normalization::beta}, {"mean", &Normalization::mean},
                                     {"variance", &Normalization::variance}, {"gradient_for_gamma", &Normalization::gradient_for_gamma},
                                     {"gradient_for_beta", &Normalization::gradient_for_beta}})
    normalization.def_property_readonly(name, [member = member](const Normalization& s) { return numpy_of(s.*member); });
  normalization.def_readonly("element_count", &Normalization::element_count, "Elements per channel behind the statistics.");
  using AffineGradient = CNNAffineGradientState;
  py::class_<AffineGradient, NNGradientState, std::shared_ptr<AffineGradient>> affine(m, "MPSCNNInstanceNormalizationGradientState",
                                                                                     "Gradients of gamma and beta, summed over the images of the batch; C numbers each.");
  for (const auto& [name, member] : {std::pair{"gamma", &AffineGradient::gamma}, {"beta", &AffineGradient::beta},
                                     {"gradient_for_gamma", &AffineGradient::gradient_for_gamma}, {"gradient_for_beta", &AffineGradient::gradient_for_beta}})
    affine.def_property_readonly(name, [member = member](const AffineGradient& s) { return numpy_of(s.*member); });
  m.attr("MPSCNNGroupNormalizationGradientState") = affine;
  using Affine = CNNNormalizationGammaAndBetaState;
  py::class_<Affine, State, std::shared_ptr<Affine>>(m, "MPSCNNNormalizationGammaAndBetaState", "New gamma and beta, C numbers each.")
      .def(py::init([](const py::object& gamma, const py::object& beta) { return std::make_shared<Affine>(view_of(gamma, "gamma").buffer, view_of(beta, "beta").buffer); }),
           "gamma"_a, "beta"_a)
      .def_property_readonly("gamma", [](const Affine& s) { return numpy_of(s.gamma); })
      .def_property_readonly("beta", [](const Affine& s) { return numpy_of(s.beta); });
  using Statistics = CNNNormalizationMeanAndVarianceState;
  py::class_<Statistics, State, std::shared_ptr<Statistics>>(m, "MPSCNNNormalizationMeanAndVarianceState", "New mean and variance, C numbers each.")
      .def(py::init([](const py::object& mean, const py::object& variance) {
             return std::make_shared<Statistics>(view_of(mean, "mean").buffer, view_of(variance, "variance").buffer);
           }), "mean"_a, "variance"_a)
      .def_property_readonly("mean", [](const Statistics& s) { return numpy_of(s.mean); })
      .def_property_readonly("variance", [](const Statistics& s) { return numpy_of(s.variance); });
  py::class_<CNNLossLabels, State, std::shared_ptr<CNNLossLabels>>(m, "MPSCNNLossLabels", R"(Labels (and weights) that go into a loss node, and the loss that comes out (MPS_SEMANTICS 14.4).

Arrays have the shape of the loss node's source, N x H x W x C. The loss image has one value per image, or the labels' shape with
``loss_image_per_element``. Raises ShapeError when the weights' shape differs.)")
      .def(py::init([](const py::object& labels, const py::object& weights, bool per_element) {
             const ImagePtr image = image_of(labels);
             return std::make_shared<CNNLossLabels>(image, weights.is_none() ? nullptr : image_of(weights), per_element ? image->shape() : Shape{0, 1, 1, 1});
           }), "labels"_a, "weights"_a = py::none(), "loss_image_per_element"_a = false)
      .def_property_readonly("labels_image", &CNNLossLabels::labels_image)
      .def_property_readonly("weights_image", &CNNLossLabels::weights_image)
      .def_property_readonly("loss_image", &CNNLossLabels::loss_image, "The loss of each image after the command buffer has completed.");
}

/// What a C++ data source hands out, as an array that keeps the source and its numbers alive; None when it has none.
template <class Source>
py::object floats_of(const std::shared_ptr<Source>& source, const WeightArray& numbers) {
  if (!numbers) return py::none();
  const auto owner = std::make_shared<std::pair<std::shared_ptr<Source>, std::shared_ptr<const void>>>(source, numbers.owner);
  return numpy_of(Buffer(owner, const_cast<void*>(numbers.data), numbers.count, ElementType::float32), {}, false);
}

/// gamma, beta and their updates, which all normalizations have.
template <class Source, class State, class Class>
void def_gamma_and_beta(Class& c, const char* state) {
  c.def("gamma", [](const std::shared_ptr<Source>& s) { return floats_of(s, s->gamma()); })
      .def("beta", [](const std::shared_ptr<Source>& s) { return floats_of(s, s->beta()); })
      .def("update_gamma_and_beta", [](Source& s, const State& given) { return s.update_gamma_and_beta(given); }, py::arg(state))
      .def("update_gamma_and_beta_with_command_buffer", [](Source& s, CommandBuffer& command_buffer, const State& given) {
             return s.update_gamma_and_beta(command_buffer, given);
           }, "command_buffer"_a, py::arg(state));
}

}  // namespace

void bind_data_source(py::module_& m) {
  bind_descriptors(m);
  bind_states(m);
  using Convolution = CNNConvolutionDataSource;
  py::class_<Convolution, PyConvolutionDataSource, py::smart_holder>(m, "MPSCNNConvolutionDataSource", R"(Where a convolution gets its weights, and who updates them (MPS_SEMANTICS 7.2, 7.8). Derive from it.

Define ``descriptor()`` and ``weights()`` (an array of O x kH x kW x I/groups numbers of ``data_type()``); ``bias_terms()``, ``label()``,
``load()`` (False refuses) and ``purge()`` as needed. To train, define ``update(gradient_state, source_state)`` for CPU style, called when
the gradients are known: return True and the graph reads the weights again; or ``update_with_command_buffer(command_buffer,
gradient_state, source_state)`` for GPU style, called during encode: record work (an optimizer's encode) and return the state that
will hold the new weights.)")
      .def(py::init<>())
      .def("data_type", &Convolution::data_type)
      .def("descriptor", &Convolution::descriptor)
      .def("weights", [](const std::shared_ptr<Convolution>& s) {
        if (s->data_type() != DataType::Float32)
          throw WeightError("weights() of the base class returns Float32 numbers only.",
                            {.node = "MPSCNNConvolutionDataSource", .label = s->label(), .expected = "Float32", .actual = "another data_type", .hint = "call the derived class's own method"});
        return floats_of(s, s->weights());
      })
      .def("bias_terms", [](const std::shared_ptr<Convolution>& s) { return floats_of(s, s->bias_terms()); })
      .def("lookup_table_for_uint8_kernel", [](const std::shared_ptr<Convolution>& s) { return floats_of(s, s->lookup_table_for_uint8_kernel()); })
      .def("ranges_for_uint8_kernel", [](const std::shared_ptr<Convolution>& s) { return floats_of(s, s->ranges_for_uint8_kernel()); })
      .def("weights_layout", &Convolution::weights_layout)
      .def("kernel_weights_data_type", &Convolution::kernel_weights_data_type, "The engines here compute in float32 whatever it says.")
      .def("update", [](Convolution& s, const std::shared_ptr<CNNConvolutionGradientState>& gradient_state,
                        const std::shared_ptr<CNNConvolutionWeightsAndBiasesState>& source_state) { return s.update(gradient_state, source_state); },
           "gradient_state"_a, "source_state"_a)
      .def("update_with_command_buffer", [](Convolution& s, CommandBuffer& command_buffer, const std::shared_ptr<CNNConvolutionGradientState>& gradient_state,
                                            const std::shared_ptr<CNNConvolutionWeightsAndBiasesState>& source_state) {
             return s.update(command_buffer, gradient_state, source_state);
           }, "command_buffer"_a, "gradient_state"_a, "source_state"_a)
      .def("load", &Convolution::load)
      .def("purge", &Convolution::purge)
      .def("label", &Convolution::label)
      .def("weights_quantization_type", &Convolution::weights_quantization_type);
  using Normalization = CNNBatchNormalizationDataSource;
  py::class_<Normalization, PyBatchNormalizationDataSource, py::smart_holder> normalization(m, "MPSCNNBatchNormalizationDataSource", R"(Parameters and running statistics of a batch normalization (MPS_SEMANTICS 12.1). Derive from it.

Define ``number_of_feature_channels()``, ``mean()`` and ``variance()``; ``gamma()``, ``beta()``, ``epsilon()``, ``label()``, ``load()`` and ``purge()`` as
needed. To train, define ``update_gamma_and_beta(state)`` and ``update_mean_and_variance(state)`` for CPU style, or the same names with
``_with_command_buffer(command_buffer, state)`` for GPU style.)");
  using NormalizationState = std::shared_ptr<CNNBatchNormalizationState>;
  normalization.def(py::init<>())
      .def("mean", [](const std::shared_ptr<Normalization>& s) { return floats_of(s, s->mean()); })
      .def("variance", [](const std::shared_ptr<Normalization>& s) { return floats_of(s, s->variance()); })
      .def("update_mean_and_variance", [](Normalization& s, const NormalizationState& state) { return s.update_mean_and_variance(state); }, "batch_normalization_state"_a)
      .def("update_mean_and_variance_with_command_buffer", [](Normalization& s, CommandBuffer& command_buffer, const NormalizationState& state) {
             return s.update_mean_and_variance(command_buffer, state);
           }, "command_buffer"_a, "batch_normalization_state"_a)
      .def("number_of_feature_channels", &Normalization::number_of_feature_channels)
      .def("epsilon", &Normalization::epsilon)
      .def("load", &Normalization::load)
      .def("purge", &Normalization::purge)
      .def("label", &Normalization::label);
  def_gamma_and_beta<Normalization, NormalizationState>(normalization, "batch_normalization_state");
  py::class_<CNNAffineDataSource, py::smart_holder> affine(m, "AffineDataSource", "What the data sources of instance and group normalization share.");
  affine.def("number_of_feature_channels", &CNNAffineDataSource::number_of_feature_channels)
      .def("epsilon", &CNNAffineDataSource::epsilon)
      .def("load", &CNNAffineDataSource::load)
      .def("purge", &CNNAffineDataSource::purge)
      .def("label", &CNNAffineDataSource::label);
  def_gamma_and_beta<CNNAffineDataSource, CNNAffineDataSource::StateBatch>(affine, "state_batch");
  py::class_<CNNInstanceNormalizationDataSource, CNNAffineDataSource, PyInstanceDataSource, py::smart_holder>(m, "MPSCNNInstanceNormalizationDataSource", R"(Parameters of an instance normalization (MPS_SEMANTICS 12.1). Derive from it.

Define ``number_of_feature_channels()``; ``gamma()``, ``beta()``, ``epsilon()``, ``label()``, ``load()`` and ``purge()`` as needed. To train, define
``update_gamma_and_beta(states)`` for CPU style, or ``update_gamma_and_beta_with_command_buffer(command_buffer, states)`` for GPU style; this
engine passes one state, summed over the batch.)")
      .def(py::init<>());
  py::class_<CNNGroupNormalizationDataSource, CNNAffineDataSource, PyGroupDataSource, py::smart_holder>(
      m, "MPSCNNGroupNormalizationDataSource", "Parameters of a group normalization: as for instance normalization, and number_of_groups().")
      .def(py::init<>())
      .def("number_of_groups", &CNNGroupNormalizationDataSource::number_of_groups);
}

}  // namespace mpsnn::python
