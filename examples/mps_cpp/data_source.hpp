// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <MetalPerformanceShaders/MetalPerformanceShaders.hpp>

// A convolution with one channel in and out, 3x3 weights 1..9 and bias 0.5. The caller owns the result.
MPS::CNNConvolutionDataSource* make_data_source();
