# SPDX-License-Identifier: Apache-2.0
"""The oracle tests use the helpers and settings of tests/python."""

import os
import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent.parent / "python"))

settings.register_profile("mpsnn", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI")))
settings.load_profile("mpsnn")
