"""Worksheets of sums that come out: the arithmetic domain of the demo data. A sheet has one kind of exercise and one size of number."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

N_SHEETS = {"heldout": 400, "train": 4000}


def sheets(split: str) -> Iterator[str]:
    """The worksheets of a split, each from a seed of its own."""
    return (_sheet(random.Random(f"{split}-{i}")) for i in range(N_SHEETS[split]))


def _sheet(rng: random.Random) -> str:
    exercise = rng.choice(_EXERCISES)
    largest = 10 ** rng.randint(2, 4) - 1
    return "".join(f"{exercise(rng, largest)}\n" for _ in range(rng.randint(40, 80)))


def _addition(rng: random.Random, largest: int) -> str:
    a, b = rng.randint(0, largest), rng.randint(0, largest)
    return f"{a} + {b} = {a + b}"


def _subtraction(rng: random.Random, largest: int) -> str:
    a, b = rng.randint(0, largest), rng.randint(0, largest)
    return f"{a} - {b} = {a - b}"


def _multiplication(rng: random.Random, largest: int) -> str:
    a, b = rng.randint(0, largest // 8), rng.randint(2, 12)
    return f"{a} * {b} = {a * b}"


def _division(rng: random.Random, largest: int) -> str:
    a, b = rng.randint(0, largest), rng.randint(2, 12)
    return f"{a} / {b} = {a // b} remainder {a % b}"


def _comparison(rng: random.Random, largest: int) -> str:
    a = rng.randint(0, largest)
    b = rng.choice([a, a + rng.randint(-9, 9), rng.randint(0, largest), rng.randint(0, largest)])
    return f"{a} {'<' if a < b else '>' if a > b else '='} {b}"


def _sequence(rng: random.Random, largest: int) -> str:
    start, step = rng.randint(0, largest), rng.choice([-1, 1]) * rng.randint(1, 12)
    return ", ".join(str(start + i * step) for i in range(8))


_EXERCISES: tuple[Callable[[random.Random, int], str], ...] = (
    _addition,
    _subtraction,
    _multiplication,
    _division,
    _comparison,
    _sequence,
)
