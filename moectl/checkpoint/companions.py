"""The small files that travel with a model's weights: tokenizer, chat template, generation defaults; into a copy of the same model also
its card, its licence, and what prepares images or holds code of its own."""

from __future__ import annotations

import fnmatch
import os
import shutil
from pathlib import Path

from moectl.errors import from_os_error

NAMES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip

_OF_THE_SAME_MODEL = (
    "README.md", "LICENSE*", "NOTICE*", "USE_POLICY*", "*processor_config.json", "*.jinja", "*.tiktoken", "*.model", "configuration_*.py",
    "modeling_*.py", "tokenization_*.py", "processing_*.py", "image_processing_*.py",
)  # fmt: skip


def copy_companions(source: Path, target: Path, *, same_model: bool = False) -> list[str]:
    """Copy those that exist; their names. With `same_model` also its card, licence, processors and code. Raises ResourceError."""
    found = [name for name in NAMES if (source / name).is_file()]
    if same_model:
        others = sorted(set(os.listdir(source)) - set(found))
        matching = (name for name in others if any(fnmatch.fnmatchcase(name, pattern) for pattern in _OF_THE_SAME_MODEL))
        found += [name for name in matching if (source / name).is_file()]
    for name in found:
        try:
            shutil.copyfile(source / name, target / name)
        except OSError as error:
            raise from_os_error(error, f"copy `{source / name}` to `{target / name}`") from error
    return found
