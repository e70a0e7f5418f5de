# SPDX-License-Identifier: Apache-2.0
"""What goes wrong, by kind. The compiled module raises these too."""


class Error(Exception):
    """Base of every error of mpsnn: one sentence, then the facts, then a hint.

    Attributes:
        node: class name of the node concerned, or "".
        label: its label, or the name that the graph gave it.
        expected: the shape or value that would be right.
        actual: the shape or value that was given.
    """

    def __init__(self, message, *, node="", label="", expected="", actual=""):
        super().__init__(message)
        self.node = node
        self.label = label
        self.expected = expected
        self.actual = actual

    def __str__(self):
        return str(self.args[0]) if self.args else ""


class ShapeError(Error, ValueError):
    """Sizes or channel counts that do not fit together."""


class OptionError(Error, ValueError):
    """A parameter outside its range, or a combination that has no meaning."""


class WeightError(Error, ValueError):
    """A data source whose values, sizes or callbacks are wrong."""


class GraphError(Error, RuntimeError):
    """Nodes that cannot form a graph."""


class DeviceError(Error, RuntimeError):
    """A device or command buffer that cannot do what is asked, or a step that failed while it ran."""


class FileError(Error, OSError):
    """A file that is missing, truncated, or not what it should be."""
