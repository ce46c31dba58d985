"""The plan of a round: which units are kept. A plain value, equal on every rank, saved as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from transact.geometry import Geometry

Dims = tuple[tuple[tuple[int, ...], ...], ...]  # (layers)(heads)(dims)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrunePlan:
    """Kept units, as ascending indices into the checkpoint that is about to be sliced.

    That checkpoint may itself be the result of an earlier round; indices never refer further back.

    Attributes:
        query_heads: (layers)(target.num_attention_heads) kept query heads, those of a group side by side.
        key_value_heads: (layers)(target.num_key_value_heads) kept key-value heads.
        query_key_dims: (layers)(target.num_key_value_heads)(target.head_dim) kept dims of q and k.
        value_dims: the same of v and o; where `value_basis` is not "dims", of no meaning but as a fallback.
        channels: (layers)(target.intermediate_size) kept channels of gate, up and down.
        value_basis: "dims" keeps the value dims as they are; "svd" and "pca" change the basis first, from the
            data, while slicing.
        rotary: "kept": dims of q and k go in rotary pairs and keep their frequencies; "recreated": the
            frequencies are those of a fresh model with the smaller head.
        pair_scope: over what a set of pairs was chosen together: "model", "layer" or "head".
        source: dimensions of the checkpoint before slicing.
        target: dimensions after.
        asked: fraction of the dense parent's parameters that this round was asked to have
            removed by its end; ``None`` where dimensions were asked for instead.
        reached: the fraction that it will have removed.
        method: how the units were chosen, for the record.
        query_norm_gains: a factor per layer for the norm of queries, where there is one and pairs are cut: the
            root of the mean share that the kept pairs have in the square of a query. None: 1.
        key_norm_gains: the same of keys.
    """

    query_heads: tuple[tuple[int, ...], ...]
    key_value_heads: tuple[tuple[int, ...], ...]
    query_key_dims: Dims
    value_dims: Dims
    channels: tuple[tuple[int, ...], ...]
    value_basis: str
    rotary: str
    pair_scope: str
    source: Geometry
    target: Geometry
    asked: float | None
    reached: float
    method: dict[str, Any]
    query_norm_gains: tuple[float, ...] | None = None
    key_norm_gains: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        source, target = self.source, self.target
        assert self.value_basis in ("dims", "svd", "pca")
        assert self.rotary in ("kept", "recreated")
        for per_layer in (self.query_heads, self.key_value_heads, self.query_key_dims, self.value_dims, self.channels):
            assert len(per_layer) == source.num_layers
        for heads in self.query_heads:
            _check_kept(heads, target.num_attention_heads, source.num_attention_heads)
        for heads in self.key_value_heads:
            _check_kept(heads, target.num_key_value_heads, source.num_key_value_heads)
        for layer in (*self.query_key_dims, *self.value_dims):
            assert len(layer) == target.num_key_value_heads
            for dims in layer:
                _check_kept(dims, target.head_dim, source.head_dim)
        for channels in self.channels:
            _check_kept(channels, target.intermediate_size, source.intermediate_size)
        if self.rotary == "kept":
            half = source.head_dim // 2
            for dims in (dims for layer in self.query_key_dims for dims in layer):
                pairs = dims[: target.head_dim // 2]
                assert dims[target.head_dim // 2 :] == tuple(pair + half for pair in pairs), "not whole rotary pairs"

    def rotary_pairs(self, layer: int, key_value_head: int) -> tuple[int, ...]:
        """Kept pairs of one head; the same everywhere where the scope is the model."""
        assert self.rotary == "kept"
        return self.query_key_dims[layer][key_value_head][: self.target.head_dim // 2]

    def to_json(self) -> dict[str, Any]:
        """Dictionary of JSON types."""
        values = asdict(self)  # geometries become dictionaries too
        return {name: _as_lists(value) for name, value in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PrunePlan:
        """Inverse of `to_json`."""
        geometries = {name: Geometry.from_dict(values[name]) for name in ("source", "target")}
        return cls(**({name: as_tuples(value) for name, value in values.items()} | geometries))


def as_tuples(value: Any) -> Any:
    """Lists within lists, as JSON and tensors give them, in the form of a plan's attributes."""
    return tuple(map(as_tuples, value)) if isinstance(value, (list, tuple)) else value


def _as_lists(value: Any) -> Any:
    return list(map(_as_lists, value)) if isinstance(value, (list, tuple)) else value


def _check_kept(indices: Sequence[int], count: int, available: int) -> None:
    assert len(indices) == count, f"{len(indices)} units kept instead of {count}"
    assert all(low < high for low, high in pairwise(indices)), "not ascending"
    assert indices[0] >= 0 and indices[-1] < available, f"index outside 0..{available - 1}"
