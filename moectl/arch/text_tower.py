"""The text model inside a multimodal model: its configuration, and the names its tensors have on disk.

    tower = find_tower(config, names=shapes)       # None for a plain text model
    tower.config.string("model_type")              # "gemma3_text"
    tower.on_disk("model.norm.weight")             # "language_model.model.norm.weight"

A wrapper (`gemma3`, `llama4`, ...) keeps the keys of its text model under `text_config`, and its tensors under a prefix that depends on who
wrote the file. Families know plain names only; here they are translated. What lies outside the text model is listed, not loaded.

Only wrappers whose text model, given text alone, is known to compute what the family computes are in WRAPPERS: others let a prompt see
itself in both directions (PaliGemma) or attend to images in layers of their own (Llama 3.2 Vision).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from moectl.arch.config import Config
from moectl.arch.parts import MoE
from moectl.arch.spec import Layer, ModelSpec, MTPLayer
from moectl.arch.tensors import ExpertTensors, TensorRef

_BODY, _HEAD = "model.", "lm_head."
_EMBED, _HEAD_WEIGHT = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What stands on disk in place of `model.` and of `lm_head.`, and in place of `layers.` after the former."""

    body: str
    head: str
    layers: str = "layers."

    @property
    def _prefixes(self) -> tuple[tuple[str, str], ...]:
        """Plain and stored, the longer ones first."""
        return (_BODY + "layers.", self.body + self.layers), (_BODY, self.body), (_HEAD, self.head)

    def on_disk(self, name: str) -> str:
        """The name on disk of what is plainly called `name`."""
        plain, stored = next((pair for pair in self._prefixes if name.startswith(pair[0])), ("", ""))
        return stored + name.removeprefix(plain)

    def plain(self, name: str) -> str | None:
        """The plain name of a tensor on disk; None for one that is no part of the text model."""
        found = next((pair for pair in self._prefixes if name.startswith(pair[1])), None)
        return None if found is None else found[0] + name.removeprefix(found[1])


INSIDE_OUT = Layout(body="language_model.model.", head="language_model.lm_head.")
"""A whole causal model beside a vision tower: how most were published."""
NESTED = Layout(body="model.language_model.", head="lm_head.")
"""The towers within one body: how newer transformers names its modules."""
NESTED_TEXT = Layout(body="model.text_model.", head="lm_head.")
PLAIN = Layout(body=_BODY, head=_HEAD)
# Newer transformers writes Kimi-K2.5 so, taking the text model's layers for those of the vision tower.
_BLOCKS = replace(INSIDE_OUT, layers="blocks.")
_LAYOUTS = (INSIDE_OUT, NESTED, NESTED_TEXT, PLAIN, _BLOCKS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapper:
    """A kind of multimodal model: the model_type of its text model where the file leaves it out, and its layout on the Hub.

    `tied`: what an absent `tie_word_embeddings` means, None leaving that to the text family. `flat`: early files have the text model's keys
    beside those of the wrapper.
    """

    text: str
    layout: Layout = INSIDE_OUT
    tied: bool | None = None
    flat: bool = False


WRAPPERS: dict[str, Wrapper] = {
    "gemma3": Wrapper(text="gemma3_text"),
    "idefics3": Wrapper(text="llama", layout=NESTED_TEXT),
    "internvl": Wrapper(text="qwen2"),
    "kimi_k25": Wrapper(text="deepseek_v3"),
    "llama4": Wrapper(text="llama4_text"),
    "llava": Wrapper(text="llama"),
    "llava_next": Wrapper(text="llama"),
    "llava_onevision": Wrapper(text="qwen2"),
    "mistral3": Wrapper(text="mistral"),
    "qwen2_5_vl": Wrapper(text="qwen2_5_vl_text", layout=PLAIN, tied=False, flat=True),
    "qwen2_vl": Wrapper(text="qwen2_vl_text", layout=PLAIN, tied=False, flat=True),
    "qwen3_vl": Wrapper(text="qwen3_vl_text", layout=NESTED, tied=False),
    "qwen3_vl_moe": Wrapper(text="qwen3_vl_moe_text", layout=NESTED, tied=False),
    "smolvlm": Wrapper(text="llama", layout=NESTED_TEXT),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTower:
    """The text model of one checkpoint: its configuration, complete, and where its tensors lie."""

    config: Config
    layout: Layout

    def on_disk(self, name: str) -> str:
        """The name on disk of a tensor of the text model."""
        return self.layout.on_disk(name)

    def inside(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """The text model's part of `shapes`, under plain names."""
        plain = ((self.layout.plain(name), shape) for name, shape in shapes.items())
        return {name: shape for name, shape in plain if name is not None}

    def outside(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of `names` that are no part of the text model."""
        return tuple(name for name in names if self.layout.plain(name) is None)

    def renamed(self, spec: ModelSpec) -> ModelSpec:
        """`spec` with the names its tensors have on disk."""

        def refs(tensors: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
            return {slot: replace(ref, name=self.on_disk(ref.name)) for slot, ref in tensors.items()}

        def layer_of(layer: Layer) -> Layer:
            ffn = layer.ffn
            if isinstance(ffn, MoE):
                ffn = replace(ffn, experts=self._renamed_experts(ffn.experts))
            return replace(layer, ffn=ffn, tensors=refs(layer.tensors))

        def ahead_of(mtp: MTPLayer) -> MTPLayer:
            prefixes = tuple(self.on_disk(prefix) for prefix in mtp.prefixes)
            return replace(mtp, layer=layer_of(mtp.layer), tensors=refs(mtp.tensors), prefixes=prefixes)

        return replace(
            spec,
            tensors=refs(spec.tensors),
            layers=tuple(layer_of(layer) for layer in spec.layers),
            mtp=tuple(ahead_of(mtp) for mtp in spec.mtp),
        )

    def _renamed_experts(self, experts: ExpertTensors) -> ExpertTensors:
        named = {field: getattr(experts, field) for field in ("gate", "up", "down", "gate_bias", "up_bias", "down_bias")}
        return replace(experts, **{field: replace(ref, name=self.on_disk(ref.name)) for field, ref in named.items() if ref is not None})


def find_tower(config: Mapping[str, Any], *, names: Collection[str] = ()) -> TextTower | None:
    """The text model of a configuration whose `model_type` is in WRAPPERS, else None. `names`: the tensors of its checkpoint, if known.

    Without names the layout is the Hub's. Raises ModelError if the text model's configuration is missing.
    """
    model_type = config.get("model_type")
    wrapper = WRAPPERS.get(model_type) if isinstance(model_type, str) else None
    if wrapper is None:
        return None
    layout = _layout(names) or wrapper.layout
    outer = Config(config)
    if wrapper.flat and not outer.has("text_config"):
        values = {**config, "model_type": wrapper.text}
        return TextTower(config=Config(values), layout=layout)
    if not outer.has("text_config"):
        raise outer.mismatch("text_config", "missing", f"there in a `{model_type}` model: it describes the text model")
    text = outer.section("text_config")
    values = {**text.values, "model_type": text.string("model_type", default=wrapper.text)}
    tied = _tied(outer, text, wrapper, has_head=layout.on_disk(_HEAD_WEIGHT) in names if names else None)
    if tied is not None:
        values["tie_word_embeddings"] = tied
    return TextTower(config=Config(values, where=text.where), layout=layout)


def with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """`config` saying that its tensors are in `dtype`, under the key and on the level where it does so; `torch_dtype` if nowhere."""
    found = dict(config)
    text = found.get("text_config") if config.get("model_type") in WRAPPERS else None
    levels = [found]
    if isinstance(text, Mapping):
        found["text_config"] = dict(text)
        levels.append(found["text_config"])
    said = [(level, key) for level in levels for key in ("dtype", "torch_dtype") if key in level]
    for level, key in said or [(found, "torch_dtype")]:
        level[key] = dtype
    return found


def describe_outside(names: Collection[str]) -> str:
    """How many tensors lie where, in one line: `20 tensors outside the text model are not loaded: 12 in vision_tower, 8 in ...`."""
    # Within one body the first component says nothing.
    places = Counter(".".join(name.split(".")[: 2 if name.startswith(_BODY) else 1]) for name in names)
    listed = ", ".join(f"{count:,} in `{place}`" for place, count in places.most_common())
    return f"{len(names):,} {'tensor' if len(names) == 1 else 'tensors'} outside the text model {_be(names)} not loaded: {listed}"


def _layout(names: Collection[str]) -> Layout | None:
    """The layout in which both the embedding and the first layer are there, else the embedding."""
    likely = [layout for layout in _LAYOUTS if layout.on_disk(_EMBED) in names]
    whole = (layout for layout in likely if any(name.startswith(layout.on_disk("model.layers.0.")) for name in names))
    return next(whole, likely[0] if likely else None)


def _be(names: Collection[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _tied(outer: Config, text: Config, wrapper: Wrapper, *, has_head: bool | None) -> bool | None:
    """Whether the head is the embedding; None leaves it to the text family. `has_head` is None where the tensors are not known.

    Either level may say so. Newer transformers writes its defaults on both, where they may contradict each other or the file; then a head
    decides by being there, as it does in transformers, or without tensors to look at the outer level.
    """
    said = {level.boolean("tie_word_embeddings") for level in (outer, text) if level.has("tie_word_embeddings")}
    if len(said) == 1:
        return said.pop()
    if said:
        return outer.boolean("tie_word_embeddings") if has_head is None else not has_head
    return False if has_head else wrapper.tied
