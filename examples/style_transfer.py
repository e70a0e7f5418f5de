# SPDX-License-Identifier: Apache-2.0
"""Paints one of scikit-learn's sample pictures in the manner of the other: pip install "mpsnn[examples]" && python style_transfer.py

A small network with instance normalization repaints the temple. A second network, of fixed random filters, looks at the result: the Gram
matrices of its features (which features appear together, wherever that is) shall be those of the flower, and its deepest
features those of the temple. Both losses are added up in the graph, and their gradient goes back through the fixed network into the
painter. Writes style_transfer.png: temple, flower, painting.
"""

import argparse

import mpsnn
import numpy as np

CONTENT_WEIGHT, STYLE_WEIGHT = 1.0, 60.0


def pictures():
    """The temple and the flower, 1 x 106 x 160 x 3 each, values in [0, 1]."""
    from sklearn.datasets import load_sample_image

    def smaller(name):
        pixels = load_sample_image(name)[:424, :640].astype(np.float32) / 255
        return np.ascontiguousarray(pixels.reshape(1, 106, 4, 160, 4, 3).mean(axis=(2, 4)))

    return smaller("china.jpg"), smaller("flower.jpg")


def weights(label, inputs, outputs, seed, initializer="he"):
    descriptor = mpsnn.MPSCNNConvolutionDescriptor(3, 3, inputs, outputs)
    return mpsnn.ConvolutionWeights(descriptor, initializer=initializer, seed=seed, label=label)


def relu(image):
    return mpsnn.MPSCNNNeuronReLUNode(image, 0.0).result_image


class Painter:
    """The network that learns. It starts at the picture itself: the last layer's answer is added to it."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def layer(self, image, label, inputs, outputs, seed, initializer="he"):
        source = weights(label, inputs, outputs, seed, initializer)
        source.optimizer = self.optimizer
        return mpsnn.MPSCNNConvolutionNode(image, source).result_image

    def normalized(self, image, label, inputs, outputs, seed):
        image = self.layer(image, label, inputs, outputs, seed)
        parameters = mpsnn.InstanceNormalizationWeights(outputs, label=f"{label}_norm", optimizer=self.optimizer)
        return relu(mpsnn.MPSCNNInstanceNormalizationNode(image, parameters).result_image)

    def paint(self, image):
        first = self.normalized(image, "paint1", 3, 16, seed=1)
        second = self.normalized(first, "paint2", 16, 16, seed=2)
        change = self.layer(second, "paint3", 16, 3, seed=3, initializer="zeros")
        return mpsnn.MPSNNAdditionNode(image, change).result_image


class Eye:
    """Fixed random filters in three sizes: their weights have no optimizer, so nothing ever changes them."""

    SIZES = ((3, 32), (32, 48), (48, 64))

    def __init__(self):
        self.sources = [weights(f"eye{i}", *size, seed=10 + i) for i, size in enumerate(self.SIZES)]

    def look(self, image):
        """The features at full, half and quarter size."""
        features = []
        for source in self.sources:
            image = relu(mpsnn.MPSCNNConvolutionNode(image, source).result_image)
            features.append(image)
            image = mpsnn.MPSCNNPoolingAverageNode(image, 2, 2).result_image
        return features


def gram(features, height, width, level):
    """Which features appear together, per pixel."""
    pixels = -(-height // 2**level) * -(-width // 2**level)
    return mpsnn.MPSNNGramMatrixCalculationNode(features, 1 / pixels).result_image


def squared_error(image, handle, weight):
    """Mean squared difference to an image given at each step under `handle`; a node, and its labels."""
    labels = mpsnn.MPSNNImageNode(handle)
    descriptor = mpsnn.MPSCNNLossDescriptor(mpsnn.MPSCNNLossType.MeanSquaredError, mpsnn.MPSCNNReductionType.Sum)
    descriptor.weight = weight
    return mpsnn.MPSNNForwardLossNode(image, labels, descriptor).result_image


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--output", default="style_transfer.png")
    arguments = parser.parse_args()
    content, style = pictures()
    _, height, width, _ = content.shape
    device = mpsnn.default_device()
    eye = Eye()

    # What shall be reached: the flower's Gram matrices and the temple's deepest features.
    image = mpsnn.MPSNNImageNode("image")
    features = eye.look(image)
    grams = [gram(feature, height, width, level) for level, feature in enumerate(features)]
    observer = mpsnn.MPSNNGraph(device, [*grams, features[-1]], [True] * 4)
    wanted = [result.numpy().copy() for result in observer.run([style])[:-1]]
    wanted.append(observer.run([content])[-1].numpy().copy())

    # painter -> eye -> four losses -> their sum, and back.
    painting = Painter(mpsnn.MPSNNOptimizerAdam(device, 0.003)).paint(image)
    features = eye.look(painting)
    seen = [gram(feature, height, width, level) for level, feature in enumerate(features)]
    scales = [STYLE_WEIGHT / np.square(values).sum() for values in wanted[:-1]]
    scales.append(CONTENT_WEIGHT / np.square(wanted[-1]).sum())
    handles = ["gram0", "gram1", "gram2", "content"]
    losses = [squared_error(*loss) for loss in zip([*seen, features[-1]], handles, map(float, scales))]
    total = losses[0]
    for loss in losses[1:]:
        sum_node = mpsnn.MPSNNAdditionNode(total, loss)
        total = sum_node.result_image
    gradient = mpsnn.MPSNNInitialGradientNode(total).result_image
    ends = sum_node.training_graph(gradient)
    graph = mpsnn.MPSNNGraph(
        device, [painting, total, *(end.result_image for end in ends)], [True, True, *[False] * len(ends)]
    )
    inputs = {"image": content, **dict(zip(handles, wanted))}
    sources = [inputs[str(handle)] for handle in graph.source_image_handles]

    for step in range(arguments.steps):
        results = graph.run(sources)
        painted, loss = results[0].numpy(), float(results[1].numpy().sum())
        if step == 0:
            first = loss
        if step % 20 == 0:
            print(f"step {step:4d}  loss {loss:.4f}")
    print(f"loss {first:.4f} -> {loss:.4f}")

    from matplotlib.image import imsave

    imsave(arguments.output, np.clip(np.concatenate([content[0], style[0], painted[0]], axis=1), 0, 1))
    print(f"see {arguments.output}")


if __name__ == "__main__":
    main()
