// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Everything that the library offers.
#include "mpsnn/data_source.hpp"
#include "mpsnn/device.hpp"
#include "mpsnn/error.hpp"
#include "mpsnn/geometry.hpp"
#include "mpsnn/graph.hpp"
#include "mpsnn/image.hpp"
#include "mpsnn/nodes/arithmetic.hpp"
#include "mpsnn/nodes/concatenation.hpp"
#include "mpsnn/nodes/convolution.hpp"
#include "mpsnn/nodes/dropout.hpp"
#include "mpsnn/nodes/loss.hpp"
#include "mpsnn/nodes/neuron.hpp"
#include "mpsnn/nodes/normalization.hpp"
#include "mpsnn/nodes/pooling.hpp"
#include "mpsnn/nodes/softmax.hpp"
#include "mpsnn/optimizer.hpp"
#include "mpsnn/padding.hpp"
#include "mpsnn/state.hpp"
#include "mpsnn/version.hpp"
#include "mpsnn/weights.hpp"
