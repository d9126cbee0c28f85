"""Small tokenizers of the kinds that models ship, built here so that no test needs a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

_STRINGS = [
    "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs!",
    "def f(x):\n    return x + 1\n\n\nclass A:\n        pass\n\r\n\t\ttabs    and      runs of      spaces",
    "the the the and and of of to in is that it was for on are with as his they at be this from",
    "naïve café über 12345 67890 1999 2024 日本語の文章です。 \U0001f600\U0001f600",
] * 4
_LLAMA3_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPECIAL = [AddedToken("<s>", special=True), AddedToken("</s>", special=True)]


def byte_level(split: str | None = None) -> Tokenizer:
    """As GPT-2 (no `split`) or Llama 3; ids 0 and 1 are BOS and EOS; no post-processor that adds anything."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=False)
        if split is None
        else pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=_SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_STRINGS, trainer)
    return tokenizer


def template() -> Tokenizer:
    """As Llama 3: the post-processor puts BOS in front."""
    tokenizer = byte_level(_LLAMA3_SPLIT)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def both_ends() -> Tokenizer:
    """The post-processor adds BOS and EOS, the normalizer composes characters."""
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return tokenizer


def sentencepiece() -> Tokenizer:
    """As Llama 2: no pre-tokenizer, the whole text is one word; bytes for what the vocabulary lacks."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # only while the merges are learnt
    specials = [AddedToken("<unk>", special=True), *_SPECIAL, *(f"<0x{i:02X}>" for i in range(256))]
    tokenizer.train_from_iterator(_STRINGS, trainers.BpeTrainer(vocab_size=500, special_tokens=specials, show_progress=False))
    # The trainer makes every token above special; the byte tokens of a real file are ordinary.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = state["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(state | {"pre_tokenizer": None}))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def unigram() -> Tokenizer:
    """As T5: words split at spaces, EOS added by the post-processor, spaces squeezed by the normalizer."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=[AddedToken("<unk>", special=True), *_SPECIAL], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(_STRINGS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return tokenizer


def far_sight() -> Tokenizer:
    """A line end decides about the line end before it and every space between, however many."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet, "\u010a\u0120"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("\u010a", "\u0120")]))
    tokenizer.add_special_tokens(_SPECIAL)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


_BUILDERS = {
    "plain": byte_level,
    "template": template,
    "both_ends": both_ends,
    "sentencepiece": sentencepiece,
    "unigram": unigram,
    "far_sight": far_sight,
}


@pytest.fixture(scope="session")
def raw_tokenizers() -> dict[str, Tokenizer]:
    """One `tokenizers.Tokenizer` of each kind."""
    return {name: build() for name, build in _BUILDERS.items()}


@pytest.fixture(scope="session")
def model_folders(raw_tokenizers: dict[str, Tokenizer], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model folder for every tokenizer, with `eos_token` and `bos_token` in `tokenizer_config.json`."""
    folders = {}
    for name, tokenizer in raw_tokenizers.items():
        folders[name] = tmp_path_factory.mktemp(name)
        tokenizer.save(str(folders[name] / "tokenizer.json"))
        settings = {"bos_token": "<s>", "eos_token": "</s>"}
        (folders[name] / "tokenizer_config.json").write_text(json.dumps(settings))
    return folders


@pytest.fixture
def make_folder(raw_tokenizers: dict[str, Tokenizer], tmp_path: Path) -> Callable[..., Path]:
    """`make_folder("plain", tokenizer_config={...}, ...)`: a fresh model folder with exactly these JSON files."""

    def make(kind: str, **files: object) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        raw_tokenizers[kind].save(str(folder / "tokenizer.json"))
        for name, content in files.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        return folder

    return make
