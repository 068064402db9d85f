"""Derive the polynomial coefficients of ``softce_fast/_kernels/numbers.pxd``.

Fits in 60 digits, close to the best polynomial of their degree:

* ``exp(r) = 1 + r + r**2 * q(r)`` on ``|r| <= ln(2)/(2*STEPS)``, a little widened, by Lawson's
  iteration (least squares, reweighted towards the least maximum of the relative error); for the
  half types ``1 + r * q(r)``;
* ``log((1 + s)/(1 - s)) = 2*s + s**3 * w(s**2)`` while the argument is in ``[1/sqrt(2), sqrt(2)]``,
  by a Chebyshev fit.

Run ``python tools/coefficients.py``; it needs mpmath alone.
"""

from mpmath import (
    atanh,
    chebyfit,
    cos,
    exp,
    log,
    lu_solve,
    matrix,
    mp,
    mpf,
    nstr,
    pi,
    polyval,
    sqrt,
)

mp.dps = 60


def exponential(degree: int, steps: int, first: int = 2) -> list[mpf]:
    """Return the coefficients of r**degree .. r**first in exp(r); those before are Taylor's."""
    bound = log(mpf(2)) / (2 * steps) * mpf("1.0005")
    count = degree - first + 1
    points = [bound * cos(pi * (2 * k + 1) / 240) for k in range(120)]
    weights = [mpf(1) / 120] * 120
    powers = [[point**k for k in range(count)] for point in points]
    values = [(exp(r) - 1 - (r if first == 2 else 0)) / r**first for r in points]
    relative = [r**first / exp(r) for r in points]
    for _ in range(40):
        normal, right = matrix(count, count), matrix(count, 1)
        for power, value, scale, weight in zip(powers, values, relative, weights, strict=True):
            for i in range(count):
                right[i] += weight * scale**2 * power[i] * value
                for j in range(count):
                    normal[i, j] += weight * scale**2 * power[i] * power[j]
        solution = list(lu_solve(normal, right))[::-1]
        errors = [
            abs(scale * (polyval(solution, r) - value))
            for r, value, scale in zip(points, values, relative, strict=True)
        ]
        total = sum(weight * error for weight, error in zip(weights, errors, strict=True))
        weights = [w * error / total for w, error in zip(weights, errors, strict=True)]
    return solution


def logarithm(terms: int) -> list[mpf]:
    """Return the coefficients of s**(2*terms + 1) .. s**3 in log((1 + s)/(1 - s))."""
    bound = ((sqrt(mpf(2)) - 1) / (sqrt(mpf(2)) + 1)) ** 2 * mpf("1.001")

    def tail(z: mpf) -> mpf:
        s = sqrt(z)
        return 2 * (atanh(s) - s) / s**3 if z > mpf(10) ** -25 else mpf(2) / 3

    return list(chebyfit(tail, [0, bound], terms))


def main() -> None:
    for name, digits, degree, steps, first in [
        ("float32", 10, 6, 1, 2),
        ("float32", 10, 4, 4, 2),
        ("half types", 10, 3, 4, 1),
        ("float64", 18, 11, 1, 2),
    ]:
        values = exponential(degree, steps, first)
        half = log(mpf(2)) / (2 * steps)
        points = [half * k / 500 for k in range(-500, 501)]
        linear = first - 1  # the coefficient of r, where it is not fitted
        worst = max(
            abs((1 + linear * r + r**first * polyval(values, r)) / exp(r) - 1) for r in points
        )
        print(f"exp {name}, {steps} steps: relative error 2**{nstr(log(worst, 2), 4)}")
        print("   ", [nstr(value, digits) for value in values])
    for name, digits, terms in [("float32", 10, 4), ("float64", 18, 8)]:
        values = logarithm(terms)
        points = [mpf("0.1716") * k / 500 for k in range(1, 501)]
        worst = max(
            abs((2 * s + s**3 * polyval(values, s**2)) / (2 * atanh(s)) - 1) for s in points
        )
        print(f"log {name}: relative error 2**{nstr(log(worst, 2), 4)}")
        print("   ", [nstr(value, digits) for value in values])


if __name__ == "__main__":
    main()
