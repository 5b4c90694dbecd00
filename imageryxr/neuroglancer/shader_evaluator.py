"""Evaluate the shader of an image layer for single data values.

The functions are those of Neuroglancer's ``sliceview/volume/image_renderlayer.ts`` and ``webgl/shader_lib.ts``. The
number of evaluated operations is limited, because a shader is untrusted text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from imageryxr.neuroglancer.shader_functions import (
    FUNCTIONS,
    DataValue,
    UnsupportedShaderError,
    Value,
    as_float,
    combine,
    convert,
    negate,
    swizzle,
)
from imageryxr.neuroglancer.shader_syntax import TYPES, Node, ParsedShader, ShaderFunction

_MAX_STEPS = 200_000
_MAX_CALLS = 8
_EMITTED_SIZES = {"emitGrayscale": 1, "emitRGB": 3, "emitRGBA": 4}

Channel = tuple[int, ...]
Color = tuple[float, float, float, float]


class _Returned(Exception):  # noqa: N818, it is not an error
    def __init__(self, value: Value | None) -> None:
        self.value = value


class _Discarded(Exception):  # noqa: N818, it is not an error
    pass


@dataclass(frozen=True)
class Invlerp:
    """A control that scales data values to the range 0 to 1."""

    low: float
    high: float
    channel: Channel = (0,)
    clamp: bool = True

    def __call__(self, raw: float) -> float:
        """Return the scaled value."""
        share = (raw - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, share)) if self.clamp else share


@dataclass
class Evaluator:
    """Runs a shader for one data value after the other."""

    shader: ParsedShader
    variables: Mapping[str, Value]
    """Values of sliders, colours and other controls that are variables."""
    invlerps: Mapping[str, Invlerp]
    top: float | None
    """Largest value of the data type, for ``toNormalized``; None for floats."""
    channels: set[Channel] = field(default_factory=set)
    """Channels that were read."""
    steps: int = 0
    """Number of operations so far, for all data values."""

    def run(self, raw: float) -> Color | None:
        """Return the colour that the shader shows for a data value, from 0 to 1; None if it shows none.

        Raises `UnsupportedShaderError` if the shader is not supported.
        """
        self.raw, self.calls = raw, 0
        self.color: Color | None = None
        self.globals: dict[str, Value] = {"true": True, "false": False, "VOLUME_RENDERING": False, **self.variables}
        if "main" not in self.shader.functions:
            raise UnsupportedShaderError("it has no main function")
        try:
            for node in self.shader.constants:
                self._execute(node, self.globals)
            self._execute(self.shader.functions["main"].body, {})
        except (_Returned, _Discarded):
            pass
        except (ArithmeticError, ValueError, TypeError, RecursionError) as error:
            raise UnsupportedShaderError(str(error)) from None
        return self.color

    def _count(self) -> None:
        self.steps += 1
        if self.steps > _MAX_STEPS:
            raise UnsupportedShaderError("it has too many operations")

    def _execute(self, node: Node, local: dict[str, Value]) -> None:
        self._count()
        match node:
            case ("block" | "declare", parts):
                for part in parts:
                    self._execute(part, local)
            case ("set", name, value):
                local[name] = self._value(value, local)
            case ("if", condition, then, otherwise):
                self._execute(then if self._value(condition, local) else otherwise, local)
            case ("evaluate", ("call", str(name), arguments)) if name.startswith("emit"):
                self._emit(name, [self._value(a, local) for a in arguments])
            case ("evaluate", value):
                self._value(value, local)
            case ("return", value):
                raise _Returned(None if value is None else self._value(value, local))
            case ("discard", _):
                self.color = None
                raise _Discarded

    def _emit(self, name: str, values: Sequence[Value]) -> None:
        if name == "emitIntensity":  # only for volume rendering
            return
        if name == "emitTransparent":
            self.color = None
            return
        parts = values[0] if len(values) == 1 and isinstance(values[0], tuple) else values
        if len(parts) != _EMITTED_SIZES.get(name):
            raise UnsupportedShaderError(name)
        numbers = [min(1.0, max(0.0, as_float(part))) for part in parts]
        numbers = numbers * 3 if len(numbers) == 1 else numbers
        self.color = (numbers[0], numbers[1], numbers[2], numbers[3] if len(numbers) == 4 else 1.0)

    def _value(self, node: Node, local: dict[str, Value]) -> Value:
        self._count()
        match node:
            case ("literal", value):
                return value  # type: ignore[no-any-return]
            case ("name", name):
                found = local.get(name, self.globals.get(name))
                if found is None:
                    raise UnsupportedShaderError(name)
                return found
            case ("convert", kind, value):
                return convert(kind, (self._value(value, local),))
            case ("unary", sign, value):
                return negate(sign, self._value(value, local))
            case ("binary", "&&" | "||" as sign, left, right):
                first = bool(self._value(left, local))
                return first if first == (sign == "||") else bool(self._value(right, local))
            case ("binary", sign, left, right):
                return combine(sign, self._value(left, local), self._value(right, local))
            case ("choose", condition, then, otherwise):
                return self._value(then if self._value(condition, local) else otherwise, local)
            case ("part", value, names):
                return swizzle(self._value(value, local), names)
            case ("call", name, arguments):
                return self._call(name, [self._value(a, local) for a in arguments])
        raise UnsupportedShaderError(str(node[0]))

    def _call(self, name: str, values: list[Value]) -> Value:
        if name in self.invlerps:
            scale = self.invlerps[name]
            return scale(_raw_number(values[0] if values else self._read(scale.channel)))
        if name == "getDataValue":
            return self._read(tuple(v for v in values if isinstance(v, int)) or (0,))
        if name in ("toRaw", "toNormalized") and len(values) == 1:
            raw = _raw_number(values[0])
            return raw / self.top if name == "toNormalized" and self.top is not None else raw
        if name in self.shader.functions:
            return self._call_own(self.shader.functions[name], values)
        if name in TYPES:
            return convert(name, values)
        function: Callable[..., Value] | None = FUNCTIONS.get(name)
        if function is None:
            raise UnsupportedShaderError(name)
        return function(*values)

    def _read(self, channel: Channel) -> Value:
        self.channels.add(channel)
        return self.raw if self.top is None else DataValue(self.raw)

    def _call_own(self, function: ShaderFunction, values: list[Value]) -> Value:
        self.calls += 1
        if len(values) != len(function.parameters) or self.calls > _MAX_CALLS:
            raise UnsupportedShaderError("a call of its own function")
        local = {name: convert(k, (v,)) for (k, name), v in zip(function.parameters, values, strict=True)}
        returned: Value | None = None
        try:
            self._execute(function.body, local)
        except _Returned as signal:
            returned = signal.value
        self.calls -= 1
        if function.returns == "void":
            return 0.0
        if returned is None:
            raise UnsupportedShaderError("a function that returns no value")
        return convert(function.returns, (returned,))


def _raw_number(value: Value) -> float:
    return value.raw if isinstance(value, DataValue) else as_float(value)
