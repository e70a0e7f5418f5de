# SPDX-License-Identifier: Apache-2.0
"""The text of errors that the Python part raises: in the form of those of the compiled part."""

from __future__ import annotations

from typing import Any

import mpsnn.errors


def make_error(
    kind: str,
    sentence: str,
    *,
    expected: Any = "",
    actual: Any = "",
    hint: str = "",
    node: str = "",
    label: str = "",
) -> Exception:
    """An error of the package's tree: one sentence, then the facts, then a hint.

    >>> print(make_error("OptionError", "seed is out of range.", expected="0 or more", actual=-1))
    seed is out of range.
        expected  0 or more
        actual    -1
    """
    facts = {"expected": str(expected), "actual": str(actual), "try": hint}
    text = sentence + "".join(f"\n    {name:<10}{value}" for name, value in facts.items() if value)
    return getattr(mpsnn.errors, kind)(text, node=node, label=label, expected=str(expected), actual=str(actual))


def shape_text(shape: tuple[int, ...]) -> str:
    """Sizes as errors show them.

    >>> shape_text((2, 8, 8, 1))
    '2 x 8 x 8 x 1'
    """
    return " x ".join(str(size) for size in shape)
