"""JSON objects out of files that may be hostile: size-bounded, UTF-8, one object at the top, no duplicate keys.

    config = read_object(folder / "config.json")

It knows no schema; callers check what the keys hold.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moectl.errors import ModelError, from_os_error

# The largest index on the Hub is about 20 MB; this is the limit the safetensors format puts on its own header.
MAX_JSON_BYTES = 100_000_000
_AGAIN = "download the file again, or correct it"

Pairs = list[tuple[str, Any]]


def refuse_duplicates(pairs: Pairs) -> dict[str, Any]:
    """An `object_pairs_hook`: two values for one key would let two readers see two different checkpoints."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {quote(key)} appears twice")
            seen.add(key)
    return found


def parse_object(data: bytes, what: str, *, hook: Callable[[Pairs], Any] = refuse_duplicates) -> dict[str, Any]:
    """Parse `data` as one JSON object; `what` names it in the ModelError raised if it is not one."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=hook)
    except UnicodeDecodeError as error:
        raise ModelError(f"{what} is not UTF-8 text: byte {error.start} is {data[error.start]:#04x}", hint=_AGAIN) from error
    except RecursionError as error:
        raise ModelError(f"{what} is nested too deeply", hint=_AGAIN) from error
    except ValueError as error:
        raise ModelError(f"{what} is not valid JSON: {error}", hint=_AGAIN) from error
    if not isinstance(value, dict):
        raise ModelError(f"{what} must hold a JSON object, not {quote(value)}", hint=_AGAIN)
    return value


def read_object(path: Path, *, hook: Callable[[Pairs], Any] = refuse_duplicates) -> dict[str, Any]:
    """Read and parse a JSON file of at most MAX_JSON_BYTES. Raises ModelError, or ResourceError if it cannot be read."""
    size = file_size(path)
    if size > MAX_JSON_BYTES:
        raise ModelError(f"`{path}` has {size:,} bytes; at most {MAX_JSON_BYTES:,} are read")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise from_os_error(error, f"read `{path}`") from error
    return parse_object(data, f"`{path}`", hook=hook)


def file_size(path: Path) -> int:
    """Bytes of a regular file. Raises ModelError if it is missing, a broken link, a folder, a pipe or a device."""
    try:
        found = path.stat()
    except FileNotFoundError as error:
        if path.is_symlink():
            raise ModelError(f"`{path}` is a link to a file that is gone", hint="download the checkpoint again") from error
        raise ModelError(f"`{path}` does not exist") from error
    except OSError as error:
        raise from_os_error(error, f"read `{path}`") from error
    if not stat.S_ISREG(found.st_mode):
        raise ModelError(f"`{path}` is not a regular file")
    return found.st_size


def quote(value: object) -> str:
    """A value from a file in backticks, ASCII and at most 80 characters, so that it cannot disturb a terminal."""
    text = ascii(value)
    if isinstance(value, str):
        text = text[1:-1]
    return f"`{text[:77]}...`" if len(text) > 80 else f"`{text}`"
