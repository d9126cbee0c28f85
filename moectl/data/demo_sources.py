"""Code, prose and bytecode for the demo data, from the `.py` files of the standard library. Nothing of it is imported or run.

entry = next(iter(code()))
entry.name, entry.pieces()  # "abc.py", ["# Copyright ..."]
"""

from __future__ import annotations

import ast
import itertools
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import CodeType

from moectl.errors import DataError, from_os_error

# Tests, other people's packages, character maps, and what the build wrote about its own machine.
_SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "pydoc_data", "encodings", "lib-dynload"}
)
_SKIPPED_FILES = re.compile(r"_sysconfigdata.*|_sysconfig_vars.*|sitecustomize\.py|usercustomize\.py|html/entities\.py")
_SKIPPED_FOLDER_PREFIX = "config-"
# A piece is about this long: whole statements, docstrings or paragraphs of one file.
_PIECE_CHARS = 12_000
# Whole functions of one file, as many as fit. A listing is many times its source, so one piece is enough.
_BYTECODE_CHARS = 10_000
# Files with less have a function or two of a usual form, the same as in other files.
_MIN_BYTECODE_CHARS = 1000
_MIN_CODE_CHARS = 200
_MIN_DOCSTRING_CHARS = 120
_MIN_PARAGRAPH_CHARS = 80
_MAX_ARGUMENT_CHARS = 60
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_FUNCTION_FLAG = 0x1  # inspect.CO_OPTIMIZED: functions have it, modules and classes do not

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Entry:
    """One file or table: its name, which decides split and place, and how to make its documents. No documents: it is left out."""

    name: str
    pieces: Callable[[], list[str]]


def code() -> Iterator[Entry]:
    """The source of each file without its docstrings. Raises DataError if there are no sources."""
    return (Entry(name, partial(_code_pieces, path)) for name, path in _source_files("code"))


def prose() -> Iterator[Entry]:
    """The longer docstrings of each file, and the topics of Python's own help. Raises DataError if there are no sources."""
    for name, path in _source_files("prose"):
        yield Entry(name, partial(_prose_pieces, path))
    yield from _topics()


def bytecode() -> Iterator[Entry]:
    """The instructions of the functions of each file. Raises DataError if there are no sources."""
    return (Entry(name, partial(_bytecode_pieces, name, path)) for name, path in _source_files("bytecode"))


def _source_files(domain: str) -> list[tuple[str, Path]]:
    import sysconfig

    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS and not name.startswith(_SKIPPED_FOLDER_PREFIX)]
        for name in names:
            relative = Path(parent, name).relative_to(root).as_posix()
            if name.endswith(".py") and not _SKIPPED_FILES.fullmatch(relative):
                found.append((relative, Path(parent, name)))
    if not found:
        raise DataError(
            f"the demo data's domain `{domain}` is made of the standard library's sources, and there is no `.py` file in `{root}`",
            hint="use a Python that is installed with its sources, or pass text of your own with `--data`",
        )
    return found


def _read(path: Path) -> tuple[str, ast.Module] | None:
    """Source and syntax tree; None for what is not UTF-8 or not this Python's syntax."""
    try:
        source = path.read_text(encoding="utf-8-sig")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return source, ast.parse(source)
    except OSError as error:
        raise from_os_error(error, f"read `{path}`") from error
    except (ValueError, SyntaxError, RecursionError):
        return None


def _documented(tree: ast.Module) -> Iterator[_Documented]:
    return (node for node in ast.walk(tree) if isinstance(node, _Documented))


def _code_pieces(path: Path) -> list[str]:
    read = _read(path)
    if read is None:
        return []
    source, tree = read
    statements = _without_docstrings(source, tree)
    return _joined(statements, "") if sum(map(len, statements)) >= _MIN_CODE_CHARS else []


def _without_docstrings(source: str, tree: ast.Module) -> list[str]:
    """The text of each top-level statement with the comments before it, as it stands in the file but for the docstrings."""
    lines: list[bytes | None] = [line + b"\n" for line in source.encode().split(b"\n")]
    for node in _documented(tree):
        strings = _leading_strings(node)
        for i, string in reversed(list(enumerate(strings))):  # from the end, so that the places before stay right
            _remove(lines, string, keep_statement=i == 0 and len(strings) == len(node.body))
    ends = sorted({statement.end_lineno or 0 for statement in tree.body})
    # What follows the last statement are comments: they stay with it.
    cuts = [0, *ends[:-1], len(lines)]
    return [b"".join(line for line in lines[a:b] if line is not None).decode() for a, b in itertools.pairwise(cuts)]


def _leading_strings(node: _Documented) -> list[ast.Expr]:
    """The docstring, and strings behind it that would be the docstring once it is gone."""
    strings = []
    for statement in node.body:
        if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)):
            break
        strings.append(statement)
    return strings


def _remove(lines: list[bytes | None], string: ast.Expr, *, keep_statement: bool) -> None:
    """Take a string statement out of `lines`; `...` stands in its place where something has to."""
    assert string.end_lineno is not None
    assert string.end_col_offset is not None
    first, last = string.lineno - 1, string.end_lineno - 1
    before = (lines[first] or b"")[: string.col_offset]
    after = (lines[last] or b"")[string.end_col_offset :]
    lines[first : last + 1] = [None] * (last + 1 - first)
    if keep_statement or before.strip() or after.lstrip().startswith(b";"):
        lines[first] = before + b"..." + after
    elif after.strip():
        lines[first] = before + after.lstrip()
    elif last + 1 < len(lines) and not (lines[last + 1] or b"").strip():
        lines[last + 1] = None


def _prose_pieces(path: Path) -> list[str]:
    import inspect

    read = _read(path)
    if read is None:
        return []
    cleaned = (inspect.cleandoc(ast.get_docstring(node, clean=False) or "") for node in _documented(read[1]))
    return _joined([f"{text}\n" for text in cleaned if _is_prose(text)], "\n")


def _is_prose(text: str) -> bool:
    lines = text.splitlines()
    n_examples = sum(line.lstrip().startswith(">>>") for line in lines)
    return len(text) >= _MIN_DOCSTRING_CHARS and 3 * n_examples <= len(lines) and _is_encodable(text)


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return True


def _topics() -> Iterator[Entry]:
    """The help topics. Larger ones quote smaller ones: a paragraph stays with the first that has it, so no split sees the other's."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return
    seen: set[str] = set()
    for name in sorted(topics):
        kept = []
        for paragraph in topics[name].strip().split("\n\n"):
            key = " ".join(paragraph.split())
            if key not in seen or len(key) < _MIN_PARAGRAPH_CHARS:
                kept.append(f"{paragraph}\n")
            seen.add(key)
        if sum(map(len, kept)) >= _MIN_DOCSTRING_CHARS:
            yield Entry(f"pydoc_data/topics.py:{name}", partial(_joined, kept, "\n"))


def _bytecode_pieces(name: str, path: Path) -> list[str]:
    read = _read(path)
    if read is None:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = compile(read[0], name, "exec", dont_inherit=True, optimize=0)
        except (ValueError, SyntaxError, RecursionError):
            return []
    listings: list[str] = []
    n_chars = 0
    for function in _functions(module):
        listing = _listing(function)
        if n_chars + len(listing) <= _BYTECODE_CHARS:
            listings.append(listing)
            n_chars += len(listing)
        elif n_chars > _BYTECODE_CHARS // 2:
            break
    return ["\n".join(listings)] if n_chars >= _MIN_BYTECODE_CHARS else []


def _functions(code: CodeType) -> Iterator[CodeType]:
    if code.co_flags & _FUNCTION_FLAG:
        yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _functions(constant)


def _listing(function: CodeType) -> str:
    import dis

    lines = [f"{function.co_qualname}({', '.join(function.co_varnames[: function.co_argcount])})\n"]
    for instruction in dis.get_instructions(function):
        argument = _argument(instruction.argval, instruction.argrepr)
        lines.append(f"{instruction.offset:4} {instruction.opname}{' ' + argument if argument else ''}\n")
    return "".join(lines)


def _argument(value: object, shown: str) -> str:
    if isinstance(value, frozenset):  # its own order changes from run to run
        shown = f"frozenset({{{', '.join(sorted(map(repr, value)))}}})"
    shown = _ADDRESS.sub("", shown)
    return shown if len(shown) <= _MAX_ARGUMENT_CHARS else f"{shown[:_MAX_ARGUMENT_CHARS]}..."


def _joined(parts: Iterable[str], separator: str) -> list[str]:
    """`parts` in order, joined to pieces of about `_PIECE_CHARS`."""
    pieces: list[list[str]] = []
    n_chars = 0
    for part in parts:
        if not pieces or n_chars + len(part) > _PIECE_CHARS:
            pieces.append([])
            n_chars = 0
        pieces[-1].append(part)
        n_chars += len(part)
    return [text for piece in pieces if (text := separator.join(piece)).strip()]
