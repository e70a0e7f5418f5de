# SPDX-License-Identifier: Apache-2.0
"""The examples run and reach what they state."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from mpsnn.datasets import FASHION_MNIST_DIR

needs_fashion_mnist = pytest.mark.skipif(
    not FASHION_MNIST_DIR.is_dir(), reason="needs Debian's package dataset-fashion-mnist"
)


def output_of(example, *arguments):
    path = Path(__file__).parents[2] / "examples" / f"{example}.py"
    command = [sys.executable, str(path), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def number_after(text, output):
    return float(re.search(rf"{text} ([-+.e\d]+)", output)[1])


def test_the_first_training_example_runs():
    output = output_of("first_training")
    assert "epoch 8/8" in output
    assert "of 355 test images are wrong" in output


@pytest.mark.slow
@needs_fashion_mnist
def test_the_residual_network_names_88_percent_of_the_garments():
    assert number_after("test accuracy", output_of("resnet")) >= 0.88


@pytest.mark.slow
@needs_fashion_mnist
def test_the_u_net_finds_garments_in_noise(tmp_path):
    picture = tmp_path / "unet.png"
    output = output_of("unet", "--output", picture)
    assert number_after("pixels right", output) >= 0.80
    assert number_after("mean overlap of the classes", output) >= 0.50
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_style_transfer_reaches_a_five_hundredth_of_its_first_loss(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    picture = tmp_path / "painting.png"
    output = output_of("style_transfer", "--output", picture)
    assert number_after("->", output) < number_after("step    0  loss", output) / 500
    content, style, painting = (image.imread(picture)[:, i * 160 : (i + 1) * 160, :3] for i in range(3))
    # The painting has the flower's dark colours where the temple's picture is light.
    assert abs(painting.mean() - style.mean()) < abs(content.mean() - style.mean()) / 2
