# SPDX-License-Identifier: Apache-2.0
"""The `mpsnn` command, as a user runs it."""

import json
import os
import signal
import subprocess
import sys
import time

import mpsnn
import numpy as np
import pytest
from mpsnn.checkpoint import load_weights, read_state
from mpsnn.datasets import FASHION_MNIST_DIR, digits
from mpsnn.models import lenet
from typer.testing import CliRunner

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

FILES = ["checkpoint.safetensors", "curves.png", "graph.json", "history.json", "weights.safetensors"]


def command(*arguments):
    return [sys.executable, "-m", "mpsnn", *map(str, arguments)]


def run(*arguments, **environment):
    environment = {**os.environ, **environment}
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=300, env=environment, check=False
    )


def weights(folder):
    return folder.joinpath("weights.safetensors").read_bytes()


def test_train_writes_everything_and_ends_with_the_test_accuracy(tmp_path):
    result = run("train", "--epochs", 3, "--output", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == FILES
    lines = result.stdout.splitlines()
    assert lines[0].startswith("digits: 1442 training and 355 test images")
    for number, line in enumerate(lines[1:4], 1):
        assert line.startswith(f"epoch {number}/3  loss ")
        assert "accuracy" in line
        assert "images/s" in line
    history = json.loads((tmp_path / "run/history.json").read_text())
    accuracy = history["epochs"][-1]["test_accuracy"]
    assert lines[-1] == f"test accuracy {accuracy:.4f}"
    assert accuracy > 0.9
    assert history["settings"]["dataset"] == "digits"
    assert (tmp_path / "run/curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert json.loads((tmp_path / "run/graph.json").read_text())


def test_the_saved_graph_and_weights_give_the_printed_accuracy(tmp_path):
    result = run("train", "--epochs", 2, "--output", tmp_path, "--quiet")
    assert result.returncode == 0, result.stderr
    network = lenet((8, 8, 1), 10, hidden=64)
    sources = {source.label(): source for source in network.sources}
    load_weights(tmp_path / "weights.safetensors", sources)
    graph = mpsnn.MPSNNGraph.load(str(tmp_path / "graph.json"), mpsnn.default_device(), network.sources)
    data = digits()
    guesses = graph.run([data.test_images]).numpy().reshape(-1, 10).argmax(axis=1)
    assert result.stdout == f"test accuracy {np.mean(guesses == data.test_labels):.4f}\n"


def test_a_second_run_and_another_number_of_threads_give_the_same_bits(tmp_path):
    assert run("train", "--epochs", 2, "--quiet", "--output", tmp_path / "a").returncode == 0
    assert run("train", "--epochs", 2, "--quiet", "--output", tmp_path / "b").returncode == 0
    assert run("train", "--epochs", 2, "--quiet", "--output", tmp_path / "c", MPSNN_NUM_THREADS="1").returncode == 0
    assert run("train", "--epochs", 2, "--quiet", "--output", tmp_path / "d", "--threads", 3).returncode == 0
    assert run("train", "--epochs", 2, "--quiet", "--output", tmp_path / "e", "--seed", 1).returncode == 0
    assert weights(tmp_path / "a") == weights(tmp_path / "b") == weights(tmp_path / "c") == weights(tmp_path / "d")
    assert weights(tmp_path / "a") != weights(tmp_path / "e")


def test_resume_takes_the_options_from_the_checkpoint(tmp_path):
    options = ("--batch-size", 48, "--optimizer", "momentum", "--learning-rate", 0.02, "--seed", 5, "--quiet")
    assert run("train", "--epochs", 3, *options, "--output", tmp_path / "whole").returncode == 0
    assert run("train", "--epochs", 1, *options, "--output", tmp_path / "parts").returncode == 0
    resumed = run("train", "--epochs", 3, "--resume", "--quiet", "--output", tmp_path / "parts")
    assert resumed.returncode == 0, resumed.stderr
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")
    assert len(json.loads((tmp_path / "parts/history.json").read_text())["epochs"]) == 3


def test_ctrl_c_stops_cleanly_and_resume_continues_with_the_same_bits(tmp_path):
    options = ("--epochs", 12, "--batch-size", 4)
    assert run("train", *options, "--quiet", "--output", tmp_path / "whole").returncode == 0

    # A process started in the background of a script inherits an ignored SIGINT; this one is to have the usual one.
    code = "import signal, mpsnn.__main__ as m; signal.signal(signal.SIGINT, signal.default_int_handler); m.main()"
    arguments = [sys.executable, "-c", code, "train", *map(str, options), "--output", str(tmp_path / "parts")]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    checkpoint = tmp_path / "parts/checkpoint.safetensors"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert errors.startswith("interrupted: stopped after step")
    assert f"continue from {checkpoint}" in errors
    assert "Traceback" not in errors
    assert 1 <= len(read_state(checkpoint)["history"]) < 12

    resumed = run("train", "--resume", "--quiet", "--output", tmp_path / "parts")
    assert resumed.returncode == 0, resumed.stderr
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")


def assert_text_error(result, *parts):
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    for part in parts:
        assert str(part) in result.stderr


def test_a_missing_data_set_says_how_to_get_it(tmp_path):
    result = run("train", "--dataset", "fashion-mnist", "--data-dir", tmp_path, "--output", tmp_path / "run")
    assert_text_error(
        result,
        "FileError: ",
        tmp_path / "train-images-idx3-ubyte.gz",
        "apt-get install dataset-fashion-mnist",
        "--data-dir",
    )
    assert not (tmp_path / "run").exists()


def test_an_unknown_device_gets_the_list(tmp_path):
    assert_text_error(run("train", "--device", "tpu", "--output", tmp_path), "DeviceError: ", "tpu", "cpu", "reference")


def test_resume_without_a_checkpoint_says_so(tmp_path):
    result = run("train", "--resume", "--output", tmp_path)
    assert_text_error(result, "FileError: there is nothing to resume", tmp_path / "checkpoint.safetensors", "--output")


def test_resume_with_other_options_says_which(tmp_path):
    assert run("train", "--epochs", 2, "--quiet", "--output", tmp_path).returncode == 0
    result = run("train", "--resume", "--seed", 9, "--batch-size", 7, "--output", tmp_path)
    assert_text_error(result, "OptionError: ", "batch_size 32, seed 0", "batch_size 7, seed 9")
    assert_text_error(run("train", "--resume", "--epochs", 1, "--output", tmp_path), "--epochs 2 or more", "--epochs 1")


def test_resume_from_a_truncated_checkpoint_says_so(tmp_path):
    assert run("train", "--epochs", 1, "--quiet", "--output", tmp_path).returncode == 0
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-5])
    assert_text_error(run("train", "--resume", "--output", tmp_path), "FileError: ", checkpoint, "is truncated")


def test_an_output_that_is_a_file_says_so(tmp_path):
    tmp_path.joinpath("taken").write_text("")
    assert_text_error(run("train", "--output", tmp_path / "taken"), "FileError: ", tmp_path / "taken")


def test_wrong_usage_ends_with_2():
    assert run("train", "--dataset", "imagenet").returncode == 2
    assert run("train", "--epochs", 0).returncode == 2
    assert run("fly").returncode == 2


@pytest.mark.parametrize(("module", "package"), [("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")])
def test_a_missing_optional_package_says_what_to_install(tmp_path, monkeypatch, module, package):
    from mpsnn.cli import app

    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    result = CliRunner().invoke(app, ["train", "--output", str(tmp_path / "run")])
    assert result.exit_code == 1
    assert f"pip install {package}" in result.stderr
    assert not (tmp_path / "run").exists()


def test_info_prints_devices_instruction_set_threads_and_versions():
    result = run("info", MPSNN_NUM_THREADS="1", COLUMNS="120")
    assert result.returncode == 0, result.stderr
    for device in mpsnn.devices():
        assert device.name in result.stdout
    for part in (
        f"{mpsnn.default_device().name} (default)",
        mpsnn.instruction_set(),
        "1 (MPSNN_NUM_THREADS",
        np.__version__,
        mpsnn.__version__,
    ):
        assert part in result.stdout


def test_importing_the_command_loads_nothing_heavy():
    code = "import sys, mpsnn.cli; print([m for m in ('numpy', 'matplotlib', 'sklearn', 'mpsnn.api', 'mpsnn.trainer') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "[]\n"


@pytest.mark.slow
@pytest.mark.skipif(not FASHION_MNIST_DIR.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_fashion_mnist_reaches_ninety_percent_in_five_epochs(tmp_path):
    arguments = command("train", "--dataset", "fashion-mnist", "--epochs", 5, "--quiet", "--output", tmp_path)
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=3600, check=False)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout.split()[-1]) >= 0.9
