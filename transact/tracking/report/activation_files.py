"""activation_maps.safetensors: norms of activations by layer and channel, and which channels the plan kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

KINDS = {
    "query": "Queries: rotary pairs, head by head",
    "key": "Keys: rotary pairs, head by head",
    "attention_output": "Attention output: dims, head by head",
    "intermediate": "MLP: intermediate channels",
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ActivationMap:
    """One kind of channels.

    Attributes:
        norms: (layers, channels) root of the mean square over tokens.
        kept: (layers, channels) bool; None where the cut is made in another basis than the channels'.
    """

    norms: Array
    kept: Array | None

    def kept_energy(self) -> Array | None:
        """(layers,) share of the squares that is in kept channels; 1 for a layer without any."""
        if self.kept is None:
            return None
        squares = np.square(self.norms)
        total = squares.sum(axis=1)
        kept = (squares * self.kept).sum(axis=1)
        return np.where(total > 0, kept / np.where(total > 0, total, 1), 1.0)

    def redundancy(self) -> Array:
        """(layers,) 1 - participation ratio / channels: 0 where all channels carry the same energy, near 1 where few
        carry all. The participation ratio is (sum of squares)^2 / (sum of fourth powers)."""
        squares = np.square(self.norms)
        fourth = np.square(squares).sum(axis=1)
        participating = np.square(squares.sum(axis=1)) / np.where(fourth > 0, fourth, 1)
        return 1 - participating / squares.shape[1]

    def binned(self, columns: int) -> tuple[Array, Array | None]:
        """Norms and share of kept channels, (layers, at most `columns`): neighbours share a column."""
        channels = self.norms.shape[1]
        size = -(-channels // columns)
        starts = np.arange(0, channels, size)
        counts = np.diff(np.append(starts, channels))
        squares = np.add.reduceat(np.square(self.norms), starts, axis=1) / counts
        kept = None if self.kept is None else np.add.reduceat(self.kept.astype(np.float64), starts, axis=1) / counts
        return np.sqrt(squares), kept


def read_activation_maps(path: Path) -> dict[str, ActivationMap]:
    """By kind; empty where the file is not there, or not (yet) readable."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, TypeError, ValueError, KeyError):
        return {}
    maps = {kind: _map(tensors, kind) for kind in KINDS}
    return {kind: each for kind, each in maps.items() if each is not None}


def _map(tensors: dict[str, Array], kind: str) -> ActivationMap | None:
    norms, kept = tensors.get(f"{kind}.norms"), tensors.get(f"{kind}.kept")
    if norms is None or norms.ndim != 2 or norms.size == 0:
        return None
    if kept is not None and kept.shape != norms.shape:
        kept = None
    norms = np.nan_to_num(norms.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    return ActivationMap(norms=norms, kept=None if kept is None else kept.astype(bool))
