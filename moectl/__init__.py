"""moectl: a toolkit for Mixture-of-Experts language models.

The functions mirror the commands and are imported on first use, so `import moectl` loads no torch:

    import moectl
    model = moectl.load_model("path/to/checkpoint")
    logits_BSV = model(token_ids_BS)
    stats = moectl.route_stats("path/to/checkpoint", data=["wiki=wikipedia.txt"], tokens=4096)
    moectl.inspect("path/to/checkpoint").parameters.active
    moectl.convert("path/to/fp8", "path/to/bf16")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from moectl.api import load_model, load_route_stats, route_stats
    from moectl.conversion.run import convert
    from moectl.inspection.run import inspect

__all__ = ["__version__", "convert", "inspect", "load_model", "load_route_stats", "route_stats"]


def __getattr__(name: str) -> Any:
    if name == "inspect":
        # Not through `api`, which loads torch.
        from moectl.inspection.run import inspect

        return inspect
    if name == "convert":
        from moectl.conversion.run import convert

        return convert
    if name in __all__:
        from moectl import api

        return getattr(api, name)
    raise AttributeError(f"module `moectl` has no attribute `{name}`")


def __dir__() -> list[str]:
    return __all__
