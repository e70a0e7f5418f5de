# SPDX-License-Identifier: Apache-2.0
"""Networks written with graph nodes, ready for a Trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import mpsnn
from mpsnn._errors import make_error


@dataclass(frozen=True)
class Network:
    """A network's ends. `logits` is for testing and predicting; `training_logits` has dropout in front, if there is any.

    >>> network = lenet((8, 8, 1), 10)
    >>> [source.label() for source in network.sources]
    ['conv1', 'conv2', 'fc1', 'fc2']
    """

    image: Any
    logits: Any
    training_logits: Any
    sources: list[Any]


def lenet(
    input_shape: tuple[int, int, int] = (28, 28, 1),
    classes: int = 10,
    *,
    image: Any = None,
    kernel: int | None = None,
    channels: tuple[int, int] = (16, 32),
    hidden: int = 128,
    dropout: float = 0.5,
    seed: int = 0,
) -> Network:
    """A network after LeNet-5: twice convolution, ReLU and 2 x 2 max pooling, then a hidden layer, dropout and one output per class.

    input_shape   height, width, channels of an image
    image         the MPSNNImageNode to start from; a new one with the handle "image" when None
    kernel        height and width of both convolutions; 5, or 3 for images under 16 pixels, which 5 would nearly cover
    channels      feature channels of the two convolutions
    hidden        size of the hidden layer
    dropout       probability that a hidden value is dropped in training; 0 leaves the dropout node out
    seed          draws the weights (He: normal, variance 2 / fan-in; biases zero) and the dropout masks

    Raises OptionError for a size below 1 or a dropout outside [0, 1).

    >>> type(lenet((28, 28, 1), 10).logits).__name__
    'MPSCNNFullyConnectedNode'
    """
    height, width, depth = input_shape
    if min(*input_shape, classes, *channels, hidden) < 1 or not 0 <= dropout < 1:
        text = f"input_shape {input_shape}, classes {classes}, channels {channels}, hidden {hidden}, dropout {dropout}"
        raise make_error(
            "OptionError", "a size is out of range.", expected="sizes from 1, dropout in [0, 1)", actual=text
        )
    kernel = kernel or (5 if min(height, width) >= 16 else 3)
    seeds = [int(part) for part in np.random.SeedSequence(seed).generate_state(5)]
    # Pooling's default padding keeps a last, partial window: sizes are halved and rounded up.
    pooled_height, pooled_width = (height + 3) // 4, (width + 3) // 4

    def source(label: str, kernel_height: int, kernel_width: int, inputs: int, outputs: int) -> Any:
        descriptor = mpsnn.MPSCNNConvolutionDescriptor(kernel_width, kernel_height, inputs, outputs)
        return mpsnn.ConvolutionWeights(descriptor, initializer="he", seed=seeds[len(sources)], label=label)

    sources: list[Any] = []
    sources.append(source("conv1", kernel, kernel, depth, channels[0]))
    sources.append(source("conv2", kernel, kernel, channels[0], channels[1]))
    sources.append(source("fc1", pooled_height, pooled_width, channels[1], hidden))
    sources.append(source("fc2", 1, 1, hidden, classes))

    image = image or mpsnn.MPSNNImageNode("image")
    node = image
    for number, weights in enumerate(sources[:2], 1):
        node = mpsnn.MPSCNNConvolutionNode(node, weights)
        node.label = weights.label()
        node = mpsnn.MPSCNNNeuronReLUNode(node.result_image, 0.0)
        node.label = f"relu{number}"
        node = mpsnn.MPSCNNPoolingMaxNode(node.result_image, 2, 2)
        node.label = f"pool{number}"
        node = node.result_image
    node = mpsnn.MPSCNNFullyConnectedNode(node, sources[2])
    node.label = "fc1"
    hidden_node = mpsnn.MPSCNNNeuronReLUNode(node.result_image, 0.0)
    hidden_node.label = "relu3"

    def output(node: Any) -> Any:
        logits = mpsnn.MPSCNNFullyConnectedNode(node.result_image, sources[3])
        logits.label = "fc2"
        return logits

    logits = training_logits = output(hidden_node)
    if dropout > 0:
        # A dropout node is never off, so training gets an end of its own on the same weights.
        dropped = mpsnn.MPSCNNDropoutNode(hidden_node.result_image, 1 - dropout, seeds[4])
        dropped.label = "dropout"
        training_logits = output(dropped)
    return Network(image, logits, training_logits, sources)
