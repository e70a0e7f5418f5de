# SPDX-License-Identifier: Apache-2.0
"""A residual network with batch normalization, trained on Fashion-MNIST (apt-get install dataset-fashion-mnist): python resnet.py

Each block adds its input to what two convolutions make of it; where the size is halved, a 1 x 1 convolution of stride 2 takes the input along.
With the images and epochs below it names about nine test images in ten; every epoch takes seconds, not minutes, on two cores.
"""

import argparse

import mpsnn
from mpsnn.datasets import fashion_mnist

BATCH_SIZE = 50


class Builder:
    """Makes layers with labels and seeds of their own."""

    def __init__(self, seed):
        self.seed = seed

    def convolution(self, image, label, kernel, inputs, outputs, stride=1):
        """A convolution without anything behind it. "Same" padding: the result is as large as the source, over the stride."""
        self.seed += 1
        descriptor = mpsnn.MPSCNNConvolutionDescriptor(kernel, kernel, inputs, outputs)
        descriptor.stride_in_pixels_x = descriptor.stride_in_pixels_y = stride
        weights = mpsnn.ConvolutionWeights(descriptor, initializer="he", seed=self.seed, label=label)
        return mpsnn.MPSCNNConvolutionNode(image, weights).result_image

    def normalized(self, image, label, kernel, inputs, outputs, stride=1):
        """Convolution and batch normalization: statistics of the batch in training, the running ones in testing."""
        image = self.convolution(image, label, kernel, inputs, outputs, stride)
        parameters = mpsnn.BatchNormalizationWeights(outputs, label=f"{label}_norm")
        return mpsnn.MPSCNNBatchNormalizationNode(image, parameters).result_image

    def block(self, image, label, inputs, outputs, stride):
        """ReLU(shortcut + two convolutions)."""
        first = relu(self.normalized(image, f"{label}_conv1", 3, inputs, outputs, stride))
        second = self.normalized(first, f"{label}_conv2", 3, outputs, outputs)
        shortcut = (
            image if inputs == outputs else self.normalized(image, f"{label}_shortcut", 1, inputs, outputs, stride)
        )
        return relu(mpsnn.MPSNNAdditionNode(shortcut, second).result_image)


def relu(image):
    return mpsnn.MPSCNNNeuronReLUNode(image, 0.0).result_image


def network(seed=0):
    """From N x 28 x 28 x 1 to N x 1 x 1 x 10."""
    build = Builder(seed)
    image = mpsnn.MPSNNImageNode("image")
    image = relu(build.normalized(image, "stem", 3, 1, 16))  # 28 x 28 x 16
    image = build.block(image, "block1", 16, 16, stride=1)
    image = build.block(image, "block2", 16, 32, stride=2)  # 14 x 14 x 32
    image = build.block(image, "block3", 32, 64, stride=2)  # 7 x 7 x 64
    image = mpsnn.MPSNNReductionSpatialMeanNode(image).result_image  # 1 x 1 x 64
    return build.convolution(image, "classes", 1, 64, 10)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=30000, help="training images (of 60,000)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--device", default=None, help='"cpu", "reference", ...')
    arguments = parser.parse_args()

    data = fashion_mnist()
    trainer = mpsnn.Trainer(
        network(),
        device=mpsnn.Device(arguments.device) if arguments.device else None,
        learning_rate=0.003,
        learning_rate_decay=0.4,
        batch_size=BATCH_SIZE,
    )
    images, labels = data.train_images[: arguments.images], data.train_labels[: arguments.images]
    trainer.fit(images, labels, arguments.epochs)
    print(f"test accuracy {trainer.evaluate(data.test_images, data.test_labels).accuracy:.4f}")


if __name__ == "__main__":
    main()
