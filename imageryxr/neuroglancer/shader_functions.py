"""Values, operators and functions of GLSL, for `shader_evaluator`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias


class UnsupportedShaderError(Exception):
    """A shader has a statement or an operation that is not evaluated."""


@dataclass(frozen=True)
class DataValue:
    """A data value of an integer type, which GLSL only passes to functions."""

    raw: float


Value: TypeAlias = float | bool | str | tuple[float, ...] | DataValue
"""Numbers are Python ints and floats as GLSL's; vectors are tuples of floats."""

_PARTS = {letter: number for letters in ("xyzw", "rgba", "stpq") for number, letter in enumerate(letters)}
_LARGEST_INTEGER = 2**64
_SIZES = {"vec2": 2, "vec3": 3, "vec4": 4}


def as_float(value: Value) -> float:
    """Return a number as a float."""
    if isinstance(value, bool | int | float):
        return float(value)
    raise UnsupportedShaderError(f"{value!r} is not a number")


def swizzle(value: Value, names: str) -> Value:
    """Return the named components of a vector, as ``.x`` or ``.rgb``."""
    if not isinstance(value, tuple) or any(_PARTS.get(n, 9) >= len(value) for n in names):
        raise UnsupportedShaderError(names)
    found = tuple(value[_PARTS[n]] for n in names)
    return found[0] if len(found) == 1 else found


def negate(sign: str, value: Value) -> Value:
    """Return the result of a unary operator."""
    if sign == "!":
        return not value
    if isinstance(value, tuple):
        return value if sign == "+" else tuple(-v for v in value)
    if isinstance(value, int | float):
        return value if sign == "+" else -value
    raise UnsupportedShaderError(sign)


def combine(sign: str, left: Value, right: Value) -> Value:
    """Return the result of a binary operator; vectors are combined by component."""
    if sign in ("==", "!="):
        return (left == right) == (sign == "==")
    found = _by_component(lambda a, b: _combine_numbers(sign, a, b), left, right)
    if isinstance(found, int) and abs(found) > _LARGEST_INTEGER:
        raise UnsupportedShaderError("an integer that overflows")
    return found


def _combine_numbers(sign: str, left: float, right: float) -> float:
    match sign:
        case "<":
            return left < right
        case ">":
            return left > right
        case "<=":
            return left <= right
        case ">=":
            return left >= right
        case "+":
            return left + right
        case "*":
            return left * right
        case "-":
            if isinstance(left, int) and isinstance(right, int) and left < right:
                raise UnsupportedShaderError("a difference of integers below 0, which unsigned integers do not have")
            return left - right
        case "/":
            return left // right if isinstance(left, int) and isinstance(right, int) else left / right
        case "%" if isinstance(left, int) and isinstance(right, int):
            return left % right
    raise UnsupportedShaderError(sign)


def convert(kind: str, values: Sequence[Value]) -> Value:
    """Return the result of a constructor such as ``vec3(…)``, or of an assignment to a variable of this type."""
    parts = [p for v in values for p in (v if isinstance(v, tuple) else (v,))]
    if kind in _SIZES:
        numbers = [as_float(p) for p in parts]
        numbers = numbers * _SIZES[kind] if len(numbers) == 1 else numbers
        if len(numbers) < _SIZES[kind]:
            raise UnsupportedShaderError(kind)
        return tuple(numbers[: _SIZES[kind]])
    if len(parts) != 1 or kind == "void":
        raise UnsupportedShaderError(kind)
    number = as_float(parts[0])
    return number if kind == "float" else bool(number) if kind == "bool" else int(number)


def _by_component(function: Callable[..., float], *values: Value) -> Value:
    sizes = {len(v) for v in values if isinstance(v, tuple)}
    for value in values:
        if not isinstance(value, bool | int | float | tuple):
            raise UnsupportedShaderError(f"{value!r} is not a number")
    if not sizes:
        return function(*values)
    if len(sizes) > 1:
        raise UnsupportedShaderError("vectors of different sizes")
    size = sizes.pop()
    columns = [v if isinstance(v, tuple) else (v,) * size for v in values]
    return tuple(float(function(*row)) for row in zip(*columns, strict=True))


def _smoothstep(low: float, high: float, x: float) -> float:
    share = min(1.0, max(0.0, (x - low) / (high - low)))
    return share * share * (3 - 2 * share)


_NUMERIC: dict[str, Callable[..., float]] = {
    "abs": abs,
    "sign": lambda x: float((x > 0) - (x < 0)),
    "floor": math.floor,
    "ceil": math.ceil,
    "round": lambda x: math.floor(x + 0.5),
    "fract": lambda x: x - math.floor(x),
    "mod": lambda x, y: x - y * math.floor(x / y),
    "min": min,
    "max": max,
    "clamp": lambda x, low, high: min(max(x, low), high),
    "mix": lambda x, y, share: x * (1 - share) + y * share,
    "step": lambda edge, x: float(x >= edge),
    "smoothstep": _smoothstep,
    "pow": math.pow,
    "exp": math.exp,
    "exp2": lambda x: math.pow(2.0, x),
    "log": math.log,
    "log2": math.log2,
    "sqrt": math.sqrt,
    "inversesqrt": lambda x: 1 / math.sqrt(x),
}


def _apply(function: Callable[..., float]) -> Callable[..., Value]:
    def apply(*values: Value) -> Value:
        found = _by_component(lambda *numbers: float(function(*numbers)), *values)
        # GLSL has these functions also for integers.
        is_whole = function in (abs, min, max) and all(type(v) is int for v in values)
        return int(found) if is_whole and isinstance(found, float) else found

    return apply


FUNCTIONS: dict[str, Callable[..., Any]] = {name: _apply(function) for name, function in _NUMERIC.items()}
"""Functions of GLSL that are applied to each component."""
