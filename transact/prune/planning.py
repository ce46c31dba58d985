"""The plan of a round: which units are kept. A plain value, equal on every rank, saved as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from transact.geometry import Geometry
from transact.prune.budget import removed_fraction

if TYPE_CHECKING:
    from torch import Tensor

    from transact.prune.criteria import Scores


@dataclass(frozen=True, kw_only=True, slots=True)
class PrunePlan:
    """Kept units, as ascending indices into the checkpoint that is about to be sliced.

    That checkpoint may itself be the result of an earlier round; indices never refer further back.

    Attributes:
        rotary_pairs: (target.head_dim // 2) kept pairs, one set for all layers and heads.
        value_dims: (layers)(num_key_value_heads)(target.head_dim) kept dims of v and o.
        channels: (layers)(target.intermediate_size) kept channels of gate, up and down.
        source: dimensions of the checkpoint before slicing.
        target: dimensions after.
        asked: fraction of the dense parent's parameters that this round was asked to have
            removed by its end; ``None`` where dimensions were asked for instead.
        reached: the fraction that it will have removed.
        criterion: name of the criterion that scored the units.
    """

    rotary_pairs: tuple[int, ...]
    value_dims: tuple[tuple[tuple[int, ...], ...], ...]
    channels: tuple[tuple[int, ...], ...]
    source: Geometry
    target: Geometry
    asked: float | None
    reached: float
    criterion: str

    def __post_init__(self) -> None:
        source, target = self.source, self.target
        _check_kept(self.rotary_pairs, target.head_dim // 2, source.head_dim // 2)
        assert len(self.value_dims) == len(self.channels) == source.num_layers
        for heads in self.value_dims:
            assert len(heads) == source.num_key_value_heads
            for dims in heads:
                _check_kept(dims, target.head_dim, source.head_dim)
        for channels in self.channels:
            _check_kept(channels, target.intermediate_size, source.intermediate_size)

    def to_json(self) -> dict[str, Any]:
        """Dictionary of JSON types."""
        return {
            "rotary_pairs": list(self.rotary_pairs),
            "value_dims": [[list(dims) for dims in heads] for heads in self.value_dims],
            "channels": [list(channels) for channels in self.channels],
            "source": self.source.to_dict(),
            "target": self.target.to_dict(),
            "asked": self.asked,
            "reached": self.reached,
            "criterion": self.criterion,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PrunePlan:
        """Inverse of `to_json`."""
        return cls(
            rotary_pairs=tuple(values["rotary_pairs"]),
            value_dims=tuple(tuple(map(tuple, heads)) for heads in values["value_dims"]),
            channels=tuple(map(tuple, values["channels"])),
            source=Geometry.from_dict(values["source"]),
            target=Geometry.from_dict(values["target"]),
            asked=values["asked"],
            reached=values["reached"],
            criterion=values["criterion"],
        )


def make_plan(
    scores: Scores,
    source: Geometry,
    target: Geometry,
    *,
    parent: Geometry,
    asked: float | None,
    criterion: str,
) -> PrunePlan:
    """Keep the best units of each kind.

    Args:
        scores: of the units of the current checkpoint.
        source: dimensions of the current checkpoint.
        target: dimensions to reach.
        parent: the dense model, which the fraction reached is counted from.
        asked: fraction asked for, for the record.
        criterion: name of what made the scores, for the record.

    Raises:
        ValueError: a score is not finite, so the model broke down on the calibration text.
    """
    for kind in ("rotary_pairs", "value_dims", "channels"):
        if not getattr(scores, kind).isfinite().all():
            raise ValueError(f"scores of {kind} are not all finite: activations overflowed")
    pairs = best_indices(scores.rotary_pairs, target.head_dim // 2)
    value_dims = best_indices(scores.value_dims, target.head_dim)
    channels = best_indices(scores.channels, target.intermediate_size)
    return PrunePlan(
        rotary_pairs=tuple(pairs.tolist()),
        value_dims=tuple(tuple(map(tuple, heads)) for heads in value_dims.tolist()),
        channels=tuple(map(tuple, channels.tolist())),
        source=source,
        target=target,
        asked=asked,
        reached=removed_fraction(parent, target),
        criterion=criterion,
    )


def best_indices(scores: Tensor, count: int) -> Tensor:
    """Ascending indices of the ``count`` highest scores in each row: (..., C) -> (..., count).

    The lower index wins a tie; ``torch.topk`` promises no order, and ranks must agree.
    """
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :count].sort(dim=-1).values


def _check_kept(indices: Sequence[int], count: int, available: int) -> None:
    assert len(indices) == count, f"{len(indices)} units kept instead of {count}"
    assert all(low < high for low, high in pairwise(indices)), "not ascending"
    assert indices[0] >= 0 and indices[-1] < available, f"index outside 0..{available - 1}"
