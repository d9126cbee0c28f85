"""Where a result comes from: versions, inputs and settings, embedded in every artefact.

`stable` holds what determines the result and nothing else, so that the same input gives the same bytes in Parquet and safetensors files;
`full` adds the circumstances of one run and goes into JSON.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import moectl


def stable(*, command: str, model: str, revision: str | None, config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Provenance that two equal runs share. `settings`: what changes the numbers, data hashes included."""
    return {
        "moectl_version": moectl.__version__,
        "torch_version": version("torch"),
        "command": command,
        "model": model,
        "revision": revision,
        "config_sha256": hash_json(config),
        **settings,
    }


def full(stable_part: Mapping[str, Any], *, circumstances: Mapping[str, Any]) -> dict[str, Any]:
    """`stable_part` and how this one run went about it."""
    return {
        **stable_part,
        **circumstances,
        "arguments": sys.argv[1:],
        "python_version": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def hash_json(value: Mapping[str, Any]) -> str:
    """SHA-256 of canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
