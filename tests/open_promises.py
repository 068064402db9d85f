"""What the package promises and does not keep yet: tests that are expected to fail.

Each line is a test and a pattern of its parameters. They run all the same, and pytest names those
that pass: then the line goes.
"""

from __future__ import annotations

import re

import pytest

Z_LOSS = "the logsumexp near 0 of a row whose label is not the maximum, squared by z_loss"
SMALLEST = "sums and entries whose parts lie below the smallest normal number"
ENDS = "z_loss at the ends of the range"
APART = "4.5 units where multiply-adds are not fused"

OPEN: tuple[tuple[str, str, str], ...] = (
    ("test_losses", r"float(32|64)-weight\+z-loss-(last|middle)", Z_LOSS),
    ("test_losses", r"baseline-float64-(hot|smoothing)\+z-loss", APART),
    ("test_losses_of_half_types", r"bfloat16-weight\+z-loss-(last|middle)", Z_LOSS),
    ("test_a_factor_of_all_weights_leaves_the_mean", "baseline-float64-probabilities", APART),
    ("test_sizes", r"f4-\[\[130, 0\]\]-\[0\]|f8-\[\[760, 0\]\]", SMALLEST),
    ("test_sizes", r"0, 100\]\].*1e-30|1e-20", SMALLEST),
    ("test_temperature_at_the_ends_of_the_range", r"e\+38-1000|e\+308-1(000|e)", SMALLEST),
    ("test_z_loss_at_the_ends_of_the_range", r"\[0, 1\]-0\.4--1-", ENDS),
)


def mark(items: list[pytest.Item]) -> None:
    """Mark the tests of these files that are expected to fail."""
    for item in items:
        if item.path.stem not in ("test_digits", "test_cases"):
            continue
        name, _, parameters = item.name.partition("[")
        for test, pattern, reason in OPEN:
            if name == test and re.search(pattern, parameters):
                item.add_marker(pytest.mark.xfail(reason=reason, strict=False))
