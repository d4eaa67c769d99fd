"""Values of fixed shape to msgpack and back, every field bounded.

Messages and journal records of a hand-off are frozen dataclasses whose fields are `Annotated` with a `Check`. The
check says what the field may hold, and is applied to whatever a peer or a file claims before a value is made of it:

    @dataclass(frozen=True, slots=True)
    class Failed:
        code: Annotated[str, Text(32)]
        reason: Annotated[str, Text(MAX_REASON_CHARS)]

On the wire each is one map: its class name under `t`, and its fields by name. Unknown fields are ignored and fields
with a default may be absent, so that neighbouring versions understand each other.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, TypeVar, get_type_hints

import msgpack

MAX_BYTES = 1 << 20
MAX_INT = (1 << 63) - 1
MAX_REAL = 1e12

_HEX = frozenset("0123456789abcdef")

T = TypeVar("T")


class Malformed(Exception):
    """A peer's message or a journal's record does not have the form that it must have."""


class Check(Protocol):
    """What a field may hold, and how it is written."""

    def dump(self, value: Any) -> object:
        """`value` as msgpack takes it."""

    def load(self, raw: object) -> object:
        """The value that `raw` stands for.

        Raises:
            Malformed: it is of another type, or out of bounds.
        """


@dataclass(frozen=True, slots=True)
class _Plain:
    def dump(self, value: Any) -> object:
        return value


@dataclass(frozen=True, slots=True)
class Text(_Plain):
    """A string of at most `max_chars` characters; `hex_digits` asks for exactly so many lower-case hex digits."""

    max_chars: int = 255
    hex_digits: int | None = None

    def load(self, raw: object) -> str:
        if not isinstance(raw, str) or len(raw) > self.max_chars:
            raise Malformed(f"not a text of at most {self.max_chars} characters")
        if self.hex_digits is not None and (len(raw) != self.hex_digits or not _HEX.issuperset(raw)):
            raise Malformed(f"not {self.hex_digits} hex digits")
        return raw


@dataclass(frozen=True, slots=True)
class Raw(_Plain):
    """Between `min_bytes` and `max_bytes` bytes."""

    min_bytes: int
    max_bytes: int

    def load(self, raw: object) -> bytes:
        if not isinstance(raw, bytes) or not self.min_bytes <= len(raw) <= self.max_bytes:
            raise Malformed(f"not {self.min_bytes} to {self.max_bytes} bytes")
        return raw


@dataclass(frozen=True, slots=True)
class Whole(_Plain):
    """An integer from `low` to `high`."""

    low: int = 0
    high: int = MAX_INT

    def load(self, raw: object) -> int:
        if isinstance(raw, bool) or not isinstance(raw, int) or not self.low <= raw <= self.high:
            raise Malformed(f"not an integer from {self.low} to {self.high}")
        return raw


@dataclass(frozen=True, slots=True)
class Real(_Plain):
    """A finite number from `low` to `high`."""

    low: float = 0.0
    high: float = MAX_REAL

    def load(self, raw: object) -> float:
        if isinstance(raw, bool) or not isinstance(raw, int | float) or not math.isfinite(raw):
            raise Malformed("not a finite number")
        if not self.low <= raw <= self.high:
            raise Malformed(f"not a number from {self.low} to {self.high}")
        return float(raw)


@dataclass(frozen=True, slots=True)
class Flag(_Plain):
    """True or false."""

    def load(self, raw: object) -> bool:
        if not isinstance(raw, bool):
            raise Malformed("not a boolean")
        return raw


@dataclass(frozen=True, slots=True)
class OneOf:
    """A member of a `StrEnum`."""

    choices: type[StrEnum]

    def dump(self, value: StrEnum) -> object:
        return value.value

    def load(self, raw: object) -> StrEnum:
        for choice in self.choices:
            if choice.value == raw:
                return choice
        raise Malformed(f"not a {self.choices.__name__.lower()}")


@dataclass(frozen=True, slots=True)
class Maybe:
    """What `check` accepts, or None."""

    check: Check

    def dump(self, value: Any) -> object:
        return None if value is None else self.check.dump(value)

    def load(self, raw: object) -> object:
        return None if raw is None else self.check.load(raw)


@dataclass(frozen=True, slots=True)
class Table:
    """At most `limit` pairs of what `key` and `value` accept."""

    key: Check
    value: Check
    limit: int

    def dump(self, value: Mapping[Any, Any]) -> object:
        return {self.key.dump(name): self.value.dump(item) for name, item in value.items()}

    def load(self, raw: object) -> dict[Any, Any]:
        if not isinstance(raw, dict) or len(raw) > self.limit:
            raise Malformed(f"not a table of at most {self.limit}")
        return {self.key.load(name): self.value.load(item) for name, item in raw.items()}


@dataclass(frozen=True, slots=True)
class Texts(_Plain):
    """At most `limit` pairs of texts, each bounded, and of `max_chars` characters in all."""

    limit: int
    key: Text
    value: Text
    max_chars: int

    def load(self, raw: object) -> dict[str, str]:
        texts: dict[str, str] = Table(self.key, self.value, self.limit).load(raw)
        if sum(len(key) + len(value) for key, value in texts.items()) > self.max_chars:
            raise Malformed(f"more than {self.max_chars} characters in all")
        return texts

    def fitting(self, texts: Mapping[str, str]) -> dict[str, str]:
        """Those of `texts` that may be sent, in their order; what is too long, too much or no Unicode is left out."""
        fit: dict[str, str] = {}
        left = self.max_chars
        for key, value in texts.items():
            chars = len(key) + len(value)
            short = len(key) <= self.key.max_chars and len(value) <= self.value.max_chars and chars <= left
            if short and len(fit) < self.limit and _is_unicode(key + value):
                fit[key] = value
                left -= chars
        return fit


@dataclass(frozen=True, slots=True)
class Nested:
    """Another dataclass of checked fields."""

    shape: type[Any]

    def dump(self, value: Any) -> object:
        return _to_map(value)

    def load(self, raw: object) -> object:
        return _from_map(self.shape, raw)


def dump(value: Any) -> dict[str, object]:
    """The map that stands for a message or record."""
    return {"t": type(value).__name__, **_to_map(value)}


def load(raw: object, shapes: Mapping[str, type[T]]) -> T:
    """The inverse of `dump`, for whatever a peer or a file claims.

    Args:
        raw: the map.
        shapes: the classes that are acceptable here, by name.

    Raises:
        Malformed: it is none of them.
    """
    name = raw.get("t") if isinstance(raw, dict) else None
    shape = shapes.get(name) if isinstance(name, str) else None
    if shape is None:
        raise Malformed("not a known kind")
    return _from_map(shape, raw)


def encode(value: Any) -> bytes:
    """One message as bytes.

    Raises:
        ValueError: it is larger than a peer would accept.
    """
    data: bytes = msgpack.packb(dump(value))
    if len(data) > MAX_BYTES:
        raise ValueError(f"{type(value).__name__} of {len(data)} bytes")
    return data


def decode(data: bytes | bytearray | memoryview, shapes: Mapping[str, type[T]]) -> T:
    """The inverse of `encode`.

    Raises:
        Malformed: these bytes are no message that is acceptable here.
    """
    if len(data) > MAX_BYTES:
        raise Malformed(f"message of {len(data)} bytes")
    try:
        raw = msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException):  # msgpack's own errors, and text that is not UTF-8
        raise Malformed("not msgpack") from None
    return load(raw, shapes)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_CHECKS: dict[type[Any], dict[str, tuple[Check, bool]]] = {}


def _checks(shape: type[Any]) -> dict[str, tuple[Check, bool]]:
    """For each field its check, and whether it may be absent."""
    if shape not in _CHECKS:
        _CHECKS[shape] = _read_checks(shape)
    return _CHECKS[shape]


def _read_checks(shape: type[Any]) -> dict[str, tuple[Check, bool]]:
    hints = get_type_hints(shape, include_extras=True)
    return {
        field.name: (
            hints[field.name].__metadata__[0],
            field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING,
        )
        for field in dataclasses.fields(shape)
    }


def _to_map(value: Any) -> dict[str, object]:
    return {name: check.dump(getattr(value, name)) for name, (check, _) in _checks(type(value)).items()}


def _from_map(shape: type[T], raw: object) -> T:
    if not isinstance(raw, dict):
        raise Malformed(f"{shape.__name__} is not a map")
    values: dict[str, object] = {}
    for name, (check, optional) in _checks(shape).items():
        if name in raw:
            try:
                values[name] = check.load(raw[name])
            except Malformed as error:
                raise Malformed(f"{shape.__name__}.{name}: {error}") from None
        elif not optional:
            raise Malformed(f"{shape.__name__}.{name} is missing")
    return shape(**values)
