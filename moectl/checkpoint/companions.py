"""The small files that travel with a model's weights: tokenizer, chat template, generation defaults."""

from __future__ import annotations

import shutil
from pathlib import Path

from moectl.errors import from_os_error

NAMES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip


def copy_companions(source: Path, target: Path) -> list[str]:
    """Copy those that exist; their names. Raises ResourceError if the system refuses."""
    found = [name for name in NAMES if (source / name).is_file()]
    for name in found:
        try:
            shutil.copyfile(source / name, target / name)
        except OSError as error:
            raise from_os_error(error, f"copy `{source / name}` to `{target / name}`") from error
    return found
