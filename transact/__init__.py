"""transact: distributed structured pruning of large language models.

`prune_model` cuts a model in memory, `prune` runs a whole job. Importing the package imports neither torch nor Hydra.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# No subpackage or module may have one of these names: importing it would put an attribute in the name's place.
_HOMES = {
    "Result": "transact.launch.from_python",
    "prune": "transact.launch.from_python",
    "prune_model": "transact.stages.in_memory",
}

__all__ = ["Result", "__version__", "prune", "prune_model"]


def __getattr__(name: str) -> Any:
    """Return a public name that another module defines; the module is imported only now."""
    if name not in _HOMES:
        raise AttributeError(f"module 'transact' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
