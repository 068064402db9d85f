"""What the package promises and does not keep yet: tests that are expected to fail.

Each line is a test and a pattern of its parameters behind the instruction set. They run all the
same, and pytest names those that pass: then the line goes.
"""

from __future__ import annotations

import re

import pytest

Z_LOSS = "z_loss with 4 units of a result that cancels"
SMALLEST = "sums and entries whose parts lie below the smallest normal number"

OPEN: tuple[tuple[str, str, str], ...] = (
    ("test_losses", r"(weight|hot|cold)\+z-loss|float32-z-loss\+where", Z_LOSS),
    ("test_losses", r"float32-.*cold|float64-.*hot", SMALLEST),
    ("test_losses_of_half_types", r"bfloat16-weight\+z-loss", Z_LOSS),
    ("test_reductions", r"float64-sum-.*z-loss", Z_LOSS),
    ("test_sizes", r"f4-\[\[130, 0\]\]|f8-\[\[760, 0\]\]|1e-20|1e-30", SMALLEST),
    ("test_temperature_at_the_ends_of_the_range", r"e\+(38|308)-", SMALLEST),
    ("test_z_loss_at_the_ends_of_the_range", r"-0\.4-", "z_loss at the ends of the range"),
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
