# SPDX-License-Identifier: Apache-2.0
"""A first training run: handwritten digits, a network of your own, a picture of what it got wrong.

pip install "mpsnn[examples]" && python first_training.py
"""

import mpsnn
import numpy as np
from mpsnn.datasets import digits

EPOCHS = 8


def weights(label, kernel, inputs, outputs, seed):
    """Fresh weights; the label names them in errors and files."""
    descriptor = mpsnn.MPSCNNConvolutionDescriptor(kernel, kernel, inputs, outputs)
    return mpsnn.ConvolutionWeights(descriptor, seed=seed, label=label)


def network():
    """Nodes hang on each other's result images. Nothing is computed here."""
    image = mpsnn.MPSNNImageNode("image")  # N x 8 x 8 x 1
    conv1 = mpsnn.MPSCNNConvolutionNode(image, weights("conv1", 3, 1, 16, seed=1))  # N x 8 x 8 x 16
    relu1 = mpsnn.MPSCNNNeuronReLUNode(conv1.result_image, 0.0)
    pool1 = mpsnn.MPSCNNPoolingMaxNode(relu1.result_image, 2, 2)  # N x 4 x 4 x 16
    conv2 = mpsnn.MPSCNNConvolutionNode(pool1.result_image, weights("conv2", 3, 16, 32, seed=2))
    relu2 = mpsnn.MPSCNNNeuronReLUNode(conv2.result_image, 0.0)
    pool2 = mpsnn.MPSCNNPoolingMaxNode(relu2.result_image, 2, 2)  # N x 2 x 2 x 32
    return mpsnn.MPSCNNFullyConnectedNode(pool2.result_image, weights("fc", 2, 32, 10, seed=3))  # N x 1 x 1 x 10


def main():
    data = digits()
    # The trainer appends the loss, derives the gradient nodes, and keeps a second graph for testing.
    trainer = mpsnn.Trainer(network(), learning_rate=0.002, batch_size=32, seed=0)
    trainer.fit(data.train_images, data.train_labels, EPOCHS, test=(data.test_images, data.test_labels))

    logits = trainer.predict(data.test_images)
    guesses = logits.reshape(len(logits), -1).argmax(axis=1)
    wrong = np.flatnonzero(guesses != data.test_labels)
    print(f"{len(wrong)} of {len(guesses)} test images are wrong")
    for index in wrong[:2]:
        print(f"\nthis {data.test_labels[index]} was taken for a {guesses[index]}:")
        for row in data.test_images[index, :, :, 0]:
            print("  " + "".join(" .:*#"[min(int(value * 5), 4)] * 2 for value in row))


if __name__ == "__main__":
    main()
