"""Selections: written by hand in the few words that most tests need, and compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from transact.geometry import Geometry
from transact.pruning.selection import Selection


def hand_selection(
    source: Geometry,
    pairs: Sequence[int],
    value_dims: Sequence[Sequence[Sequence[int]]],
    channels: Sequence[Sequence[int]],
    **changes: Any,
) -> Selection:
    """All heads stay; one set of rotary pairs for the model; value_dims: (layers)(key-value heads)(dims)."""
    half = source.head_dim // 2
    dims = (*pairs, *(pair + half for pair in pairs))
    values: dict[str, Any] = {
        "query_heads": (tuple(range(source.num_attention_heads)),) * source.num_layers,
        "key_value_heads": (tuple(range(source.num_key_value_heads)),) * source.num_layers,
        "query_key_dims": ((dims,) * source.num_key_value_heads,) * source.num_layers,
        "value_dims": tuple(tuple(map(tuple, heads)) for heads in value_dims),
        "channels": tuple(map(tuple, channels)),
        "value_basis": "dims",
        "rotary": "kept",
        "pair_scope": "model",
        "source": source,
        "target": replace(source, head_dim=len(dims), intermediate_size=len(channels[0])),
        "reached": 0.3,
        "method": {},
    }
    return Selection(**(values | changes))


def assert_same_choices(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Two records of a selection: what stays is equal, gains up to the last of their digits."""
    assert one | {"pair_gains": None} == other | {"pair_gains": None}
    gains = [torch.tensor(each["pair_gains"] or [], dtype=torch.float64) for each in (one, other)]
    torch.testing.assert_close(*gains, rtol=1e-4, atol=1e-5)
