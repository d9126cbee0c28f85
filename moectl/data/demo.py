"""The built-in `demo` data: five domains of text out of the running Python's own standard library, nothing downloaded.

    for text in documents("code", "heldout"):
        print(text[:80])

Each document belongs to one of two splits, about one in eight to `heldout`, by a hash of its name. Code, prose and bytecode
are split by the file they come from, so a held-out file is held out of all three. The order is that of the hash: mixed, and
the same in every run of one installed Python. A file is read when its document is asked for and no earlier.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator

from moectl.data import demo_arithmetic, demo_sources, demo_tables
from moectl.errors import UsageError

DOMAINS = ("code", "prose", "tables", "arithmetic", "bytecode")
SPLITS = ("heldout", "train")

_ONE_IN = 8

_LISTINGS: dict[str, Callable[[], Iterable[demo_sources.Entry]]] = {
    "code": demo_sources.code,
    "prose": demo_sources.prose,
    "bytecode": demo_sources.bytecode,
    "tables": demo_tables.tables,
}


def documents(domain: str, split: str) -> Iterator[str]:
    """The documents of one domain and split, lazily and always in the same order.

    Long files come in pieces: the first piece of every file, then the rest by turns, so that a short sample is varied.
    Raises UsageError for an unknown domain or split; DataError, when the first document is asked for, where the standard
    library has no sources.
    """
    for what, name, known in (("domain", domain, DOMAINS), ("split", split, SPLITS)):
        if name not in known:
            raise UsageError(f"the demo data has no {what} `{name}`", hint=f"it has {', '.join(f'`{each}`' for each in known)}")
    if domain == "arithmetic":
        return demo_arithmetic.sheets(split)
    return _by_turns(_of_split(_LISTINGS[domain], split))


def split_of(name: str) -> str:
    """The split of a document, from the name of its file or table."""
    return "heldout" if _digest(name)[-1] % _ONE_IN == 0 else "train"


def _of_split(listing: Callable[[], Iterable[demo_sources.Entry]], split: str) -> Iterator[demo_sources.Entry]:
    yield from sorted((entry for entry in listing() if split_of(entry.name) == split), key=lambda entry: _digest(entry.name))


def _by_turns(entries: Iterator[demo_sources.Entry]) -> Iterator[str]:
    rest = []
    for entry in entries:
        pieces = entry.pieces()
        yield from pieces[:1]
        rest.append(pieces[1:])
    for turn in itertools.zip_longest(*rest):
        yield from (piece for piece in turn if piece is not None)


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
