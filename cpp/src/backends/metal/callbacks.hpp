// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "backends/metal/objc.hpp"
#include "mpsnn/nodes/loss.hpp"
#include "mpsnn/nodes/resampling.hpp"
#include "mpsnn/nodes/shape.hpp"

/// Our handles, padding policies and property callbacks as objects that MPS can use. Errors of their code go to `errors`.
namespace mpsnn::metal {

using ErrorsPtr = std::shared_ptr<KeptError>;

/// A tag of one node: the graph's handle lists return the very object.
Owned<MPS::Handle> make_handle_object(std::string label);
/// Apple's default policy for the same bits, or an object that asks `policy`.
Owned<MPS::NNPadding> make_padding_object(const PaddingPtr& policy, const std::string& node_name, const ErrorsPtr& errors);
Owned<MPS::ImageTransformProvider> make_transform_object(std::shared_ptr<ImageTransformProvider> provider, HandlePtr handle, const ErrorsPtr& errors);
Owned<MPS::NNGramMatrixCallback> make_callback_object(std::shared_ptr<NNGramMatrixCallback> callback, const ErrorsPtr& errors);
Owned<MPS::NNLossCallback> make_callback_object(std::shared_ptr<NNLossCallback> callback, const ErrorsPtr& errors);

}  // namespace mpsnn::metal
