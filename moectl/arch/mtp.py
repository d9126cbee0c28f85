"""Multi-token-prediction layers in the three ways they are stored: decoder layers after the main stack with more tensors (DeepSeek-V3,
GLM-4.5; Ling 2.0 with other names and without copies), or a stack of their own whose last norm is the main model's (ERNIE 4.5)."""

from __future__ import annotations

from collections.abc import Callable

from moectl.arch import blocks
from moectl.arch.config import Config
from moectl.arch.spec import Layer, MTPLayer
from moectl.arch.tensors import TensorRef

_COUNT = ("num_nextn_predict_layers", "num_mtp_layers")


def mtp_layers(
    config: Config,
    *,
    first: int,
    vocab: int,
    hidden: int,
    layer: Callable[[int], Layer],
    norm: str = "shared_head.norm",
    copies: bool = True,
) -> tuple[MTPLayer, ...]:
    """The layers that `num_nextn_predict_layers` announces, from index `first` on; `layer` makes the decoder layer of an index.

    `norm`: what the last norm is called; `copies`: files may hold embedding and head once more. Raises ModelError.
    """
    made = []
    for i in range(first, first + config.integer(config.first(*_COUNT), default=0, minimum=0)):
        prefix = f"model.layers.{i}"
        tensors = {
            **blocks.norm_tensors("enorm", f"{prefix}.enorm", hidden),
            **blocks.norm_tensors("hnorm", f"{prefix}.hnorm", hidden),
            **blocks.linear("eh_proj", f"{prefix}.eh_proj", hidden, 2 * hidden),
            **blocks.norm_tensors("norm", f"{prefix}.{norm}", hidden),
        }
        if copies:
            tensors |= blocks.linear("embed", f"{prefix}.embed_tokens", vocab, hidden)
            tensors |= blocks.linear("head", f"{prefix}.shared_head.head", vocab, hidden)
        made.append(MTPLayer(layer=layer(i), tensors=tensors, prefixes=(f"{prefix}.",)))
    return tuple(made)


def ernie_mtp_layers(config: Config, *, hidden: int, layer: Callable[[str], Layer], bias: bool) -> tuple[MTPLayer, ...]:
    """ERNIE's one prediction layer; `layer` makes the decoder layer under a prefix. Its output takes the main model's final norm.

    Raises ModelError for more than one: how a second would be fed, Baidu's training and inference code answer differently.
    """
    n_mtp = config.integer(config.first(*_COUNT), default=0, minimum=0)
    if n_mtp == 0:
        return ()
    if n_mtp > 1:
        raise config.mismatch(config.first(*_COUNT), n_mtp, "0 or 1 in this family")
    parts = {"enorm": "mtp_emb_norm", "hnorm": "mtp_hidden_norm", "eh_proj": "mtp_linear_proj"}
    prefixes = tuple(f"model.{name}.0." for name in ("mtp_block", *parts.values()))
    tensors: dict[str, TensorRef] = {
        **blocks.norm_tensors("enorm", f"model.{parts['enorm']}.0", hidden),
        **blocks.norm_tensors("hnorm", f"model.{parts['hnorm']}.0", hidden),
        **blocks.linear("eh_proj", f"model.{parts['eh_proj']}.0", hidden, 2 * hidden, bias=bias),
    }
    return (MTPLayer(layer=layer("model.mtp_block.0"), tensors=tensors, prefixes=prefixes),)
