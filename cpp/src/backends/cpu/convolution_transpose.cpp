// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/convolution_kernels.hpp"
#include "backends/cpu/kernels.hpp"

// A transposed convolution is the data gradient of the convolution that it undoes, its own data gradient is that convolution, and
// its weight gradient is that convolution's with the images changed places: only the layout of the weights differs.
namespace mpsnn::cpu {

std::unique_ptr<Kernel> make_kernel(const ConvolutionTransposeOp& op, const OperandShapes& shapes, Precision precision) {
  return make_data_gradient(op.undone, transposed_layout(op.undone), shapes.inputs[0].images, {.neuron = op.neuron, .has_statistics = shapes.outputs.size() > 1}, precision);
}

std::unique_ptr<Kernel> make_kernel(const ConvolutionTransposeDataGradientOp& op, const OperandShapes& shapes, Precision precision) {
  return make_forward(op.undone, transposed_layout(op.undone), shapes.inputs[0].images, {.neuron = op.neuron, .is_gradient = true}, precision);
}

std::unique_ptr<Kernel> make_kernel(const ConvolutionTransposeWeightGradientOp& op, const OperandShapes& shapes, Precision precision) {
  return make_weight_gradient(op.undone, transposed_layout(op.undone), shapes.inputs[0].images, true, precision);
}

}  // namespace mpsnn::cpu
