# SPDX-License-Identifier: Apache-2.0
"""The benchmark behind `mpsnn bench`: layers and training steps against other frameworks.

Every side runs in a process of its own (worker.py) and is timed in short slots, turn by turn, so that a noisy moment of the machine
meets all of them. Ratios are paired: each round gives one ratio, and their median is reported with its quartiles.
"""
