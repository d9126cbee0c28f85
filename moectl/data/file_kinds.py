"""What a file is read as, told from its suffixes alone. Opens nothing.

kind_of(Path("wiki.jsonl.gz"), "wiki.jsonl.gz")  # "jsonl"
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal

from moectl.errors import DataError

Kind = Literal["text", "jsonl", "json", "parquet", "npy", "demo"]

COMPRESSED_SUFFIXES = frozenset({".gz", ".zst"})
_ROW_KINDS: dict[str, Kind] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"}

# What a folder is searched for. A file named on its own, or by a glob, may have any suffix that is not refused below.
_TEXT = (
    ".txt .text .md .markdown .rst .adoc .org .tex .bib .html .htm .xml .csv .tsv .log .srt .yaml .yml .toml .ini .cfg .css .sql "
    ".py .pyi .c .h .cc .cpp .cxx .hpp .hh .cu .cuh .java .kt .scala .js .jsx .mjs .ts .tsx .go .rs .rb .php .pl .pm .lua .r .jl .m "
    ".swift .cs .fs .hs .ml .mli .ex .exs .erl .clj .lisp .el .scm .sh .bash .zsh .fish .ps1 .bat .cmake .mk .proto .vim .asm .s"
)
_TEXT_SUFFIXES = frozenset(_TEXT.split())
_BINARY = (
    ".pdf .doc .docx .odt .rtf .xls .xlsx .ppt .pptx .epub .zip .tar .tgz .bz2 .xz .7z .rar .lz4 .bin .pt .pth .ckpt .safetensors .gguf "
    ".onnx .h5 .hdf5 .npz .pkl .pickle .joblib .arrow .feather .orc .avro .msgpack .tfrecord .mds .idx .sqlite .db .png .jpg .jpeg .gif "
    ".webp .mp3 .wav .flac .mp4 .mkv .so .o .a .dll .exe .pyc .class .jar .whl"
)
_BINARY_SUFFIXES = frozenset(_BINARY.split())

READABLE = (
    "moectl reads UTF-8 text, `.jsonl` and `.json` (all also `.gz` and `.zst`), `.parquet`, `.npy` token ids, folders and globs of them, "
    "and `hf://datasets/...`"
)


def kind_of(path: PurePath, label: str) -> Kind:
    """How to read the file `path`. Raises DataError, with `label` as its name, for a kind that is not read."""
    suffix, compressed = format_suffix(path)
    if suffix == ".npy" and not compressed:
        return "npy"
    if suffix in _ROW_KINDS and not (compressed and suffix == ".parquet"):
        return _ROW_KINDS[suffix]
    if suffix == ".parquet":
        hint = "decompress it first; `.parquet` is compressed inside, and is read in parts"
        raise DataError(f"cannot read `{label}`: compressed `.parquet` is not read", hint=hint)
    if suffix in _BINARY_SUFFIXES or suffix == ".npy":
        raise DataError(f"cannot read `{label}`: a `{''.join(path.suffixes[-1 - compressed :])}` file is not text", hint=READABLE)
    return "text"


def is_searched_for(path: PurePath) -> bool:
    """Whether a folder stands for this file too. Not `.json`: in a folder it is settings more often than text."""
    suffix, compressed = format_suffix(path)
    return suffix in _TEXT_SUFFIXES or _ROW_KINDS.get(suffix) == "jsonl" or (suffix == ".parquet" and not compressed)


def format_suffix(path: PurePath) -> tuple[str, bool]:
    """The suffix that says the format, in lower case, and whether a compression suffix follows it."""
    compressed = path.suffix.lower() in COMPRESSED_SUFFIXES
    return (PurePath(path.stem) if compressed else path).suffix.lower(), compressed
