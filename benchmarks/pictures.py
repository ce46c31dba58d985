"""Pictures in SVG: the same figures make the same file, with the version of matplotlib that the constraints name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as pyplot

from transact.files import temporary_name

SALT = "transact"  # of the identifiers in the file, which would be random otherwise

__all__ = ["pyplot", "save_picture"]


@contextmanager
def save_picture(path: Path) -> Iterator[None]:
    """Save the figure that is drawn inside the block, under a temporary name first."""
    with pyplot.rc_context({"svg.hashsalt": SALT}):
        yield
        figure = pyplot.gcf()
        figure.savefig(temporary_name(path), format="svg", metadata={"Date": None})
        pyplot.close(figure)
    temporary_name(path).replace(path)
