"""`hf://datasets/...` against a small Hub on loopback: what is found, what is fetched, the cache, and what goes wrong."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import COMMIT, Hub, serve
from huggingface_hub import HfFileSystem, constants

from moectl.data.packing import Domain, load_domains
from moectl.data.sources import parse_sources
from moectl.data.tokenizer import load_tokenizer
from moectl.errors import DataError

ROOT = "hf://datasets/org/data"


def _parquet(texts: list[str]) -> bytes:
    file = io.BytesIO()
    table = pa.table({"raw": [text[::-1] for text in texts], "text": texts})
    pq.write_table(table, file, compression="none", use_dictionary=False, write_batch_size=50)
    return file.getvalue()


def _jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    files = {
        "README.md": b"# Data",
        "data/train-1.jsonl": _jsonl(["The quick"]),
        "data/train-2.jsonl": _jsonl(["brown fox"]),
        "data/deep/er/test.jsonl.gz": gzip.compress(_jsonl(["jumps"])),
        "data/ids.npy": _npy([5, 6, 7]),
        "data/a.parquet": _parquet(["over"]),
    }
    with serve(Hub(files)) as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        _point_at(hub.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        HfFileSystem.clear_instance_cache()
        yield hub
    HfFileSystem.clear_instance_cache()


def _point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def _npy(ids: list[int]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(ids))
    return file.getvalue()


def _found(spec: str) -> dict[str, list[str]]:
    return {name: [file.label.removeprefix(ROOT) for file in files] for name, files in parse_sources([spec]).items()}


def _load(folder: Path, spec: str, tokens: int | None = None) -> Domain:
    return load_domains([spec], folder=folder, vocab_size=1000, seq_len=64, tokens=tokens)[0]


@pytest.mark.parametrize(
    ("spec", "name", "files"),
    [
        ("/data/train-1.jsonl", "train-1", ["/data/train-1.jsonl"]),
        ("/README.md", "README", ["/README.md"]),
        ("/data/train-*.jsonl", "train", ["/data/train-1.jsonl", "/data/train-2.jsonl"]),
        ("/data/*.jsonl", "data", ["/data/train-1.jsonl", "/data/train-2.jsonl"]),
        ("@main/**/*.jsonl*", "data", ["@main/data/deep/er/test.jsonl.gz", "@main/data/train-1.jsonl", "@main/data/train-2.jsonl"]),
        ("@refs/convert/parquet/data/*.parquet", "data", ["@refs/convert/parquet/data/a.parquet"]),
        ("@refs%2Fconvert%2Fparquet/data/a.parquet", "a", ["@refs%2Fconvert%2Fparquet/data/a.parquet"]),
        (f"@{COMMIT}/data/a.parquet", "a", [f"@{COMMIT}/data/a.parquet"]),
    ],
)
def test_what_is_found(spec: str, name: str, files: list[str], hub: Hub) -> None:
    assert _found(ROOT + spec) == {name: files}
    assert {file.hub.commit for file in parse_sources([f"n={ROOT}{spec}"])["n"] if file.hub} == {COMMIT}
    assert hub.sent == 0


@pytest.mark.parametrize("tokens", [None, 100])
def test_every_kind_of_file(tokens: int | None, hub: Hub, model_folders: dict[str, Path]) -> None:
    folder, tokenizer = model_folders["plain"], load_tokenizer(model_folders["plain"])
    for path, texts in (
        ("README.md", ["# Data"]),
        ("data/train-*.jsonl", ["The quick", "brown fox"]),
        ("data/deep/er/test.jsonl.gz", ["jumps"]),
        ("data/a.parquet", ["over"]),
    ):
        assert _load(folder, f"{ROOT}/{path}", tokens).token_ids.tolist() == [i for text in texts for i in tokenizer.encode_document(text)]
    assert _load(folder, f"{ROOT}/data/ids.npy", tokens).token_ids.tolist() == [5, 6, 7]


def test_a_bound_fetches_what_it_needs_and_keeps_nothing(hub: Hub, model_folders: dict[str, Path], tmp_path: Path) -> None:
    source = random.Random(0)
    texts = ["".join(source.choices("abcdefghijklmnop", k=4000)) for _ in range(4000)]
    hub.files = {"a.parquet": _parquet(texts), "b.jsonl": _jsonl(texts), "c.txt": "\n".join(texts).encode()}
    whole = load_tokenizer(model_folders["plain"]).encode_document(texts[0])
    for path, n_bytes in (("a.parquet", 5_000_000), ("b.jsonl", 2_500_000), ("c.txt", 2_500_000)):
        hub.sent = 0
        domain = _load(model_folders["plain"], f"{ROOT}/{path}", tokens=1000)
        assert domain.token_ids.tolist() == whole[:1000]
        assert 0 < hub.sent < n_bytes < len(hub.files[path]) // 3
    assert not (tmp_path / "hub").exists() or not [path for path in (tmp_path / "hub").rglob("*") if path.is_file()]


def test_a_whole_file_enters_the_cache_and_is_read_from_it(hub: Hub, model_folders: dict[str, Path]) -> None:
    first = _load(model_folders["plain"], f"{ROOT}/data/train-*.jsonl")
    sent = hub.sent
    assert sent == len(hub.files["data/train-1.jsonl"] + hub.files["data/train-2.jsonl"])
    for tokens in (None, 1000):
        assert _load(model_folders["plain"], f"{ROOT}/data/train-*.jsonl", tokens).sha256 == first.sha256
    assert hub.sent == sent


@pytest.mark.parametrize("how", ["offline", "gone", "broken"])
@pytest.mark.parametrize("tokens", [None, 1000])
def test_without_the_hub_there_is_the_cache(
    how: str, tokens: int | None, hub: Hub, model_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folders["plain"]
    first = _load(folder, f"{ROOT}/data/train-1.jsonl")
    HfFileSystem.clear_instance_cache()
    if how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif how == "gone":
        _point_at("http://127.0.0.1:9", monkeypatch)
    else:
        hub.broken = True
    hub.requests.clear()
    for spec in ("data/train-1.jsonl", "data/train-*.jsonl"):
        assert _load(folder, f"{ROOT}/{spec}", tokens).sha256 == first.sha256
    for spec in ("data/train-2.jsonl", "data/test-*.jsonl"):
        with pytest.raises(DataError, match=rf"`{ROOT}/data/t.*jsonl` is not in the Hub cache, and ") as caught:
            _load(folder, f"{ROOT}/{spec}", tokens)
        assert ("HF_HUB_OFFLINE" in str(caught.value)) == (how == "offline")
        assert caught.value.exit_code == 5
        assert caught.value.hint
    if how != "broken":
        assert hub.requests == []


@pytest.mark.parametrize(
    ("spec", "message", "hint"),
    [
        ("org/none/a.txt", "there is no such dataset on the Hub that this account can see", "hf auth login"),
        ("org/none/*.txt", "there is no such dataset on the Hub that this account can see", "hf auth login"),
        ("org/gated/README.md", "the dataset is gated and this account may not read it", "accept its terms"),
        ("org/data@dev/a.txt", "the dataset has no such revision", "branch"),
        ("org/data/a.txt", "`hf://datasets/org/data/a.txt` does not exist in the dataset", "hf://datasets/org/data/*"),
        ("org/data/data/none/a.txt", "does not exist in the dataset", "hf://datasets/org/data/data/none/*"),
        ("org/data/data/*.md", "no file matches `hf://datasets/org/data/data/*.md`", "quote"),
        ("org/data/data", "`hf://datasets/org/data/data` is a folder", "hf://datasets/org/data/data/*.parquet"),
        ("org/da ta/a.txt", "is not a legal location on the Hub", "hf://datasets/org/name"),
    ],
)
@pytest.mark.parametrize("tokens", [None, 10])
def test_refusals(spec: str, message: str, hint: str, tokens: int | None, hub: Hub, model_folders: dict[str, Path]) -> None:
    with pytest.raises(DataError) as caught:
        _load(model_folders["plain"], f"hf://datasets/{spec}", tokens)
    assert message in str(caught.value)
    assert caught.value.exit_code == 5
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("tokens", [None, 10**6])
def test_broken_content_is_still_named(tokens: int | None, hub: Hub, model_folders: dict[str, Path]) -> None:
    hub.files = {"a.jsonl.gz": b"no gzip", "b.parquet": b"no parquet" * 100, "c.jsonl": b'{"text": "a"}\noops', "d.pdf": b"%PDF"}
    for path, message in (
        ("a.jsonl.gz", "is not whole gzip data"),
        ("b.parquet", "is not a whole Parquet file"),
        ("c.jsonl", "line 2 is not JSON"),
        ("d.pdf", "a `.pdf` file is not text"),
    ):
        with pytest.raises(DataError) as caught:
            _load(model_folders["plain"], f"{ROOT}/{path}", tokens)
        assert message in str(caught.value)
        assert f"`{ROOT}/{path}`" in str(caught.value)


def test_by_the_environment_alone(hub: Hub, model_folders: dict[str, Path], tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from moectl.data.packing import load_domains\n"
        f"domains = load_domains(['{ROOT}/data/*.jsonl'], folder=Path(sys.argv[1]), vocab_size=1000, seq_len=8, tokens=1000)\n"
        "print(domains[0].name, domains[0].sha256)"
    )
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program, str(model_folders["plain"])], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["data", load_domains(
        [f"{ROOT}/data/*.jsonl"], folder=model_folders["plain"], vocab_size=1000, seq_len=8
    )[0].sha256], done.stderr  # fmt: skip
