# SPDX-License-Identifier: Apache-2.0
"""Small trainings that several test files use."""

import mpsnn
import numpy as np
from mpsnn.checkpoint import parameters
from mpsnn.models import lenet
from mpsnn.trainer import Trainer


def blobs(count=70, seed=0, size=8):
    """Images of three classes: a bright third at the left, in the middle or at the right, in noise."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    images = random.random((count, size, size, 1), dtype=np.float32) * np.float32(0.5)
    for image, label in zip(images, labels, strict=True):
        image[:, label * size // 3 : (label + 1) * size // 3] += np.float32(0.5)
    return images, labels


IMAGES, LABELS = blobs()
TEST = blobs(40, seed=1)


def small_trainer(dropout=0.25, seed=3, **options):
    network = lenet((8, 8, 1), 3, channels=(4, 6), hidden=12, dropout=dropout, seed=seed)
    options = {"batch_size": 16, "learning_rate": 0.01, "seed": seed, **options}
    return Trainer(network.training_logits, inference_logits=network.logits, **options)


def fully_connected_trainer(label="fc", **options):
    source = mpsnn.ConvolutionWeights(mpsnn.MPSCNNConvolutionDescriptor(8, 8, 1, 3), label=label, seed=1)
    return Trainer(mpsnn.MPSCNNFullyConnectedNode(mpsnn.MPSNNImageNode("image"), source), **options)


def batch_norm_trainer(**options):
    convolution = mpsnn.ConvolutionWeights(mpsnn.MPSCNNConvolutionDescriptor(3, 3, 1, 4), label="conv", seed=1)
    normalization = mpsnn.BatchNormalizationWeights(4, label="norm")
    last = mpsnn.ConvolutionWeights(mpsnn.MPSCNNConvolutionDescriptor(8, 8, 4, 3), label="fc", seed=2)
    node = mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode("image"), convolution)
    node = mpsnn.MPSCNNBatchNormalizationNode(node.result_image, normalization)
    node = mpsnn.MPSCNNNeuronReLUNode(node.result_image, 0.0)
    return Trainer(mpsnn.MPSCNNFullyConnectedNode(node.result_image, last), batch_size=16, seed=5, **options)


def state_of(trainer):
    """Every number that a step may change, copied."""
    numbers = {}
    for label, source in trainer.sources.items():
        for name, value in parameters(source).items():
            numbers[f"{label}.{name}"] = np.array(value)
        for i, vector in enumerate(source.history):
            numbers[f"{label}.history.{i}"] = np.array(vector)
        numbers[f"{label}.time_step"] = np.array(getattr(source.optimizer, "time_step", 0))
    return numbers


def same_bits(first, second):
    return first.keys() == second.keys() and all(first[name].tobytes() == second[name].tobytes() for name in first)


def without_clock(history):
    return [{k: v for k, v in record.items() if k not in ("seconds", "images_per_second")} for record in history]
