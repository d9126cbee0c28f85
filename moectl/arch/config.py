"""Typed access to a `config.json`: every key is checked when it is read, and a wrong one is named.

    config = Config({"hidden_size": 64})
    config.integer("hidden_size")            # 64
    config.integer("head_dim", default=16)   # 16

Null counts as missing, but for keys that null switches off (`optional_integer`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moectl.errors import ModelError

_REQUIRED = object()
_MAX_INTEGER = 2**40


class Config:
    """A `config.json` (or one dict inside it) with checked getters. Every getter raises ModelError."""

    def __init__(self, values: Mapping[str, Any], *, where: str = "config.json") -> None:
        self.values = values
        self.where = where

    def has(self, key: str) -> bool:
        """Whether `key` is present and not null."""
        return self.values.get(key) is not None

    def optional_integer(self, key: str, *, default: int | None = None) -> int | None:
        """An integer that may be switched off: null is None, and an absent key is the default."""
        return self.integer(key) if self.has(key) else None if key in self.values else default

    def first(self, *keys: str) -> str:
        """The first of several aliases that is present, else the first one."""
        return next((key for key in keys if self.has(key)), keys[0])

    def integer(self, key: str, *, default: Any = _REQUIRED, minimum: int = 1) -> int:
        value = self._get(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, value, "an integer")
        if not minimum <= value <= _MAX_INTEGER:
            raise self._wrong(key, value, f"an integer of at least {minimum}" if value < minimum else "a plausible size")
        return value

    def number(self, key: str, *, default: Any = _REQUIRED) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise self._wrong(key, value, "a number")
        return float(value)

    def positive(self, key: str, *, default: Any = _REQUIRED) -> float:
        value = self.number(key, default=default)
        if not 0 < value < float("inf"):
            raise self._wrong(key, value, "a number above zero")
        return value

    def optional_positive(self, key: str, *, default: float | None = None) -> float | None:
        """A number above zero that may be switched off: null is None, and an absent key is the default."""
        return self.positive(key) if self.has(key) else None if key in self.values else default

    def boolean(self, key: str, *, default: Any = _REQUIRED) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def string(self, key: str, *, default: Any = _REQUIRED) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of integers; missing is an empty one."""
        value = self._get(key, [])
        if not isinstance(value, list) or any(isinstance(item, bool) or not isinstance(item, int) for item in value):
            raise self._wrong(key, value, "a list of integers")
        return tuple(value)

    def integer_per_layer(self, key: str, n_layers: int, *, default: int, minimum: int = 1) -> tuple[int, ...]:
        """An integer that holds for every layer, or a list with one for each."""
        if not isinstance(self.values.get(key), list):
            return (self.integer(key, default=default, minimum=minimum),) * n_layers
        values = self.integers(key)
        if len(values) != n_layers:
            raise self.mismatch(key, f"a list of {len(values)}", f"an integer or a list of num_hidden_layers = {n_layers}")
        if min(values) < minimum:
            raise self._wrong(key, min(values), f"an integer of at least {minimum} in every layer")
        return values

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of finite numbers; it must be there."""
        value = self._get(key, _REQUIRED)
        if not isinstance(value, list) or any(
            isinstance(x, bool) or not isinstance(x, int | float) or not abs(x) < float("inf") for x in value
        ):
            raise self._wrong(key, value, "a list of numbers")
        return tuple(float(x) for x in value)

    def strings(self, key: str) -> tuple[str, ...]:
        """A list of strings; missing is an empty one."""
        value = self._get(key, [])
        if not isinstance(value, list) or any(not isinstance(item, str) for item in value):
            raise self._wrong(key, value, "a list of strings")
        return tuple(value)

    def section(self, key: str) -> Config:
        """The dict under `key`; missing is an empty one."""
        value = self._get(key, {})
        if not isinstance(value, dict):
            raise self._wrong(key, value, "an object")
        return Config(value, where=f"{self.where}: {key}")

    def choice(self, key: str, *choices: str, default: Any = _REQUIRED) -> str:
        value = self.string(key, default=default)
        if value not in choices:
            raise ModelError(
                f"{self.where}: `{key}` is `{value}`, which this version does not support",
                hint=f"supported: {', '.join(choices)}",
            )
        return value

    def require_off(self, *keys: str) -> None:
        """Refuse switches of the family that this version does not know, if one is on (neither absent, null, false nor 0)."""
        for key in keys:
            if self.values.get(key):
                raise ModelError(
                    f"{self.where}: `{key}` is {self.values[key]!r}, which this version does not support",
                    hint="ignoring it would compute another function",
                )

    def require_on(self, *keys: str) -> None:
        """Refuse to do without what the family always has: a switch that is false or 0 (absent and null are on)."""
        for key in keys:
            if self.has(key) and not self.values[key]:
                raise ModelError(
                    f"{self.where}: `{key}` is {self.values[key]!r}, which this version does not support",
                    hint="ignoring it would compute another function",
                )

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise ModelError(f"{self.where}: `{key}` is missing", hint="the configuration of this checkpoint is incomplete")
        return default

    def mismatch(self, key: str, value: object, expected: str) -> ModelError:
        """The error for a value that is well formed but does not fit the others."""
        return ModelError(f"{self.where}: `{key}` is {value}, but must be {expected}", hint="the configuration contradicts itself")

    def _wrong(self, key: str, value: object, expected: str) -> ModelError:
        shown = repr(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return ModelError(f"{self.where}: `{key}` is {shown}, not {expected}", hint="the configuration of this checkpoint is damaged")
