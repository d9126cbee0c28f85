"""An inspection for the terminal: one page that says what the model is and what it costs.

It computes nothing and writes to no stream.

    rich.console.Console().print(render(inspection))
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from moectl.inspection.result import PARTS, Inspection
from moectl.report.numerals import counted, percent_tenths
from moectl.report.terminal.layout import heading, indented, plain_table
from moectl.units import format_bytes, format_count

_LABELS = {"dense_ffn": "dense FFN", "routed_experts": "routed experts", "shared_experts": "shared experts"}


def render(found: Inspection) -> Group:
    """The whole page; it fits into 80 columns."""
    parts: list[RenderableType] = [_title(found), "", heading("Layers"), indented(_layers(found))]
    if found.rules:
        parts += ["", heading("Routing"), indented(_routing(found))]
    parts += ["", heading("Parameters"), indented(_parameters(found))]
    parts += ["", heading("Cost"), indented(_pairs(_cost(found)))]
    if found.expert_parallel is not None:
        parts += ["", heading(f"Experts spread over {counted(found.expert_parallel.ranks, 'rank')}"), indented(_pairs(_ranks(found)))]
    if found.what_if is not None:
        parts += ["", heading("What if"), indented(_what_if(found))]
    return Group(*parts)


def tensor_table(found: Inspection) -> Table:
    """Every tensor in a row."""
    table = plain_table()
    table.add_column("name", overflow="fold")
    table.add_column("dtype", no_wrap=True)
    table.add_column("shape", justify="right", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    if found.files > 1:
        table.add_column("file", overflow="fold")
    for row in found.tensors:
        shape = " x ".join(str(size) for size in row.shape) or "scalar"
        file = [Text(row.file)] if found.files > 1 else []
        table.add_row(Text(row.name), row.dtype, shape, format_bytes(row.bytes), *file)
    return table


def _title(found: Inspection) -> Text:
    parameters = found.parameters
    text = Text(found.model, style="bold cyan")
    text.append(
        f"  {found.model_type}, {format_count(parameters.total)} parameters, {format_count(parameters.active)} active per token\n",
        style="not bold default",
    )
    text.append(f"{found.architecture}\n", style="not bold default")
    head = "tied to the embedding" if found.tied_head else "of its own"
    positions = f"made for {found.max_positions:,} positions"
    text.append(f"vocabulary {found.vocab_size:,}, head {head}, {positions}", style="not bold default")
    return text


def _layers(found: Inspection) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column()
    attentions = list(dict.fromkeys(group.attention for group in found.layer_groups))
    for group in found.layer_groups:
        words = group.ffn if len(attentions) == 1 else f"{group.ffn}\n{group.attention}"
        grid.add_row(group.layers, f"{group.count}x", Text(words))
    if len(attentions) == 1:
        grid.add_row("all", f"{len(found.layers)}x", Text(attentions[0]))
    if found.mtp_layers:
        grid.add_row("after", f"{found.mtp_layers}x", Text("multi-token prediction (MTP)"))
    return grid


def _routing(found: Inspection) -> RenderableType:
    if len(found.rules) == 1:
        return Text(found.rules[0].formula)
    return _pairs([(rule.layers, rule.formula) for rule in found.rules])


def _parameters(found: Inspection) -> RenderableType:
    parameters = found.parameters
    table = plain_table()
    table.add_column("", style="cyan", no_wrap=True)
    for column in ("total", "share", "active"):
        table.add_column(column, justify="right", no_wrap=True)
    for part in PARTS:
        total = getattr(parameters, part)
        if total:
            label, share = _LABELS.get(part, part), percent_tenths(total / parameters.total)
            table.add_row(label, format_count(total), f"{share} %", format_count(_active(found, part)))
    share = f"{percent_tenths(parameters.active / parameters.total)} %"
    table.add_section()
    table.add_row("all", format_count(parameters.total), "100.0 %", f"{format_count(parameters.active)} ({share})", style="bold")
    for label, value in (("MTP, not in all", parameters.mtp), ("other, not in all", parameters.other)):
        if value:
            table.add_row(label, format_count(value), "", "", style="dim")
    return table


def _active(found: Inspection, part: str) -> int:
    if part == "embedding":
        return found.parameters.embedding if found.tied_head else 0
    return int(found.parameters.active_routed_experts if part == "routed_experts" else getattr(found.parameters, part))


def _cost(found: Inspection) -> list[tuple[str, str]]:
    cache, memory = found.kv_cache, found.memory
    dtypes = ", ".join(f"{dtype} {format_bytes(size)}" for dtype, size in found.bytes.items())
    where = f"in {counted(found.files, 'file')}" if found.source == "headers" else "expected" + (" without MTP" if found.mtp_layers else "")
    detail = "" if len(found.bytes) == 1 else f": {dtypes}"
    dtype = f" of {next(iter(found.bytes))}" if len(found.bytes) == 1 else ""
    context = counted(found.context_tokens, "token")
    share = percent_tenths(found.attention_flops_per_token / found.flops_per_token)
    return [
        ("on disk", f"{format_bytes(found.total_bytes)}{dtype} {where}{detail}"),
        ("weights", f"{format_bytes(memory.weights_bytes)} in {memory.dtype}"),
        ("to run", f"{format_bytes(memory.resident_bytes)} resident, {format_bytes(memory.streamed_bytes)} streamed, for {context}"),
        ("FLOPs", f"{format_count(found.flops_per_token)} per token of {context}, {share} % for attention scores"),
        ("KV cache", f"{cache.bytes_per_token:,} B per token at {cache.bits} bits, {format_bytes(cache.bytes_at_context)} for {context}"),
        *_windows(found),
        ("", _saving(found)),
    ]


def _windows(found: Inspection) -> list[tuple[str, str]]:
    cache = found.kv_cache
    if not cache.window_layers:
        return []
    full, beyond = len(found.layers) - cache.window_layers, f"{cache.bytes_per_token_beyond_windows:,} B per token"
    then = f"then {beyond} for the other {full}" if full else "and there are no others"
    return [("", f"{counted(cache.window_layers, 'layer')} with windows hold at most {format_bytes(cache.window_bytes)}, {then}")]


def _saving(found: Inspection) -> str:
    cache = found.kv_cache
    saved = f"{percent_tenths(1 - cache.ratio_to_multi_head)} % less than multi-head attention"
    # With eight heads or fewer, grouped attention of eight is multi-head attention.
    alike = cache.ratio_to_grouped_8 == cache.ratio_to_multi_head
    grouped = "" if alike else f", {cache.ratio_to_grouped_8:.2f}x that of 8 kv heads"
    return f"{saved}{grouped}" if cache.ratio_to_multi_head < 1 else f"that of multi-head attention{grouped}"


def _ranks(found: Inspection) -> list[tuple[str, str]]:
    ranks = found.expert_parallel
    assert ranks is not None
    uneven = "" if ranks.even else "; the number of ranks does not divide the experts, the fullest is shown"
    return [
        ("experts", f"{ranks.experts_per_rank} of each layer, {format_bytes(ranks.routed_bytes_per_rank)} in {ranks.dtype}{uneven}"),
        ("the rest", f"{format_bytes(ranks.replicated_bytes_per_rank)}, a copy on every rank"),
        ("each rank", format_bytes(ranks.bytes_per_rank)),
    ]


def _what_if(found: Inspection) -> RenderableType:
    answer = found.what_if
    assert answer is not None
    shared = f" + {answer.shared} shared" if answer.shared else ""
    text = Text(
        f"{counted(answer.layers, 'layer')} with {answer.top_k} of {answer.experts:,} experts{shared}, "
        f"each of width {answer.expert_width:,}: "
        f"a dense FFN of {answer.dense_width:,} ({answer.dense_width_from}), granularity {answer.granularity}\n"
    )
    table = plain_table()
    table.add_column("", style="cyan", no_wrap=True)
    for column in ("parameters", "active", "FLOPs per token"):
        table.add_column(column, justify="right", no_wrap=True)
    rows = [("with the dense FFN", answer.dense), ("with these experts", answer.moe)]
    if answer.now != answer.dense:
        rows.insert(0, ("as it is", answer.now))
    for label, size in rows:
        table.add_row(label, format_count(size.parameters), format_count(size.active_parameters), format_count(size.flops_per_token))
    dense, moe = answer.dense, answer.moe
    factors = (
        moe.parameters / dense.parameters,
        moe.active_parameters / dense.active_parameters,
        moe.flops_per_token / dense.flops_per_token,
    )
    table.add_row("of the dense one", *(f"{factor:.2f}x" for factor in factors), style="bold")
    return Group(text, table)


def _pairs(rows: Sequence[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column()
    for label, value in rows:
        grid.add_row(label, Text(value))
    return grid
