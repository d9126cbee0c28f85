"""docs/concepts/families.md names every family and every multimodal wrapper, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from moectl.arch.registry import FAMILIES
from moectl.arch.text_tower import WRAPPERS

PAGE = (Path(__file__).parents[2] / "docs/concepts/families.md").read_text()


def names_between(start: str, end: str) -> set[str]:
    return set(re.findall(r"`([a-z0-9_]+)`", PAGE.split(start)[1].split(end)[0]))


def test_every_family_and_wrapper_is_named() -> None:
    assert names_between("# Model families", "## Layouts") >= FAMILIES.keys() | WRAPPERS.keys()


def test_the_tables_name_nothing_else() -> None:
    tables = "".join(line.split("|")[1] for line in PAGE.split("## Multimodal")[0].splitlines() if line.startswith("| `"))
    own = {name for name in FAMILIES if not name.endswith(("vl_text", "vl_moe_text"))}
    assert set(re.findall(r"`([a-z0-9_]+)`", tables)) - {"model_type"} == own
    assert names_between("## Multimodal models", "The text models inside") == WRAPPERS.keys()
