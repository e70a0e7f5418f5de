# SPDX-License-Identifier: Apache-2.0
"""Every public name of mpsnn: the compiled classes, the errors, and what is written in Python."""

import enum as _enum

from . import _mpsnn
from ._mpsnn import *
from .errors import DeviceError, Error, FileError, GraphError, OptionError, ShapeError, WeightError  # noqa: F401

# Apple's flat constants too, so that code written for other bindings runs: MPSCNNNeuronTypeReLU is MPSCNNNeuronType.ReLU.
for _type in list(vars(_mpsnn).values()):
    if isinstance(_type, type) and issubclass(_type, _enum.Enum) and _type.__name__.startswith("MPS"):
        globals().update(
            # MPSFloatDataTypeSignBit, of MPSFloatDataTypeBit, does not begin with its type's name: it is whole as it is.
            {
                _name if _name.startswith("MPS") else _type.__name__ + _name: _member
                for _name, _member in _type.__members__.items()
                if _name != "None_"
            }
        )


# What is written in Python, and in which module. These import this package themselves, so they come when they are asked for.
_MODULES = {
    "Trainer": "trainer",
    "Dataset": "datasets",
    "digits": "datasets",
    "fashion_mnist": "datasets",
    "check_gradients": "checking",
    "GradientReport": "checking",
    "load_weights": "checkpoint",
    "save_weights": "checkpoint",
}


def __getattr__(name):
    from importlib import import_module

    if name not in _MODULES:
        raise AttributeError(f"module 'mpsnn' has no attribute {name!r}", name=name)
    return getattr(import_module("mpsnn." + _MODULES[name]), name)


def __dir__():
    return sorted({*globals(), *_MODULES})
