"""Multicomplex numbers of order 1 and 2, for first and second derivatives of scalar functions without cancellation.

Order 0 are the real numbers, order n are z = a + b iₙ with a, b of order n − 1 and iₙ² = −1; i₁ and i₂ commute. For a
function that is analytic at x (CSDD, eqs. 4–7)

    f(x + h i₁)        = f(x) + f′(x) h i₁ + O(h²)                                      f′ = Im₁/h
    f(x + h i₁ + h i₂) = f(x) + f′(x) h (i₁ + i₂) + f″(x) h² i₁i₂ + O(h²)               f″ = Im₁₂/h²

and as long as numbers are kept as their 2 or 4 real components, nothing is subtracted from what is nearly equal to
it: h may be as small as 1e-150. That is a property of this form, not of the numbers. They are also pairs of complex
numbers (with e± = ½(1 ± i₁i₂): x + h(i₁ + i₂) = x e₊ + (x + 2h i₁) e₋), which takes half the products, but then

    f″ = ½ (f(x) − Re f(x + 2h i₁))/h²,

a difference that cancels as any other (:func:`idempotent`, erratum E-cs-2).

Functions are written with operators and with the functions of this module, and take numbers of any order:

>>> f = lambda x: exp(x) / (x**2 + 1)
>>> f(0.0), first(f, 0.0), second(f, 0.0)
(1.0, 1.0, -1.0)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reprolib.errors import InvalidInput

STEP = 1e-20  # h; its square must not underflow, nor h² f″


@dataclass(frozen=True)
class Multicomplex:
    """a + b iₙ, n = 1 for real a and b, n = 2 for those of order 1."""

    a: float | Multicomplex
    b: float | Multicomplex

    @property
    def order(self) -> int:
        """The n of the number."""
        return 1 + order(self.a)

    def __add__(self, other: float | Multicomplex) -> Multicomplex:
        z, w = _alike(self, other)
        return Multicomplex(z.a + w.a, z.b + w.b)

    def __mul__(self, other: float | Multicomplex) -> Multicomplex:
        z, w = _alike(self, other)
        return Multicomplex(z.a * w.a - z.b * w.b, z.a * w.b + z.b * w.a)

    def __truediv__(self, other: float | Multicomplex) -> Multicomplex:
        z, w = _alike(self, other)
        size = w.a * w.a + w.b * w.b
        return Multicomplex((z.a * w.a + z.b * w.b) / size, (z.b * w.a - z.a * w.b) / size)

    def __pow__(self, power: float | Multicomplex) -> Multicomplex:
        """By products for a whole power, else exp(power · log), which needs a positive real part."""
        if isinstance(power, Multicomplex) or power != int(power):
            return exp(log(self) * power)  # type: ignore[return-value]
        n, result, square = abs(int(power)), self * 0.0 + 1.0, self
        while n:
            result, square, n = result * square if n % 2 else result, square * square, n // 2
        return result if power >= 0 else 1.0 / result

    def __neg__(self) -> Multicomplex:
        return Multicomplex(-self.a, -self.b)

    def __sub__(self, other: float | Multicomplex) -> Multicomplex:
        return self + -other

    def __rsub__(self, other: float) -> Multicomplex:
        return -self + other

    def __rtruediv__(self, other: float) -> Multicomplex:
        return _alike(self, other)[1] / self

    def __rpow__(self, base: float) -> Multicomplex:
        return exp(self * math.log(base))  # type: ignore[return-value]

    __radd__, __rmul__ = __add__, __mul__


def order(z: float | Multicomplex) -> int:
    """n; 0 for a real number."""
    return z.order if isinstance(z, Multicomplex) else 0


def real(z: float | Multicomplex) -> float:
    """The component without a unit."""
    return real(z.a) if isinstance(z, Multicomplex) else z


def component(z: float | Multicomplex, *units: int) -> float:
    """The component of the product of these units, as ``component(z, 1, 2)`` of i₁i₂.

    >>> component(variable(3.0, 1, 2, h=0.5) ** 2, 1, 2)
    0.5
    """
    if not isinstance(z, Multicomplex):
        return 0.0 if units else z
    n = z.order
    if n in units:
        return component(z.b, *(u for u in units if u != n))
    return component(z.a, *units)


def variable(x: float, *units: int, h: float = STEP) -> float | Multicomplex:
    """The number x + h Σ iₖ over ``units``, of 1 and 2; without units x itself."""
    if not set(units) <= {1, 2} or len(set(units)) < len(units):
        raise InvalidInput(f"units {units}: some of 1 and 2")
    if not units:
        return x
    first = Multicomplex(x, h if 1 in units else 0.0)
    return Multicomplex(first, Multicomplex(h, 0.0)) if 2 in units else first


# ---- derivatives


def first(f: Callable, x: float, h: float = STEP) -> float:
    """f′(x) by one evaluation at x + h i₁."""
    return component(f(variable(x, 1, h=h)), 1) / h


def second(f: Callable, x: float, h: float = STEP) -> float:
    """f″(x) by one evaluation at x + h i₁ + h i₂ (eq. 7)."""
    return component(f(variable(x, 1, 2, h=h)), 1, 2) / h / h


def idempotent(f: Callable, x: float, h: float) -> float:
    """f″(x) from the two complex numbers in f(x + h i₁ + h i₂): ½(f(x) − Re f(x + 2h i₁))/h². It cancels."""
    return 0.5 * (real(f(Multicomplex(x, 0.0))) - real(f(variable(x, 1, h=2 * h)))) / h**2


def gradient(f: Callable, x: Sequence[float], h: float = STEP) -> list[float]:
    """∇f of f([x₁, …, x_N]) by N evaluations."""
    return [component(f([variable(v, 1, h=h) if j == k else v for j, v in enumerate(x)]), 1) / h for k in range(len(x))]


def hessian(f: Callable, x: Sequence[float], h: float = STEP) -> list[list[float]]:
    """∇²f by N² evaluations, entry (k, l) at x + h i₁ eₖ + h i₂ e_l (eq. 7)."""

    def entry(k: int, l: int) -> float:
        at = [variable(v, *([1] if j == k else []), *([2] if j == l else []), h=h) for j, v in enumerate(x)]
        return component(f(at), 1, 2) / h / h

    return [[entry(k, l) for l in range(len(x))] for k in range(len(x))]


def along(f: Callable, x: Sequence[float], p: Sequence[float], h: float = STEP) -> tuple[float, float, float]:
    """(f(x), ⟨∇f, p⟩, pᵀ∇²f p) by one evaluation at x + h (i₁ + i₂) p (eq. 11)."""
    y = f([variable(v, 1, 2, h=h * d) for v, d in zip(x, p, strict=True)])
    return real(y), component(y, 1) / h, component(y, 1, 2) / h / h


# ---- functions, each by its value on a and b of one order less


def exp(z: float | Multicomplex) -> float | Multicomplex:
    """Exponential: e^a (cos b + i sin b)."""
    if not isinstance(z, Multicomplex):
        return math.exp(z)
    size = exp(z.a)
    return Multicomplex(size * cos(z.b), size * sin(z.b))


def expm1(z: float | Multicomplex) -> float | Multicomplex:
    """e^z − 1 = (e^a − 1) cos b − 2 sin²(b/2) + i e^a sin b, accurate near 0."""
    if not isinstance(z, Multicomplex):
        return math.expm1(z)
    half = sin(z.b * 0.5)
    return Multicomplex(expm1(z.a) * cos(z.b) - 2 * half * half, exp(z.a) * sin(z.b))


def log(z: float | Multicomplex) -> float | Multicomplex:
    """Logarithm, of a positive real part: log a + ½ log1p t² + i atan t with t = b/a."""
    if not isinstance(z, Multicomplex):
        return math.log(z)
    t = z.b / z.a
    return Multicomplex(log(z.a) + 0.5 * log1p(t * t), atan(t))


def log1p(z: float | Multicomplex) -> float | Multicomplex:
    """Logarithm of 1 + z, accurate near 0: ½ log(1 + 2a + a² + b²) + i atan(b/(1 + a))."""
    if not isinstance(z, Multicomplex):
        return math.log1p(z)
    return Multicomplex(0.5 * log1p(2 * z.a + z.a * z.a + z.b * z.b), atan(z.b / (1 + z.a)))


def sqrt(z: float | Multicomplex) -> float | Multicomplex:
    """Root: p + i b/(2p) with p² = ½(√(a² + b²) + a), for a positive real part."""
    if not isinstance(z, Multicomplex):
        return math.sqrt(z)
    if real(z) <= 0:
        raise InvalidInput(f"sqrt at {real(z)}: it is analytic where the real part is positive")
    p = sqrt(0.5 * (sqrt(z.a * z.a + z.b * z.b) + z.a))
    return Multicomplex(p, z.b / (2 * p))


def sin(z: float | Multicomplex) -> float | Multicomplex:
    """Sine: sin a cosh b + i cos a sinh b."""
    if not isinstance(z, Multicomplex):
        return math.sin(z)
    return Multicomplex(sin(z.a) * cosh(z.b), cos(z.a) * sinh(z.b))


def cos(z: float | Multicomplex) -> float | Multicomplex:
    """Cosine: cos a cosh b − i sin a sinh b."""
    if not isinstance(z, Multicomplex):
        return math.cos(z)
    return Multicomplex(cos(z.a) * cosh(z.b), -(sin(z.a) * sinh(z.b)))


def sinh(z: float | Multicomplex) -> float | Multicomplex:
    """Hyperbolic sine: sinh a cos b + i cosh a sin b."""
    if not isinstance(z, Multicomplex):
        return math.sinh(z)
    return Multicomplex(sinh(z.a) * cos(z.b), cosh(z.a) * sin(z.b))


def cosh(z: float | Multicomplex) -> float | Multicomplex:
    """Hyperbolic cosine: cosh a cos b + i sinh a sin b."""
    if not isinstance(z, Multicomplex):
        return math.cosh(z)
    return Multicomplex(cosh(z.a) * cos(z.b), sinh(z.a) * sin(z.b))


def tanh(z: float | Multicomplex) -> float | Multicomplex:
    """Hyperbolic tangent: m/(m + 2) with m = e^{2z} − 1, where the real part is ≤ 0; else −tanh(−z)."""
    if not isinstance(z, Multicomplex):
        return math.tanh(z)
    if real(z) > 0:
        return -tanh(-z)
    m = expm1(2 * z)
    return m / (m + 2)


def atan(z: float | Multicomplex) -> float | Multicomplex:
    """Arc tangent: atan a + atan w with w = i b/(1 + a(a + i b)) = u + i v, small where b is.

    atan w = ½ atan(2u/(1 − u² − v²)) + ¼ i log(1 + 4v/(u² + (1 − v)²)), for |w| < 1.
    """
    if not isinstance(z, Multicomplex):
        return math.atan(z)
    w = Multicomplex(z.b * 0.0, z.b) / (1 + z.a * z)
    u, v = w.a, w.b
    size = u * u + (1 - v) * (1 - v)
    return Multicomplex(atan(z.a) + 0.5 * atan(2 * u / (1 - u * u - v * v)), 0.25 * log1p(4 * v / size))


def _alike(z: Multicomplex, w: float | Multicomplex) -> tuple[Multicomplex, Multicomplex]:
    """Both of the larger order."""
    while order(z) < order(w):
        z = Multicomplex(z, z * 0.0)
    while order(w) < order(z):
        w = Multicomplex(w, w * 0.0)
    return z, w  # type: ignore[return-value]
