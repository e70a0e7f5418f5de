# SPDX-License-Identifier: Apache-2.0
"""A U-Net that finds garments in noise and names each of their pixels, on Fashion-MNIST: python unet.py

Needs pip install "mpsnn[examples]" and apt-get install dataset-fashion-mnist.

The picture is a garment behind strong noise; the label of a pixel is the garment's class where the clean picture is brighter than a fifth, else
"background". The way down halves the image twice; the way up enlarges it once with a transposed convolution and once with bilinear
upsampling, and each time takes the image of the same size on the way down along, channel behind channel. Writes unet.png.
"""

import argparse

import mpsnn
import numpy as np
from mpsnn.datasets import fashion_mnist

BATCH_SIZE, CLASSES, NOISE = 25, 11, 0.3  # ten garments and the background


class Builder:
    """Makes layers with labels and seeds of their own."""

    def __init__(self, seed):
        self.seed = seed

    def weights(self, label, kernel, inputs, outputs, stride=1):
        self.seed += 1
        descriptor = mpsnn.MPSCNNConvolutionDescriptor(kernel, kernel, inputs, outputs)
        descriptor.stride_in_pixels_x = descriptor.stride_in_pixels_y = stride
        return mpsnn.ConvolutionWeights(descriptor, initializer="he", seed=self.seed, label=label)

    def convolution(self, image, label, inputs, outputs):
        """3 x 3 convolution and ReLU; the size stays."""
        image = mpsnn.MPSCNNConvolutionNode(image, self.weights(label, 3, inputs, outputs)).result_image
        return mpsnn.MPSCNNNeuronReLUNode(image, 0.0).result_image

    def transposed(self, image, label, inputs, outputs):
        """Transposed convolution of stride 2: twice as wide and high. The default padding would leave one row and column out."""
        node = mpsnn.MPSCNNConvolutionTransposeNode(image, self.weights(label, 2, inputs, outputs, 2))
        node.padding_policy = mpsnn.MPSNNDefaultPadding(mpsnn.MPSNNPaddingMethod.SizeFull)
        return node.result_image


def halved(image):
    return mpsnn.MPSCNNPoolingMaxNode(image, 2, 2).result_image


def network(seed=0):
    """From N x 28 x 28 x 1 to N x 28 x 28 x 11, a score for each class at each pixel."""
    build = Builder(seed)
    image = mpsnn.MPSNNImageNode("image")
    full = build.convolution(image, "down1", 1, 16)  # 28 x 28 x 16
    half = build.convolution(halved(full), "down2", 16, 32)  # 14 x 14 x 32
    bottom = build.convolution(halved(half), "bottom", 32, 64)  # 7 x 7 x 64
    up = build.transposed(bottom, "enlarge", 64, 32)  # 14 x 14 x 32
    joined = mpsnn.MPSNNConcatenationNode([up, half]).result_image  # 14 x 14 x 64
    up = build.convolution(joined, "up2", 64, 32)
    up = mpsnn.MPSCNNUpsamplingBilinearNode(up, 2, 2).result_image  # 28 x 28 x 32
    joined = mpsnn.MPSNNConcatenationNode([up, full]).result_image  # 28 x 28 x 48
    last = build.convolution(joined, "up1", 48, 16)
    return mpsnn.MPSCNNConvolutionNode(last, build.weights("classes", 1, 16, CLASSES)).result_image


def noisy(images, seed):
    noise = np.random.default_rng(seed).normal(0, NOISE, images.shape)
    return (images + noise).astype(np.float32)


def masks(images, labels):
    """The class of each pixel, N x H x W; the last class is the background."""
    return np.where(images[..., 0] > 0.2, labels[:, None, None], CLASSES - 1)


def mean_overlap(guesses, truth):
    """Intersection over union of each class, averaged."""
    return np.mean(
        [((guesses == c) & (truth == c)).sum() / ((guesses == c) | (truth == c)).sum() for c in range(CLASSES)]
    )


def draw(path, images, guesses, truth):
    import matplotlib.pyplot as plt

    figure, rows = plt.subplots(3, len(images), figsize=(len(images), 3.2))
    for column, pictures in enumerate(zip(images[..., 0], guesses, truth)):
        for axes, picture, style in zip(
            rows[:, column], pictures, ({"cmap": "gray"}, *[{"cmap": "tab20", "vmin": 0, "vmax": 19}] * 2)
        ):
            axes.imshow(picture, **style)
            axes.axis("off")
    figure.suptitle("what the network sees, its answer, the truth")
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=15000, help="training images (of 60,000)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--output", default="unet.png")
    arguments = parser.parse_args()

    data = fashion_mnist()
    pixels = data.train_images.shape[1] * data.train_images.shape[2]
    loss = mpsnn.MPSCNNLossDescriptor(
        mpsnn.MPSCNNLossType.SoftMaxCrossEntropy, mpsnn.MPSCNNReductionType.Sum, weight=1 / (BATCH_SIZE * pixels)
    )
    trainer = mpsnn.Trainer(network(), learning_rate=0.003, batch_size=BATCH_SIZE, loss=loss)
    images = data.train_images[: arguments.images]
    targets = np.eye(CLASSES, dtype=np.float32)[masks(images, data.train_labels[: arguments.images])]
    trainer.fit(noisy(images, seed=0), targets, arguments.epochs)

    test = noisy(data.test_images[:2000], seed=1000)
    truth = masks(data.test_images[:2000], data.test_labels[:2000])
    guesses = trainer.predict(test).argmax(axis=-1)
    draw(arguments.output, test[:10], guesses[:10], truth[:10])
    print(
        f"pixels right {np.mean(guesses == truth):.4f}, mean overlap of the classes {mean_overlap(guesses, truth):.4f}, see {arguments.output}"
    )


if __name__ == "__main__":
    main()
