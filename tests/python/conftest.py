# SPDX-License-Identifier: Apache-2.0
"""Settings that all tests share."""

import os

from hypothesis import settings

# No deadline: a first call loads and touches memory, and a busy machine is not a failure. In CI the same cases every time.
settings.register_profile("mpsnn", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI")))
settings.load_profile("mpsnn")
