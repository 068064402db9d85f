"""Derive the polynomial coefficients of ``softce_fast/_kernels/numbers.pxd``.

Fits in 60 digits, close to the best polynomial of their degree:

* ``exp(r) = 1 + r + r**2 * q(r)`` on ``|r| <= ln(2)/(2*STEPS)``, a little widened, by Lawson's
  iteration (least squares, reweighted towards the least maximum of the relative error); for the
  half types ``1 + r * q(r)``;
* ``log((1 + s)/(1 - s)) = 2*s + s**3 * w(s**2)`` while the argument is in ``[1/sqrt(2), sqrt(2)]``,
  by a Chebyshev fit.

Run ``python tools/coefficients.py``; it needs mpmath alone.
"""

from collections.abc import Iterable

import mpmath
from mpmath import mp, mpf, polyval

mp.dps = 60


def exponential(degree: int, steps: int, first: int = 2) -> list[mpf]:
    """Return the coefficients of r**degree .. r**first in exp(r); those before are Taylor's."""
    bound = mpmath.log(2) / (2 * steps) * mpf("1.0005")
    points = [bound * mpmath.cos(mp.pi * (2 * k + 1) / 240) for k in range(120)]
    values = [(mpmath.exp(r) - 1 - (r if first == 2 else 0)) / r**first for r in points]
    relative = [r**first / mpmath.exp(r) for r in points]
    powers = mpmath.matrix([[r**k for k in range(degree - first + 1)] for r in points])
    weights = [mpf(1) / 120] * 120
    for _ in range(40):
        scaled = [w * scale**2 for w, scale in zip(weights, relative, strict=True)]
        weighted = mpmath.diag(scaled) * powers
        solution = mpmath.lu_solve(weighted.T * powers, weighted.T * mpmath.matrix(values))
        residuals = powers * solution - mpmath.matrix(values)
        errors = [abs(scale * error) for scale, error in zip(relative, residuals, strict=True)]
        total = mpmath.fdot(weights, errors)
        weights = [w * error / total for w, error in zip(weights, errors, strict=True)]
    return list(solution)[::-1]


def logarithm(terms: int) -> list[mpf]:
    """Return the coefficients of s**(2*terms + 1) .. s**3 in log((1 + s)/(1 - s))."""
    root = mpmath.sqrt(2)

    def tail(z: mpf) -> mpf:
        s = mpmath.sqrt(z)
        return 2 * (mpmath.atanh(s) - s) / s**3 if z > mpf(10) ** -25 else mpf(2) / 3

    return list(mpmath.chebyfit(tail, [0, ((root - 1) / (root + 1)) ** 2 * mpf("1.001")], terms))


def show(what: str, digits: int, values: list[mpf], errors: Iterable[mpf]) -> None:
    """Print the coefficients and the largest relative error of what they make."""
    print(f"{what}: relative error 2**{mpmath.nstr(mpmath.log(max(map(abs, errors)), 2), 4)}")
    print("   ", [mpmath.nstr(value, digits) for value in values])


def main() -> None:
    for name, digits, degree, steps, first in [
        ("float32", 10, 6, 1, 2),
        ("float32", 10, 4, 4, 2),
        ("half types", 10, 3, 4, 1),
        ("float64", 18, 11, 1, 2),
    ]:
        q = exponential(degree, steps, first)
        points = [mpmath.log(2) / (2 * steps) * k / 500 for k in range(-500, 501)]
        linear = first - 1  # the coefficient of r, where it is not fitted
        values = [1 + linear * r + r**first * polyval(q, r) for r in points]
        errors = [v / mpmath.exp(r) - 1 for v, r in zip(values, points, strict=True)]
        show(f"exp {name}, {steps} steps", digits, q, errors)
    points = [mpf("0.1716") * k / 500 for k in range(1, 501)]
    for name, digits, terms in [("float32", 10, 4), ("float64", 18, 8)]:
        w = logarithm(terms)
        values = [2 * s + s**3 * polyval(w, s**2) for s in points]
        errors = [v / (2 * mpmath.atanh(s)) - 1 for v, s in zip(values, points, strict=True)]
        show(f"log {name}", digits, w, errors)


if __name__ == "__main__":
    main()
