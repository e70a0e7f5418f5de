// SPDX-License-Identifier: Apache-2.0
// Messages with one mistake each, which the judge must report: see tests/python/test_mps_cpp.py.
#pragma once

namespace MPS::Table {
MPS_MESSAGE(double_for_float, "MPSNNPadNode", '-', "fillValue", double())
MPS_MESSAGE(float_for_double, "MPSNNOptimizerAdam", '-', "beta1", float())
MPS_MESSAGE(other_class, "MPSNNPadNode", '-', "kernelWidth", NS::UInteger())
MPS_MESSAGE(misspelt, "MPSNNPadNode", '-', "fillValeu", float())
MPS_MESSAGE(unsigned_32_bits, "MPSCNNKernel", '-', "kernelWidth", std::uint32_t())
MPS_MESSAGE(signed_64_bits, "MPSCNNKernel", '-', "kernelHeight", NS::Integer())
MPS_MESSAGE(int_for_bool, "MPSNNGraph", '-', "setOutputStateIsTemporary:", void(int))
MPS_MESSAGE(enum_of_64_bits, "MPSCNNLossDescriptor", '-', "lossType", NNTrainingStyle())
MPS_MESSAGE(other_object, "MPSNNFilterNode", '-', "setPaddingPolicy:", void(const NNImageNode*))
MPS_MESSAGE(other_result, "MPSNNFilterNode", '-', "resultImage", NNFilterNode*())
MPS_MESSAGE(other_struct, "MPSCNNKernel", '-', "setOffset:", void(MTL::Size))
MPS_MESSAGE(object_for_block, "MPSNNGraph", '-', "executeAsyncWithSourceImages:completionHandler:", Image*(const NS::Array*, const Image*))
MPS_MESSAGE(class_method, "MPSNNPadNode", '+', "fillValue", float())
MPS_MESSAGE(superclass_result, "MPSNNGraph", '+', "graphWithDevice:resultImage:", Kernel*(const MTL::Device*, const NNImageNode*))
MPS_MESSAGE(unavailable, "MPSNNImageNode", '-', "init", NNImageNode*())
MPS_MESSAGE(no_such_class, "MPSNNPaddingNode", '-', "fillValue", float())
#ifdef MPS_CPP_MISSING_COLON
MPS_MESSAGE(missing_colon, "MPSNNPadNode", '-', "setFillValue", void(float))
#endif
}  // namespace MPS::Table
