"""The schemes of quantised variants: what llm-compressor is asked for, in groups that divide each weight's rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transact.geometry import Geometry

GROUPS = (128, 64, 32)  # weights of a row that share a scale, the most usual first: kernels for 4 bits take these
WHOLE_ROW = 0  # one scale for the whole row


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """A scheme.

    Attributes:
        words: what it stores and computes.
        modifier: llm-compressor's class.
        preset: its name there; None where the groups follow from the model.
        calibrated: whether text is sent through the model.
    """

    words: str
    modifier: str
    preset: str | None
    calibrated: bool


SCHEMES = {
    "w4a16": Scheme(words="weights of 4 bits, by GPTQ", modifier="GPTQModifier", preset=None, calibrated=True),
    "w8a8": Scheme(
        words="weights and activations of 8 bits (int8), weights by GPTQ, activations scaled token by token",
        modifier="GPTQModifier",
        preset="W8A8",
        calibrated=True,
    ),
    "fp8": Scheme(
        words="weights and activations of 8 bits (float8_e4m3), activations scaled token by token",
        modifier="QuantizationModifier",
        preset="FP8_DYNAMIC",
        calibrated=False,
    ),
}
LEFT_OUT = "lm_head"  # stays in 16 bits, as does the embedding that it is often tied to


def check_schemes(asked: Sequence[str]) -> None:
    """Check the names of schemes.

    Raises:
        ValueError: one is unknown, or given twice.
    """
    for name in asked:
        if name not in SCHEMES:
            raise ValueError(f"--schemes: {name!r} is no scheme: allowed are {', '.join(SCHEMES)}")
    if len(set(asked)) < len(asked):
        raise ValueError(f"--schemes names one twice: {' '.join(asked)}")


def row_lengths(geometry: Geometry) -> dict[str, int]:
    """Return the length of the weight rows of each projection."""
    rows = dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), geometry.hidden_size)
    rows["o_proj"] = geometry.num_attention_heads * geometry.head_dim
    rows["down_proj"] = geometry.intermediate_size
    return rows


def by_group(geometry: Geometry) -> dict[int, list[str]]:
    """Return size of group -> projections: the largest that divides their rows; that of most projections first."""
    found: dict[int, list[str]] = defaultdict(list)
    for name, row in row_lengths(geometry).items():
        found[next((size for size in GROUPS if row % size == 0), WHOLE_ROW)].append(name)
    return dict(sorted(found.items(), key=lambda each: -len(each[1])))


def group_words(geometry: Geometry) -> str:
    """Say which groups w4a16 takes: "groups of 128, of 32 in down_proj"."""
    (most, _), *others = by_group(geometry).items()
    words = f"groups of {most}" if most else "whole rows"
    return ", ".join([words, *(f"{f'of {size}' if size else 'whole rows'} in {', '.join(of)}" for size, of in others)])


def undivided_words(geometry: Geometry) -> str:
    """Say which rows the usual group does not divide; empty where it divides all."""
    rows = {name: row for name, row in row_lengths(geometry).items() if row % GROUPS[0]}
    if not rows:
        return ""
    return f"{GROUPS[0]} does not divide the rows of {', '.join(f'{name} ({row})' for name, row in rows.items())}"


def recipe(scheme: str, geometry: Geometry) -> dict[str, Any]:
    """Return what in_llmcompressor.py makes its modifier of: its class, and the arguments."""
    chosen = SCHEMES[scheme]
    arguments: dict[str, Any] = {"ignore": [LEFT_OUT]}
    if chosen.preset is not None:
        arguments |= {"scheme": chosen.preset, "targets": "Linear"}
    else:
        groups = enumerate(by_group(geometry).items())
        arguments["config_groups"] = {f"group_{number}": _group(size, names) for number, (size, names) in groups}
    return {"modifier": chosen.modifier, "arguments": arguments}


def _group(size: int, names: Sequence[str]) -> dict[str, Any]:
    shares = {"strategy": "group", "group_size": size} if size else {"strategy": "channel"}
    weights = {"num_bits": 4, "type": "int", "symmetric": True, **shares}
    return {"targets": [f"re:.*({'|'.join(names)})$"], "weights": weights}
