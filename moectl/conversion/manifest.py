"""What lies beside the new weights, and the last look at all of it: config.json, the small files, a card, `moectl.json`, the audit.

write_beside(source, options, plan, folder)
audit(source, folder)
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from moectl import provenance
from moectl.arch.registry import build_spec
from moectl.checkpoint.companions import copy_companions
from moectl.checkpoint.index import open_index
from moectl.checkpoint.json_object import quote
from moectl.checkpoint.locate import CONFIG_NAME, Location, read_config
from moectl.checkpoint.quantised import read_quantisation, with_weights
from moectl.conversion.options import ConvertOptions
from moectl.conversion.result import ConversionPlan
from moectl.conversion.source import Source
from moectl.errors import ModelError, from_os_error

REPORT_NAME = "moectl.json"
_CARD_NAME = "README.md"


def write_beside(source: Source, options: ConvertOptions, plan: ConversionPlan, folder: Path) -> None:
    """Everything but the weights. Raises ResourceError."""
    companions = copy_companions(source.location.folder, folder, same_model=True)
    texts = {REPORT_NAME: _json(_report(source, options, plan))}
    if source.config is not None:
        texts[CONFIG_NAME] = _json(source.config)
    if _CARD_NAME not in companions:
        texts[_CARD_NAME] = _card(plan)
    try:
        if source.config is None:
            shutil.copyfile(source.location.config_path, folder / CONFIG_NAME)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise from_os_error(error, f"write into `{folder}`") from error


def audit(source: Source, folder: Path) -> None:
    """Read back what was written: every planned tensor, no other, and a configuration that fits. Raises ModelError."""
    config = read_config(Location(name=str(folder), folder=folder, config_path=folder / CONFIG_NAME, weights=folder, revision=None))
    index = open_index(folder)
    planned = {target.name: (target.dtype, target.shape) for target in source.targets}
    found = {name: (info.dtype, tuple(info.shape)) for name, info in index.tensors.items()}
    if planned != found:
        wrong = min(name for name in planned.keys() | found.keys() if planned.get(name) != found.get(name))
        raise ModelError(f"tensor {quote(wrong)} was not written as planned", hint="the disk or its memory may be damaged: try again")
    if source.spec is not None:
        weights = with_weights(index, read_quantisation(config, where=str(folder)))
        build_spec(config, shapes={name: info.shape for name, info in weights.tensors.items()})


def _report(source: Source, options: ConvertOptions, plan: ConversionPlan) -> dict[str, Any]:
    settings = {"dtype": options.dtype, "layout": options.layout, "shard_size_bytes": options.shard_size}
    stable = provenance.stable(
        command="convert",
        model=source.location.name,
        revision=source.location.revision,
        config=source.original,
        settings=settings,
    )
    return {
        "provenance": provenance.full(stable, circumstances={}),
        "plan": plan.to_json(),
        "audit": {
            "source_tensors": plan.tensors_in,
            "source_tensors_used": len({name for target in source.targets for name in target.sources}),
            "target_tensors": plan.tensors_out,
            "written_bytes": plan.write_bytes,
        },
    }


def _card(plan: ConversionPlan) -> str:
    dtypes = ", ".join(plan.bytes_by_dtype)
    layout = f", experts in the layout `{plan.layout}`" if plan.layout else ""
    return (
        f"# {Path(plan.output).name}\n\nThe weights of `{plan.model}` in {dtypes}{layout}, written by `moectl convert`.\n"
        f"They compute what those do; how, and what was checked, is in `{REPORT_NAME}`.\n"
    )


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
