"""`[NAME=]SOURCE`: names, folders, globs and what is refused."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moectl.data.demo import DOMAINS
from moectl.data.sources import Source, parse_sources, source_of
from moectl.errors import DataError, MoectlError, UsageError


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def _names(specs: list[str]) -> dict[str, list[str]]:
    return {name: [str(file.path) for file in files] for name, files in parse_sources(specs).items()}


@pytest.mark.parametrize(
    ("file", "name", "kind"),
    [
        ("wiki.txt", "wiki", "text"),
        ("README", "README", "text"),
        ("wiki.weird", "wiki", "text"),
        ("wiki.txt.gz", "wiki", "text"),
        ("wiki.jsonl", "wiki", "jsonl"),
        ("wiki.jsonl.gz", "wiki", "jsonl"),
        ("wiki.JSONL.ZST", "wiki", "jsonl"),
        ("wiki.ndjson", "wiki", "jsonl"),
        ("wiki.npy", "wiki", "npy"),
        ("wiki.json", "wiki", "json"),
        ("wiki.JSON.gz", "wiki", "json"),
        ("wiki.parquet", "wiki", "parquet"),
        ("wiki.en.jsonl.gz", "wiki.en", "jsonl"),
        ("v1.5.txt", "v1.5", "text"),
    ],
)
def test_name_and_kind_of_a_file(file: str, name: str, kind: str) -> None:
    _touch(file)
    assert parse_sources([file]) == {name: (Source(Path(file), kind),)}  # type: ignore[arg-type]
    assert parse_sources([f"other={file}"]) == {"other": (Source(Path(file), kind),)}  # type: ignore[arg-type]


def test_a_path_with_an_equals_sign() -> None:
    _touch("a=b.txt", "lr=1/data.txt", "b.txt")
    assert _names(["a=b.txt"]) == {"a=b": ["a=b.txt"]}
    assert _names(["x=a=b.txt"]) == {"x": ["a=b.txt"]}
    assert _names(["lr=1/data.txt"]) == {"data": ["lr=1/data.txt"]}
    assert _names(["./lr=1/*.txt"]) == {"lr=1": ["lr=1/data.txt"]}
    os.remove("a=b.txt")
    assert _names(["a=b.txt"]) == {"a": ["b.txt"]}


def test_home_folder_after_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _touch("wiki.txt")
    assert _names(["w=~/wiki.txt"]) == {"w": [str(tmp_path / "wiki.txt")]}


def test_one_name_joins_its_sources_and_domains_keep_their_order() -> None:
    _touch("z.txt", "b.txt", "a.txt")
    assert _names(["m=z.txt", "b.txt", "m=a.txt"]) == {"m": ["z.txt", "a.txt"], "b": ["b.txt"]}


def test_a_folder_is_read_in_order_without_hidden_and_unknown_files() -> None:
    _touch(
        "src/b.py",
        "src/a/z.md",
        "src/a.txt",
        "src/c.jsonl.zst",
        "src/.git/x.txt",
        "src/.hidden.txt",
        "src/w.npy",
        "src/x.json",
        "src/y.bin",
        "src/z/d.parquet",
        "src/z/e.parquet.gz",
    )
    assert _names(["src"]) == {"src": ["src/a/z.md", "src/a.txt", "src/b.py", "src/c.jsonl.zst", "src/z/d.parquet"]}
    assert list(_names(["src/"])) == ["src"]
    assert list(_names([f"{Path.cwd()}/src/../src"])) == ["src"]


def test_the_working_folder_has_a_name() -> None:
    _touch("a.txt")
    assert list(_names(["."])) == [Path.cwd().name]


def test_a_folder_without_text_says_what_it_holds() -> None:
    _touch("src/a.json", "src/b.npy", "src/c.npy", "src/LICENSE")
    with pytest.raises(DataError, match=r"folder `src` \(found: 1 \.json, 2 \.npy, 1 without a suffix\)") as caught:
        parse_sources(["src"])
    assert "`src/*.npy` or `src/*.json`" in str(caught.value.hint)
    Path("empty").mkdir()
    with pytest.raises(DataError, match=r"`empty` \(found: nothing\)"):
        parse_sources(["empty"])


@pytest.mark.parametrize(
    ("pattern", "name", "files"),
    [
        ("logs/wiki-*.jsonl", "wiki", ["logs/wiki-1.jsonl", "logs/wiki-2.jsonl"]),
        ("logs/*.jsonl", "logs", ["logs/wiki-1.jsonl", "logs/wiki-2.jsonl"]),
        ("logs/wiki-[0-9].jsonl*", "wiki", ["logs/wiki-1.jsonl", "logs/wiki-2.jsonl", "logs/wiki-3.jsonl.gz"]),
        ("logs/**/*.py", "logs", ["logs/deep/er/x.py", "logs/y.py"]),
        ("*/y.py", "y", ["logs/y.py"]),
        ("l*/*.py", None, ["logs/y.py"]),
    ],
)
def test_globs(pattern: str, name: str | None, files: list[str]) -> None:
    _touch("logs/wiki-2.jsonl", "logs/wiki-1.jsonl", "logs/wiki-3.jsonl.gz", "logs/deep/er/x.py", "logs/y.py")
    assert _names([pattern]) == {name or Path.cwd().name: files}
    assert _names([f"d={pattern}"]) == {"d": files}


def test_a_file_named_like_a_pattern_is_that_file() -> None:
    _touch("a[1].txt", "a1.txt")
    assert _names(["a[1].txt"]) == {"a[1]": ["a[1].txt"]}


def test_a_pattern_that_matches_nothing_or_something_unreadable() -> None:
    _touch("d/a.txt", "d/b.arrow")
    with pytest.raises(DataError, match=r"no file matches `d/\*\.md`"):
        parse_sources(["d/*.md"])
    with pytest.raises(DataError, match=r"`d/b\.arrow`: a `\.arrow` file is not text"):
        parse_sources(["d/*"])


@pytest.mark.parametrize(
    ("spec", "message", "hint"),
    [
        ("x.parquet.gz", r"`x\.parquet\.gz`: compressed `\.parquet` is not read", "decompress"),
        ("x.pdf", r"a `\.pdf` file is not text", "UTF-8 text"),
        ("x.docx", r"`\.docx`", "UTF-8 text"),
        ("x.zip", r"`\.zip`", "UTF-8 text"),
        ("x.BIN", r"`\.BIN`", "UTF-8 text"),
        ("x.safetensors", r"`\.safetensors`", "UTF-8 text"),
        ("x.tar.gz", r"`\.tar\.gz`", "UTF-8 text"),
        ("x.npy.gz", r"`\.npy\.gz`", "UTF-8 text"),
        ("demo:test", "the built-in demo data has no part `demo:test`", r"`demo:train`; a path is `\./demo:"),
        ("d=demo:", "has no part `demo:`", r"\./demo"),
        ("hf://org/name/a.jsonl", "`hf://org/name/a.jsonl`: it names no file of a dataset", "hf://datasets/org/name/path"),
        ("n=hf://datasets/a/b", "`hf://datasets/a/b`: it names no file", "hf://datasets/org/name/path"),
        ("hf://datasets/a/b/", "it names no file", "patterns"),
        ("hf://datasets/a@b/c.txt", "it names no file", "patterns"),
    ],
)
def test_refused_by_name(spec: str, message: str, hint: str) -> None:
    if "." in spec and "hf:" not in spec:
        _touch(spec)
    with pytest.raises(DataError, match=message) as caught:
        parse_sources([spec])
    assert caught.value.exit_code == 5
    assert re.search(hint, str(caught.value.hint))
    with pytest.raises(DataError, match=message):
        parse_sources([f"name={spec}"] if "=" not in spec else [spec])


def test_missing_files_and_near_names() -> None:
    _touch("wikipedia.txt", "other.md")
    with pytest.raises(DataError, match=r"`wikipdia\.txt` does not exist") as caught:
        parse_sources(["w=wikipdia.txt"])
    assert caught.value.hint == "did you mean `wikipedia.txt`?"
    with pytest.raises(DataError, match="`zzz` does not exist") as caught:
        parse_sources(["zzz"])
    assert caught.value.hint == "check the path"
    with pytest.raises(DataError, match="`no/zzz` does not exist") as caught:
        parse_sources(["no/zzz"])
    assert "folder `no` does not exist either" in str(caught.value.hint)


@pytest.mark.parametrize("spec", ["=a.txt", "w=", "", "all=a.txt", "all.txt", "\x1b=a.txt", "b\udcff.txt"])
def test_specs_that_are_not_usable(spec: str) -> None:
    _touch("a.txt", "all.txt", "b\udcff.txt")
    with pytest.raises(UsageError) as caught:
        parse_sources([spec])
    assert caught.value.exit_code == 2
    assert "NAME=SOURCE" in str(caught.value.hint)
    assert str(caught.value).isprintable()


def test_mixed_domains() -> None:
    _touch("a.txt", "b.npy")
    with pytest.raises(UsageError, match=r"`m` mixes text and `\.npy`"):
        parse_sources(["m=a.txt", "m=b.npy"])
    assert list(parse_sources(["a.txt", "b.npy"])) == ["a", "b"]


def test_what_is_no_file_is_refused() -> None:
    os.mkfifo("pipe.txt")
    with pytest.raises(DataError, match=r"`pipe.txt` is neither a file nor a folder"):
        parse_sources(["pipe.txt"])
    with pytest.raises(MoectlError):
        parse_sources(["x" * 5000])
    with pytest.raises(MoectlError):
        parse_sources(["a\0b"])


def test_the_built_in_data() -> None:
    _touch("demo/a.txt", "demo:train", "demo:b.txt", "code.txt")
    builtin = {name: (Source(Path("demo:heldout") / name, "demo"),) for name in DOMAINS}
    assert list(parse_sources([])) == list(DOMAINS)
    assert parse_sources([]) == parse_sources(["demo"]) == parse_sources(["demo:heldout"]) == builtin
    assert _names(["demo:train"]) == {name: [f"demo:train/{name}"] for name in DOMAINS}
    assert parse_sources(["d=demo"]) == {"d": tuple(builtin[name][0] for name in DOMAINS)}
    assert _names(["./demo"]) == {"demo": ["demo/a.txt"]}
    assert _names(["./demo:train"]) == {"demo:train": ["demo:train"]}
    assert _names(["demo:b.txt"]) == {"demo:b": ["demo:b.txt"]}
    assert _names(["code.txt", "demo", "demo:train"])["code"] == ["code.txt", "demo:heldout/code", "demo:train/code"]
    _touch("a.npy")
    with pytest.raises(UsageError, match=r"`d` mixes text and `\.npy`"):
        parse_sources(["d=demo", "d=a.npy"])


_STEM = st.text("abcXYZ019_-", min_size=1, max_size=8).filter(lambda stem: stem not in ("all", "demo"))


@settings(max_examples=60, deadline=None)
@given(stem=_STEM, name=_STEM, suffix=st.sampled_from([".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".md", ".npy", ""]))
def test_any_name_and_suffix(stem: str, name: str, suffix: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("d") / f"{stem}{suffix}"
    path.touch()
    assert parse_sources([str(path)]) == {stem: (source_of(path),)}
    assert parse_sources([f"{name}={path}"]) == {name: (source_of(path),)}
    assert parse_sources([f"{name}={path.parent}/*"]) == {name: (source_of(path),)}


@settings(max_examples=200, deadline=None)
@given(spec=st.text(st.characters(exclude_characters="/~."), max_size=20))
def test_any_spec_of_nothing_is_refused_with_a_hint(spec: str) -> None:
    with pytest.raises((DataError, UsageError)) as caught:
        parse_sources([spec])
    assert caught.value.hint
