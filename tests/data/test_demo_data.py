"""The built-in data: the same text every time, two splits that share no document, true sums, and nothing read before it is asked for."""

from __future__ import annotations

import ast
import itertools
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from moectl.data import demo_sources
from moectl.data.demo import DOMAINS, SPLITS, documents, split_of
from moectl.data.packing import load_domains
from moectl.data.tokenizer import load_tokenizer
from moectl.errors import DataError, ResourceError, UsageError


def _some(domain: str, split: str, n_chars: int) -> list[str]:
    """The first documents that have `n_chars` together."""
    texts: list[str] = []
    stream = documents(domain, split)
    while sum(map(len, texts)) < n_chars:
        texts.append(next(stream))
    return texts


@pytest.fixture
def stdlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of the standard library."""
    paths = sysconfig.get_paths() | {"stdlib": str(tmp_path)}
    monkeypatch.setattr(sysconfig, "get_paths", lambda: paths)
    return tmp_path


def _without_docstrings(source: str, folder: Path) -> str:
    (folder / "a.py").write_text(source + "long_enough = " + "1 + " * 60 + "1\n")
    (entry,) = demo_sources.code()
    return "".join(entry.pieces()).partition("long_enough")[0]


@pytest.mark.parametrize("domain", DOMAINS)
def test_held_out_text_is_plenty_and_the_same_in_every_process(domain: str) -> None:
    script = (
        "import sys, moectl.data.demo as demo; sys.stdout.reconfigure(encoding='utf-8', newline='')\n"
        f"for text in demo.documents({domain!r}, 'heldout'): print(text)"
    )
    texts = list(documents(domain, "heldout"))
    # String hashes, and with them the order of sets, differ from process to process.
    other = subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONHASHSEED": "1"}, capture_output=True, check=True).stdout
    assert other == "".join(f"{text}\n" for text in texts).encode()
    assert len(other) > 50_000


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_document_is_in_both_splits(domain: str) -> None:
    held_out = list(documents(domain, "heldout"))
    train = _some(domain, "train", 200_000)
    assert set(held_out).isdisjoint(train)
    assert len(set(held_out)) == len(held_out)
    assert all(text.strip() and text.encode() for text in held_out + train)


def test_one_file_in_eight_is_held_out_and_of_all_domains() -> None:
    names = [{entry.name for entry in listing()} for listing in (demo_sources.code, demo_sources.prose, demo_sources.bytecode)]
    assert names[0] == names[2] <= names[1]
    share = sum(split_of(name) == "heldout" for name in names[1]) / len(names[1])
    assert 0.08 < share < 0.18
    assert {split_of(name) for name in names[1]} == set(SPLITS)


@pytest.mark.parametrize("domain", ["code", "prose", "bytecode"])
def test_only_what_is_pulled_is_read(domain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    read_text = Path.read_text

    def counting(path: Path, **options: str) -> str:
        opened.append(path)
        return read_text(path, **options)

    monkeypatch.setattr(Path, "read_text", counting)
    stream = documents(domain, "train")
    assert opened == []
    # Some files have nothing for a domain.
    n = len(list(itertools.islice(stream, 20)))
    assert n == 20
    assert len(opened) <= 60


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_short_sample_is_varied(domain: str) -> None:
    assert len(_some(domain, "heldout", 60_000)) >= 8
    assert max(map(len, documents(domain, "heldout"))) < 60_000


def test_code_has_no_docstring_left() -> None:
    for text in _some("code", "train", 300_000) + list(documents("code", "heldout")):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                assert ast.get_docstring(node) is None


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('"""Doc."""\nx = "é"\n', 'x = "é"\n'),
        ('# c\n"""Doc\n\nmore"""\n\nx = 1\n', "# c\nx = 1\n"),
        ('def f():\n    """Doc\n    é"""\n\n    # c\n    return """a"""\n', 'def f():\n    # c\n    return """a"""\n'),
        ('def f():\n    """Doc."""\n', "def f():\n    ...\n"),
        ('def f(): "é"\n', "def f(): ...\n"),
        ('def f(): "é"; x = 1\n', "def f(): ...; x = 1\n"),
        ('class A:\n    "Doc."; x = 1\n', "class A:\n    ...; x = 1\n"),
        ('class A:\n    "Doc."  # c\n    x = 1\n', "class A:\n    # c\n    x = 1\n"),
        ('class A:\n    ("a"\n     "b")\n    x = 1\n', "class A:\n    x = 1\n"),
        ('class A:\n    """one"""\n    """two"""\n    x = 1\n    """of x"""\n', 'class A:\n    x = 1\n    """of x"""\n'),
        ('class A:\n    """one"""\n    """two"""\n', "class A:\n    ...\n"),
        ('def f():\n    "é"; "ü"; x = 1\n', "def f():\n    ...; ...; x = 1\n"),
        ('async def f():\r\n    "a"\r\n    pass\r\n', "async def f():\n    pass\n"),
    ],
)
def test_removing_docstrings(source: str, expected: str, stdlib: Path) -> None:
    text = _without_docstrings(source, stdlib)
    assert text == expected
    assert all(ast.get_docstring(node) is None for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.ClassDef))


def test_what_is_no_code_is_left_out(stdlib: Path) -> None:
    long = "x = 1  # a comment\n" * 20
    (stdlib / "good.py").write_bytes(b"\xef\xbb\xbf" + long.encode())
    (stdlib / "latin.py").write_bytes(long.encode() + "# é\n".encode("latin-1"))
    (stdlib / "old.py").write_text(long + "print 1\n")
    (stdlib / "nul.py").write_text(long + "\0")
    (stdlib / "short.py").write_text('"""' + long + '"""\nx = 1\n')
    for folder in ("test", "site-packages", "a/tests", "__pycache__"):
        (stdlib / folder).mkdir(parents=True)
        (stdlib / folder / "x.py").write_text(long)
    assert [entry.name for entry in demo_sources.code() if entry.pieces()] == ["good.py"]
    assert sorted(entry.name for entry in demo_sources.code()) == ["good.py", "latin.py", "nul.py", "old.py", "short.py"]


def test_long_files_come_in_whole_statements_by_turns(stdlib: Path) -> None:
    names = [f"m{i}" for i in range(30)]
    for name in names:
        (stdlib / f"{name}.py").write_text("".join(f"def {name}_{i}():\n    return '{'x' * 3000}'\n\n" for i in range(7)))
    texts = list(documents("code", "train"))
    n_files = sum(split_of(f"{name}.py") == "train" for name in names)
    assert len(texts) == 3 * n_files
    assert all(f"_{start}()" in text for turn, start in enumerate((0, 3, 6)) for text in texts[turn * n_files : (turn + 1) * n_files])
    first, second = (re.findall(r"def (m\d+)_[03]", "".join(texts[turn * n_files : (turn + 1) * n_files])) for turn in (0, 1))
    assert first == second
    assert len(first) == n_files
    assert first != sorted(first)


def test_prose_is_long_docstrings_that_are_not_examples(stdlib: Path) -> None:
    words = "Words of a docstring." * 8
    examples = ">>> f(1)\n    2\n    " * 20
    (stdlib / "a.py").write_text(
        f'"""{words}"""\ndef f():\n    """Short."""\ndef g():\n    """{examples}"""\nclass A:\n    """{words}\n\n    {words}"""\n'
    )
    (entry,) = (entry for entry in demo_sources.prose() if entry.name == "a.py")
    assert entry.pieces() == [f"{words}\n\n{words}\n\n{words}\n"]


def test_help_topics_do_not_repeat_each_other(stdlib: Path) -> None:
    (stdlib / "a.py").touch()
    topics = [entry for entry in demo_sources.prose() if entry.name != "a.py"]
    paragraphs = [" ".join(text.split()) for entry in topics for piece in entry.pieces() for text in piece.split("\n\n")]
    long = [text for text in paragraphs if len(text) >= 80]
    assert len(long) > 500
    assert len(long) == len(set(long))


def test_bytecode_names_no_address_and_no_docstring(stdlib: Path) -> None:
    body = "".join(f"    x = a in {{'one', 'two', {i}}}\n" for i in range(40))
    (stdlib / "a.py").write_text(f'def f(a, b=1):\n    """A docstring."""\n    g = lambda: a\n{body}    return x\n')
    (entry,) = demo_sources.bytecode()
    (text,) = entry.pieces()
    assert text.startswith("f(a, b)\n")
    assert re.search(r"^ +\d+ LOAD_CONST <code object <lambda>", text, re.M)
    assert "LOAD_CONST frozenset({'one', 'two', 7})\n" in text
    assert " at 0x" not in text
    assert "A docstring" not in text
    assert "f.<locals>.<lambda>()\n" in text


def test_sums_come_out() -> None:
    for text in itertools.chain(documents("arithmetic", "heldout"), itertools.islice(documents("arithmetic", "train"), 400)):
        lines = text.splitlines()
        assert 40 <= len(lines) <= 80
        assert len({re.sub("[<=>]", "?", re.sub(r"-?\d+", "n", line)) for line in lines}) == 1
        assert all(map(_is_true, lines))
    assert not _is_true("2 + 2 = 5")
    assert not _is_true("7 / 2 = 3 remainder 2")
    assert not _is_true("1, 2, 4")


def _is_true(line: str) -> bool:
    if "," in line:
        terms = [int(term) for term in line.split(", ")]
        return len({b - a for a, b in itertools.pairwise(terms)}) == 1
    if " / " in line:
        a, b, quotient, remainder = map(int, re.findall(r"\d+", line))
        return divmod(a, b) == (quotient, remainder)
    assert re.fullmatch(r"\d+ ([-+*] \d+ =|[<=>]) -?\d+", line)
    return bool(eval(line.replace("=", "==")))


@pytest.mark.parametrize("domain", ["code", "prose", "bytecode"])
def test_a_python_without_sources_is_named(domain: str, stdlib: Path) -> None:
    (stdlib / "abc.pyc").touch()
    stream = documents(domain, "heldout")
    with pytest.raises(DataError, match=rf"the demo data's domain `{domain}` .* no `\.py` file in `{re.escape(str(stdlib))}`") as caught:
        next(stream)
    assert "`--data`" in str(caught.value.hint)


def test_a_source_that_cannot_be_opened_is_named(stdlib: Path) -> None:
    (stdlib / "a.py").symlink_to("gone.py")
    with pytest.raises(ResourceError, match=r"cannot read `.*a\.py`"):
        list(documents("code", "train")) + list(documents("code", "heldout"))


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match="no domain `poems`"):
        documents("poems", "train")
    with pytest.raises(UsageError, match="no split `test`") as caught:
        documents("code", "test")
    assert caught.value.hint == "it has `heldout`, `train`"


def test_as_data_of_a_model(model_folders: dict[str, Path]) -> None:
    folder = model_folders["plain"]
    options = {"folder": folder, "vocab_size": 1000, "seq_len": 64}
    domains = load_domains(["demo"], tokens=500, **options)  # type: ignore[arg-type]
    assert [domain.name for domain in domains] == list(DOMAINS)
    tokenizer = load_tokenizer(folder)
    for domain in domains:
        whole = [i for text in _some(domain.name, "heldout", 3000) for i in tokenizer.encode_document(text)]
        assert domain.token_ids.tolist() == whole[:500]
    (train, *_) = load_domains(["demo:train"], tokens=500, **options)  # type: ignore[arg-type]
    assert train.sha256 != domains[0].sha256
    (joined,) = load_domains(["mixed=demo"], tokens=500, **options)  # type: ignore[arg-type]
    assert (joined.name, joined.sha256) == ("mixed", domains[0].sha256)
