# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: a training that goes on, and files that cannot be used."""

import resource
import signal

import mpsnn
import numpy as np
import pytest
from mpsnn.checkpoint import write_atomically
from mpsnn.models import lenet
from mpsnn.trainer import Trainer, TrainingInterrupted
from training_cases import (
    IMAGES,
    LABELS,
    TEST,
    batch_norm_trainer,
    fully_connected_trainer,
    same_bits,
    small_trainer,
    state_of,
    without_clock,
)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "momentum", "rmsprop"])
def test_a_training_continues_from_its_checkpoint_with_the_same_bits(tmp_path, optimizer):
    options = {"optimizer": optimizer, "learning_rate": 0.005, "learning_rate_decay": 0.7}
    whole = small_trainer(**options)
    whole.fit(IMAGES, LABELS, 4, test=TEST, progress=False)

    file = tmp_path / "checkpoint.safetensors"
    small_trainer(**options).fit(IMAGES, LABELS, 2, test=TEST, checkpoint=file, extra={"name": "blobs"}, progress=False)
    resumed = small_trainer(**options)
    assert resumed.load_checkpoint(file) == {"name": "blobs"}
    resumed.fit(IMAGES, LABELS, 4, test=TEST, progress=False)
    assert same_bits(state_of(whole), state_of(resumed))
    assert without_clock(whole.history) == without_clock(resumed.history)


def interrupt_at(trainer, call):
    """Ctrl-C arrives while the trainer makes its step number `call`, counted from 1."""
    step, calls = trainer._step, []

    def interrupted_step(*arguments):
        calls.append(None)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    trainer._step = interrupted_step
    return calls


@pytest.mark.parametrize("call", [1, 7, 10], ids=["first step", "middle of an epoch", "end of an epoch"])
def test_ctrl_c_finishes_the_step_and_the_training_continues_with_the_same_bits(tmp_path, call):
    whole = small_trainer()
    whole.fit(IMAGES, LABELS, 3, test=TEST, progress=False)

    file = tmp_path / "checkpoint.safetensors"
    interrupted = small_trainer()
    calls = interrupt_at(interrupted, call)
    with pytest.raises(
        TrainingInterrupted, match=rf"after step {(call - 1) % 5 + 1} of 5 in epoch {(call - 1) // 5 + 1}"
    ):
        interrupted.fit(IMAGES, LABELS, 3, test=TEST, checkpoint=file, progress=False)
    assert len(calls) == call
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    resumed = small_trainer()
    resumed.load_checkpoint(file)
    resumed.fit(IMAGES, LABELS, 3, test=TEST, progress=False)
    assert same_bits(state_of(whole), state_of(resumed))
    assert without_clock(whole.history) == without_clock(resumed.history)


def test_a_second_ctrl_c_stops_at_once():
    trainer = small_trainer()
    step = trainer._step

    def impatient(*arguments):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    trainer._step = impatient
    with pytest.raises(KeyboardInterrupt) as caught:
        trainer.fit(IMAGES, LABELS, 1, progress=False)
    assert not isinstance(caught.value, TrainingInterrupted)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_running_statistics_and_gamma_are_in_the_checkpoint(tmp_path):
    whole = batch_norm_trainer()
    whole.fit(IMAGES, LABELS, 3, progress=False)
    assert {"norm.gamma", "norm.beta", "norm.mean", "norm.variance"} <= state_of(whole).keys()

    file = tmp_path / "checkpoint.safetensors"
    batch_norm_trainer().fit(IMAGES, LABELS, 1, checkpoint=file, progress=False)
    resumed = batch_norm_trainer()
    resumed.load_checkpoint(file)
    resumed.fit(IMAGES, LABELS, 3, progress=False)
    assert same_bits(state_of(whole), state_of(resumed))
    assert np.array_equal(whole.predict(TEST[0]), resumed.predict(TEST[0]))


def test_weights_and_graph_come_back_from_files(tmp_path):
    trained = small_trainer()
    trained.fit(IMAGES, LABELS, 2, progress=False)
    trained.save_weights(tmp_path / "weights.safetensors")
    trained.save_graph(tmp_path / "graph.safetensors")
    graph = mpsnn.MPSNNGraph.load(tmp_path / "graph.safetensors")
    expected = trained.predict(TEST[0])
    assert np.array_equal(graph.run([TEST[0]]).numpy(), expected)

    for name in ("weights", "graph"):
        other = small_trainer(seed=9)
        other.load_weights(tmp_path / f"{name}.safetensors")
        assert np.array_equal(other.predict(TEST[0]), expected)


def checkpoint_bytes(tmp_path):
    trainer = small_trainer()
    trainer.fit(IMAGES, LABELS, 1, checkpoint=tmp_path / "good.safetensors", progress=False)
    return tmp_path.joinpath("good.safetensors").read_bytes()


def test_a_truncated_checkpoint_changes_nothing(tmp_path):
    content = checkpoint_bytes(tmp_path)
    file = tmp_path / "cut.safetensors"
    trainer = small_trainer(seed=3)
    before = state_of(trainer)
    for length in (0, 7, 8, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(mpsnn.FileError, match=r"cut\.safetensors is truncated or no safetensors file"):
            trainer.load_checkpoint(file)
    assert same_bits(before, state_of(trainer))
    assert trainer.history == []


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    trainer = small_trainer()
    with pytest.raises(mpsnn.FileError, match=r"nowhere\.safetensors does not exist"):
        trainer.load_checkpoint(tmp_path / "nowhere.safetensors")
    trainer.save_weights(tmp_path / "weights.safetensors")
    with pytest.raises(mpsnn.FileError, match=r"weights\.safetensors: it is another kind of file"):
        trainer.load_checkpoint(tmp_path / "weights.safetensors")
    tmp_path.joinpath("text.safetensors").write_text("no tensors here, but more than eight bytes")
    with pytest.raises(mpsnn.FileError, match=r"text\.safetensors is truncated or no safetensors file"):
        trainer.load_weights(tmp_path / "text.safetensors")


def test_weights_of_another_graph_are_refused_with_label_and_both_shapes(tmp_path):
    file = tmp_path / "weights.safetensors"
    small_trainer().save_weights(file)
    network = lenet((8, 8, 1), 3, channels=(4, 6), hidden=13, dropout=0)
    other = Trainer(network.logits)
    before = state_of(other)
    with pytest.raises(mpsnn.WeightError) as caught:
        other.load_weights(file)
    assert caught.value.label == "fc1"
    for part in ('"fc1"', "13 x 2 x 2 x 6", "12 x 2 x 2 x 6"):
        assert part in str(caught.value)
    assert same_bits(before, state_of(other))
    with pytest.raises(mpsnn.WeightError, match='does not fit "fc"(.|\n)*no such tensor(.|\n)*conv1, conv2, fc1, fc2'):
        fully_connected_trainer().load_weights(file)


@pytest.mark.parametrize(
    ("option", "saved", "now"),
    [
        ("seed", 3, 4),
        ("batch_size", 16, 8),
        ("learning_rate_decay", 1.0, 0.5),
        ("optimizer", "adam", "sgd"),
        ("learning_rate", 0.01, 0.02),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, option, saved, now):
    content = checkpoint_bytes(tmp_path)
    assert content
    trainer = small_trainer(**{"seed": 3, option: now})
    before = state_of(trainer)
    with pytest.raises(mpsnn.OptionError, match="belongs to a training with other settings") as caught:
        trainer.load_checkpoint(tmp_path / "good.safetensors")
    if option in ("seed", "batch_size", "learning_rate_decay"):
        assert f"'{option}': {saved}" in caught.value.expected
        assert f"'{option}': {now}" in caught.value.actual
    assert same_bits(before, state_of(trainer))


def test_an_interrupted_epoch_continues_on_as_many_images_only(tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    trainer = small_trainer()
    interrupt_at(trainer, 2)
    with pytest.raises(TrainingInterrupted):
        trainer.fit(IMAGES, LABELS, 1, checkpoint=file, progress=False)
    trainer.load_checkpoint(file)
    with pytest.raises(mpsnn.OptionError, match="70 images(.|\n)*60 images"):
        trainer.fit(IMAGES[:60], LABELS[:60], 1, progress=False)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "weights.safetensors"
    write_atomically(file, b"old")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))  # as good as a full disk
    try:
        with pytest.raises(mpsnn.FileError, match=r"weights\.safetensors cannot be written(.|\n)*File too large"):
            write_atomically(file, bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]
    for target in (tmp_path / "no folder" / "file", tmp_path):
        with pytest.raises(mpsnn.FileError, match="cannot be written"):
            write_atomically(target, b"new")
    assert list(tmp_path.iterdir()) == [file]
