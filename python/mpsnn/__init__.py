# SPDX-License-Identifier: Apache-2.0
"""CNN graphs written with the node classes of Metal Performance Shaders: build, differentiate, check and train them anywhere.

>>> import mpsnn
>>> image = mpsnn.MPSNNImageNode()
>>> pool = mpsnn.MPSCNNPoolingMaxNode(image, filter_size=2)
>>> pool.kernel_width, pool.kernel_height
(2, 2)
"""

# Importing this package imports nothing else: names arrive from mpsnn.api when they are first asked for. So `mpsnn --cmakedir`
# works while the compiled module does not, and build tools may import this package to learn its folder.


def _api():
    from importlib import import_module

    return import_module("mpsnn.api")  # `from . import api` would ask __getattr__ below, and that us


def _public_names():
    from types import ModuleType

    return [
        name for name, value in vars(_api()).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    ]


def __getattr__(name):
    if name == "__version__":
        from importlib.metadata import version

        value = version("mpsnn")
    elif name == "__all__":
        value = _public_names()
    else:
        # Python asks here for dunders and submodules too, before it looks elsewhere.
        value = None if name.startswith("_") or name == "api" else getattr(_api(), name, None)
        if value is None:
            raise AttributeError(f"module 'mpsnn' has no attribute {name!r}", name=name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({"__version__", *_public_names()})
