"""What the package promises and does not keep yet: tests that are expected to fail.

Each line is a test and a pattern of its parameters behind the instruction set. They run all the
same, and pytest names those that pass: then the line goes.
"""

from __future__ import annotations

import re

import pytest

Z_LOSS = "z_loss with 4 units of a result that cancels"
SMALLEST = "sums and entries whose parts lie below the smallest normal number"
HALF_SCALED = "half types take another way where weights are extreme, which rounds differently"

OPEN: tuple[tuple[str, str, str], ...] = (
    ("test_losses", "z-loss", Z_LOSS),
    ("test_losses", "float(32|64)-.*(cold|hot)", SMALLEST),
    ("test_losses_of_half_types", "bfloat16-.*z-loss", Z_LOSS),
    ("test_reductions", "z-loss", Z_LOSS),
    ("test_backward", "", "the sums of backward passes where the total cancels"),
    ("test_log_softmax_backward_at_the_true_class", "1e-12", "a sum that cancels to 1e-12"),
    ("test_softmax", "bfloat16-0.3", SMALLEST),
    ("test_binary_losses", "float32-0.99609375-0.001-1000000", "four factors, each rounded"),
    ("test_sizes", r"(88|100|130|760), 0\]|1e-20|1e-30", SMALLEST),
    ("test_sizes_of_binary_losses", "", SMALLEST),
    ("test_sizes_of_likelihoods", "", "class weights 600 powers of ten apart"),
    ("test_temperature_at_the_ends_of_the_range", "", SMALLEST),
    ("test_z_loss_at_the_ends_of_the_range", "", "z_loss at the ends of the range"),
    ("test_a_factor_of_all_weights_leaves_the_mean", "-(bfloat16|float64)-", HALF_SCALED),
    ("test_no_weight_moves_the_bits_of_another_row", "-float16-", HALF_SCALED),
    ("test_logsumexp_is_one_function", "float(32|64)-[CF]", "b and return_sign go by plain NumPy"),
    ("test_long_doubles_have_the_same_bits_in_any_order", "", "NumPy sums in the order of memory"),
    ("test_b_broadcasts_and_promotes_as_in_scipy", "", "b follows x, not SciPy"),
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
