# SPDX-License-Identifier: Apache-2.0
"""The trainer: learning, reproducibility, and what stays whole when something fails."""

import mpsnn
import numpy as np
import pytest
from mpsnn.datasets import digits
from mpsnn.models import lenet
from mpsnn.trainer import Trainer
from training_cases import IMAGES, LABELS, TEST, fully_connected_trainer, same_bits, small_trainer, state_of

EPSILON = np.finfo(np.float32).eps


# --- learning


def test_digits_are_learned():
    pytest.importorskip("sklearn")
    data = digits()
    network = lenet(data.image_shape, data.classes, hidden=64, dropout=0)
    trainer = Trainer(network.logits, learning_rate=0.002, batch_size=32)
    test = data.test_images, data.test_labels
    history = trainer.fit(data.train_images, data.train_labels, 5, test=test, progress=False)
    assert [record["epoch"] for record in history] == [1, 2, 3, 4, 5]
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["test_accuracy"] > 0.95
    assert trainer.evaluate(*test).accuracy == history[-1]["test_accuracy"]


@pytest.mark.parametrize(("optimizer", "rate"), [("adam", 0.01), ("sgd", 0.1), ("momentum", 0.03), ("rmsprop", 0.003)])
def test_every_optimizer_learns(optimizer, rate):
    trainer = small_trainer(dropout=0, optimizer=optimizer, learning_rate=rate)
    history = trainer.fit(IMAGES, LABELS, 15, progress=False)
    assert history[-1]["loss"] < history[0]["loss"] / 2
    assert trainer.evaluate(*TEST).accuracy > 0.8


def test_the_loss_is_the_mean_cross_entropy_before_the_step():
    trainer = small_trainer(dropout=0)
    images, labels = IMAGES[:16], LABELS[:16]
    logits = trainer.predict(images).reshape(16, 3).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(16), labels]
    step = trainer.step(images, labels)
    tolerance = np.abs(losses).max() * np.sqrt(16 * 3) * EPSILON
    assert abs(step.loss - losses.mean()) <= tolerance
    assert step.correct == (logits.argmax(axis=1) == labels).sum()


def test_a_smaller_batch_follows_the_mean_of_its_own_images():
    """Batch 16 with 4 images is batch 4: 1/16 * 16/4 is 1/4, exactly, so even the bits agree."""
    large, small = (small_trainer(dropout=0, optimizer="sgd", batch_size=size) for size in (16, 4))
    steps = [trainer.step(IMAGES[:4], LABELS[:4]) for trainer in (large, small)]
    assert steps[0] == steps[1]
    assert same_bits(state_of(large), state_of(small))


def test_no_image_is_left_out():
    seen = []
    trainer = small_trainer()
    step = trainer._step
    trainer._step = lambda images, targets, indices: seen.append(indices) or step(images, targets, indices)
    trainer.fit(IMAGES, LABELS, 2, progress=False)
    sizes = [len(indices) for indices in seen]
    assert sizes == [16, 16, 16, 16, 6] * 2
    epochs = np.concatenate(seen[:5]), np.concatenate(seen[5:])
    assert all(np.array_equal(np.sort(order), np.arange(70)) for order in epochs)
    assert not np.array_equal(*epochs)


def test_the_learning_rate_decays_by_epoch():
    trainer = small_trainer(optimizer="sgd", learning_rate=0.5, learning_rate_decay=0.5)
    trainer.fit(IMAGES, LABELS, 3, progress=False)
    assert [source.optimizer.learning_rate for source in trainer.sources.values()] == [0.125] * 4


def test_optimizers_of_the_data_sources_can_be_kept():
    source = mpsnn.ConvolutionWeights(mpsnn.MPSCNNConvolutionDescriptor(8, 8, 1, 3), label="fc", seed=1)
    source.optimizer = mpsnn.MPSNNOptimizerStochasticGradientDescent(mpsnn.default_device(), 0.25)
    logits = mpsnn.MPSCNNFullyConnectedNode(mpsnn.MPSNNImageNode("image"), source)
    trainer = Trainer(logits, optimizer=None, batch_size=16)
    trainer.fit(IMAGES, LABELS, 1, progress=False)
    assert type(source.optimizer).__name__ == "MPSNNOptimizerStochasticGradientDescent"
    assert source.optimizer.learning_rate == 0.25


def test_a_layer_that_is_not_trained_keeps_its_weights():
    source = mpsnn.ConvolutionWeights(mpsnn.MPSCNNConvolutionDescriptor(3, 3, 1, 2), label="frozen", seed=1)
    last = mpsnn.ConvolutionWeights(mpsnn.MPSCNNConvolutionDescriptor(8, 8, 2, 3), label="fc", seed=2)
    convolution = mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode("image"), source)
    convolution.training_style = mpsnn.MPSNNTrainingStyle.UpdateDeviceNone
    trainer = Trainer(mpsnn.MPSCNNFullyConnectedNode(convolution.result_image, last), batch_size=16)
    frozen, trained = np.array(source.values["weights"]), np.array(last.values["weights"])
    trainer.fit(IMAGES, LABELS, 1, progress=False)
    assert np.array_equal(frozen, source.values["weights"])
    assert not np.array_equal(trained, last.values["weights"])


def test_targets_need_not_be_classes():
    """Learns the mean of an image: squared error, one logit."""
    source = mpsnn.ConvolutionWeights(mpsnn.MPSCNNConvolutionDescriptor(8, 8, 1, 1), label="fc", initializer="zeros")
    logits = mpsnn.MPSCNNFullyConnectedNode(mpsnn.MPSNNImageNode("image"), source)
    loss = mpsnn.MPSCNNLossDescriptor(
        mpsnn.MPSCNNLossType.MeanSquaredError, mpsnn.MPSCNNReductionType.Sum, weight=1 / 16
    )
    trainer = Trainer(logits, loss=loss, optimizer="sgd", learning_rate=0.01, batch_size=16)
    targets = IMAGES.mean(axis=(1, 2), keepdims=True)
    history = trainer.fit(IMAGES, targets, 20, progress=False)
    assert history[-1]["accuracy"] is None
    assert history[-1]["loss"] < history[0]["loss"] / 10
    with pytest.raises(mpsnn.OptionError, match="only classes can be right or wrong"):
        trainer.evaluate(IMAGES, targets)


def test_predictions_do_not_depend_on_the_batch():
    trainer = small_trainer()
    trainer.fit(IMAGES, LABELS, 1, progress=False)
    together = trainer.predict(IMAGES)
    assert together.shape == (70, 1, 1, 3)
    for count in (1, 16, 17):
        assert np.array_equal(trainer.predict(IMAGES[:count]), together[:count])
    assert trainer.predict(IMAGES[:0]).shape == (0, 1, 1, 3)


# --- the same bits


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    states = []
    for seed in (3, 3, 4):
        trainer = small_trainer(seed=seed)
        trainer.fit(IMAGES, LABELS, 2, progress=False)
        states.append(state_of(trainer))
    assert same_bits(states[0], states[1])
    assert not same_bits(states[0], states[2])


def test_the_number_of_threads_does_not_matter():
    before, states = mpsnn.num_threads(), []
    try:
        for threads in (1, 2, 3):
            mpsnn.set_num_threads(threads)
            trainer = small_trainer()
            trainer.fit(IMAGES, LABELS, 2, progress=False)
            states.append(state_of(trainer))
    finally:
        mpsnn.set_num_threads(before)
    assert same_bits(states[0], states[1])
    assert same_bits(states[0], states[2])


# --- failures


def remember_states(trainer):
    """The state after each complete step, the last one at the end."""
    states, step = [state_of(trainer)], trainer._step

    def remembering(*arguments):
        result = step(*arguments)
        states.append(state_of(trainer))
        return result

    trainer._step = remembering
    return states


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_image_that_is_not_finite_is_named_and_stops_before_its_step(tmp_path, value):
    images = IMAGES.copy()
    images[33, 2, 5, 0] = value
    trainer = small_trainer()
    states = remember_states(trainer)
    file = tmp_path / "checkpoint.safetensors"
    with pytest.raises(mpsnn.OptionError) as caught:
        trainer.fit(images, LABELS, 2, checkpoint=file, progress=False)
    text = str(caught.value)
    assert "training image 33 (image " in text
    assert f"of batch {len(states)} in epoch 1" in text
    assert f"{value} at y 2, x 5, channel 0" in text
    assert same_bits(states[-1], state_of(trainer))
    assert not file.exists()
    # and the trainer goes on as if the bad image had never been there
    assert np.isfinite(trainer.step(IMAGES[:16], LABELS[:16]).loss)


def test_a_step_that_overflows_names_a_node_and_leaves_everything_as_it_was():
    """Finite images whose products are not: the graph's own trap."""
    trainer = small_trainer()
    trainer.step(IMAGES[:16], LABELS[:16])
    before = state_of(trainer)
    with pytest.raises(mpsnn.DeviceError, match="conv1|relu1|conv2|fc1|fc2|loss|Loss"):
        trainer.step(np.full((16, 8, 8, 1), 3e38, np.float32), LABELS[:16])
    assert same_bits(before, state_of(trainer))
    assert np.isfinite(trainer.step(IMAGES[16:32], LABELS[16:32]).loss)


def test_large_finite_images_are_not_mistaken_for_infinite_ones():
    trainer = fully_connected_trainer(batch_size=2)
    trainer._require_finite(np.full((2, 8, 8, 1), 3e38, np.float32), None)


class OwnWeights(mpsnn.MPSCNNConvolutionDataSource):
    """A user's data source, updated in CPU style; it raises in its update number `last`, counted from 1."""

    def __init__(self, last=None):
        super().__init__()
        self.values = np.random.default_rng(0).normal(size=(3, 8, 8, 2)).astype(np.float32) / 8
        self.last, self.updates = last, 0

    def label(self):
        return "own"

    def descriptor(self):
        return mpsnn.MPSCNNConvolutionDescriptor(8, 8, 2, 3)

    def weights(self):
        return self.values

    def bias_terms(self):
        return None

    def update(self, gradient_state, source_state):
        self.updates += 1
        if self.updates == self.last:
            raise RuntimeError("the disk is full")
        self.values = self.values - np.float32(0.1) * gradient_state.gradient_for_weights.reshape(3, 8, 8, 2)
        return True


def trainer_with_own_weights(last=None):
    own = OwnWeights(last)
    first = mpsnn.ConvolutionWeights(mpsnn.MPSCNNConvolutionDescriptor(3, 3, 1, 2), label="conv", seed=1)
    node = mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode("image"), first)
    logits = mpsnn.MPSCNNFullyConnectedNode(node.result_image, own)
    node.training_style = logits.training_style = mpsnn.MPSNNTrainingStyle.UpdateDeviceCPU
    return Trainer(logits, batch_size=16), first, own


def test_data_sources_of_your_own_are_trained_but_not_saved(tmp_path):
    trainer, _, own = trainer_with_own_weights()
    history = trainer.fit(IMAGES, LABELS, 6, progress=False)
    assert own.updates == 6 * 5
    assert history[-1]["loss"] < history[0]["loss"]
    with pytest.raises(mpsnn.WeightError, match='"own" cannot be saved') as caught:
        trainer.save_weights(tmp_path / "weights.safetensors")
    assert caught.value.label == "own"
    assert caught.value.actual == "OwnWeights"


def test_a_data_source_that_raises_leaves_the_others_as_they_were():
    trainer, first, own = trainer_with_own_weights(last=3)
    for _ in range(2):
        trainer.step(IMAGES[:16], LABELS[:16])
    values, history, step = (
        np.array(first.values["weights"]),
        [np.array(v) for v in first.history],
        first.optimizer.time_step,
    )
    own_values = own.values
    with pytest.raises(RuntimeError, match="the disk is full"):
        trainer.step(IMAGES[16:32], LABELS[16:32])
    assert np.array_equal(values, first.values["weights"])
    assert all(np.array_equal(old, new) for old, new in zip(history, first.history, strict=True))
    assert first.optimizer.time_step == step
    assert own.values is own_values


def test_the_reference_engine_makes_the_same_step():
    trainers = [
        small_trainer(dropout=0, optimizer="sgd", learning_rate=0.1, device=mpsnn.Device(name))
        for name in ("cpu", "reference")
    ]
    before = state_of(trainers[0])
    fast, exact = (trainer.step(IMAGES[:16], LABELS[:16]) for trainer in trainers)
    # The longest sums: a weight gradient of the first convolution, over 16 images of 8 x 8 pixels.
    growth = np.sqrt(16 * 8 * 8) * EPSILON
    assert abs(fast.loss - exact.loss) <= exact.loss * growth
    first, second = (state_of(trainer) for trainer in trainers)
    for name, old in before.items():
        change = np.abs(second[name] - old).max()
        tolerance = np.abs(old).max() * EPSILON + change * growth
        assert np.abs(first[name] - second[name]).max() <= tolerance, name


def test_dropout_in_the_test_graph_is_refused():
    source = mpsnn.ConvolutionWeights(mpsnn.MPSCNNConvolutionDescriptor(8, 8, 1, 3), label="fc")
    dropout = mpsnn.MPSCNNDropoutNode(mpsnn.MPSNNImageNode("image"), 0.5, 1)
    dropout.label = "drop"
    logits = mpsnn.MPSCNNFullyConnectedNode(dropout.result_image, source)
    with pytest.raises(mpsnn.OptionError, match='"drop" would drop values while testing') as caught:
        Trainer(logits)
    assert caught.value.label == "drop"
    assert "inference_logits" in str(caught.value)


def test_two_data_sources_with_one_label_are_refused():
    first = mpsnn.ConvolutionWeights(mpsnn.MPSCNNConvolutionDescriptor(3, 3, 1, 2), label="same")
    second = mpsnn.ConvolutionWeights(mpsnn.MPSCNNConvolutionDescriptor(8, 8, 2, 3), label="same")
    node = mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode("image"), first)
    with pytest.raises(mpsnn.WeightError, match='label "same"'):
        Trainer(mpsnn.MPSCNNFullyConnectedNode(node.result_image, second))


@pytest.mark.parametrize(
    ("labels", "error", "text"),
    [
        (LABELS[:69], mpsnn.ShapeError, "70 labels(.|\n)*69 labels"),
        (LABELS + 1, mpsnn.OptionError, "integers from 0 to 2(.|\n)*from 1 to 3"),
        (LABELS - 1, mpsnn.OptionError, "from -1 to 1"),
        (LABELS.astype(np.float32), mpsnn.OptionError, "integers from 0 to 2(.|\n)*float32"),
        (np.zeros((70, 1, 1, 4), np.float32), mpsnn.ShapeError, "1 x 1 x 3(.|\n)*1 x 1 x 4"),
    ],
    ids=["too few", "too large", "negative", "floats", "shape"],
)
def test_labels_that_do_not_fit_are_refused(labels, error, text):
    trainer = small_trainer()
    with pytest.raises(error, match=text):
        trainer.fit(IMAGES, labels, 1, progress=False)


def test_images_that_do_not_fit_are_refused():
    trainer = small_trainer()
    with pytest.raises(mpsnn.ShapeError, match="70 x 8 x 8"):
        trainer.fit(IMAGES[..., 0], LABELS, 1, progress=False)
    with pytest.raises(mpsnn.OptionError, match="1 to 16 images(.|\n)*17 images"):
        trainer.step(IMAGES[:17], LABELS[:17])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch_size": 0}, "batch_size is out of range"),
        ({"seed": -1}, "seed is out of range"),
        ({"learning_rate_decay": 0.0}, "learning_rate_decay is out of range"),
        ({"learning_rate_decay": 1.5}, "learning_rate_decay is out of range"),
        ({"optimizer": "adagrad"}, "adam, sgd, momentum, rmsprop"),
    ],
)
def test_options_out_of_range_are_refused(options, text):
    with pytest.raises(mpsnn.OptionError, match=text):
        fully_connected_trainer(**options)


@pytest.mark.parametrize("options", [{"hidden": 0}, {"dropout": 1.0}, {"channels": (0, 4)}])
def test_networks_that_cannot_be_built_are_refused(options):
    with pytest.raises(mpsnn.OptionError, match="out of range"):
        lenet((8, 8, 1), 3, **options)


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (9, 15, 3), (1, 1, 2)])
def test_a_lenet_fits_images_of_any_size(shape):
    trainer = Trainer(lenet(shape, 5, channels=(3, 4), hidden=7, dropout=0).logits, batch_size=2)
    images = np.random.default_rng(0).random((3, *shape), dtype=np.float32)
    trainer.fit(images, np.array([0, 1, 4]), 1, progress=False)
    assert trainer.predict(images).shape == (3, 1, 1, 5)
