"""Rotary frequencies of LLaMA configurations, before and after the cut.

Cutting rotary pairs must not disturb the pairs that stay: each keeps its own frequency. Stock
code derives frequencies from head_dim, so a cut model states them: by another rope_theta where
that is possible, else as ``longrope`` factors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transact.config.setting import shown
from transact.models.families import OWN_FREQUENCIES

if TYPE_CHECKING:
    from torch import Tensor

SUPPORTED_ROPE_TYPES = ("default", "linear", "llama3", "longrope")
# The defaults of transformers where config.json states nothing.
DEFAULT_ROPE_THETA = 10000.0
MAX_ROPE_THETA, MAX_FACTOR = 1e15, 1e9
DEFAULT_MAX_POSITION_EMBEDDINGS = 2048


def rope_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary settings of a config.json, in one form for old and new transformers.

    Reads ``rope_parameters`` (transformers 5) or else ``rope_scaling`` and ``rope_theta`` (4).
    The result always has ``rope_type`` and ``rope_theta``.

    Raises:
        ValueError: the rope type, or a variant of it, is not supported.
    """
    given = {name: config[name] for name in ("rope_parameters", "rope_scaling") if config.get(name)}
    for name, each in given.items():
        if not isinstance(each, Mapping):
            raise ValueError(f"{name} is {shown(each)}; it must be an object, or null")
    stated = list(given.values())
    if len(stated) == 2 and _scaling(stated[0]) != _scaling(stated[1]):
        raise ValueError(
            "rope_parameters and rope_scaling differ, and software reads one or the other: keep the one that is meant"
        )
    settings = dict(stated[0]) if stated else {}
    if any(isinstance(value, Mapping) for value in settings.values()):
        raise ValueError(f"rope_parameters differ between kinds of layers ({', '.join(settings)}); supported: one set")
    old_type = settings.pop("type", "default")
    settings.setdefault("rope_type", old_type)
    settings.setdefault("rope_theta", config.get("rope_theta") or DEFAULT_ROPE_THETA)
    _check_settings(settings)
    return settings


def _scaling(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return rotary settings but for the base, with the type under its name of today."""
    others = {name: value for name, value in settings.items() if name not in ("type", "rope_theta")}
    return {"rope_type": settings.get("type", "default"), **others}


def inverse_frequencies(config: Mapping[str, Any]) -> Tensor:
    """Return the angle per position of each rotary pair, in radians: (head_dim // 2,) float64.

    Raises:
        ValueError: as `rope_settings`.
    """
    import torch

    settings = rope_settings(config)
    plain = _plain_frequencies(settings["rope_theta"], _head_dim(config))
    match settings["rope_type"]:
        case "linear":
            return plain / float(settings["factor"])
        case "llama3":
            return _llama3(plain, {"original_max_position_embeddings": context_limit(config), **settings})
        case "longrope":
            return plain / torch.tensor(settings["short_factor"], dtype=torch.float64)
        case _:
            return plain


def frequency_factors(config: Mapping[str, Any]) -> Tensor | None:
    """Return the divisors of the frequencies of rope_theta: (head_dim // 2,) float32; None where all are 1."""
    plain = _plain_frequencies(rope_settings(config)["rope_theta"], _head_dim(config))
    factors = (plain / inverse_frequencies(config)).float()
    return None if bool((factors == 1).all()) else factors


def layer_frequencies(config: Mapping[str, Any]) -> list[Tensor]:
    """Return each layer's angle per position and pair, in radians: (1 or num_key_value_heads, head_dim // 2) float64.

    Heads share them unless config.json lists frequencies of their own.
    """
    import torch

    if OWN_FREQUENCIES in config:
        return [torch.tensor(layer, dtype=torch.float64) for layer in config[OWN_FREQUENCIES]]
    return [inverse_frequencies(config).unsqueeze(0)] * config["num_hidden_layers"]


def kept_pairs_settings(config: Mapping[str, Any], kept_pairs: Sequence[int]) -> dict[str, Any]:
    """Return the rotary keys of a config.json in which each kept pair keeps its frequency.

    Pairs 0, s, 2s, ... are what stock code makes of another rope_theta; any others are stated as `longrope` factors.

    Args:
        config: config.json of the model before the cut.
        kept_pairs: ascending indices of rotary pairs.
    """
    settings = rope_settings(config)
    theta, kept_dim = settings["rope_theta"], 2 * len(kept_pairs)
    stride = progression_stride(kept_pairs)
    if stride is not None and settings["rope_type"] != "longrope":
        # (theta^(s r / d))^(-2i/r) is theta^(-2 (s i) / d): the frequency of pair s i.
        return stated_settings(config, settings | {"rope_theta": theta ** (stride * kept_dim / _head_dim(config))})
    own = inverse_frequencies(config)[list(kept_pairs)]
    # Stock code computes 1 / (factor * theta^(2i/r)) for pair i of the smaller head.
    factors = (_plain_frequencies(theta, kept_dim) / own).tolist()
    scaling = {
        "rope_type": "longrope",
        "rope_theta": theta,
        "factor": 1.0,
        # Stock code would otherwise derive a temperature for longer contexts.
        "attention_factor": 1.0,
        # vLLM ignores attention_factor; with equal limits it derives the same 1.0 by itself.
        "original_max_position_embeddings": context_limit(config),
        "short_factor": factors,
        "long_factor": list(factors),
    }
    return stated_settings(config, scaling) | {"max_position_embeddings": context_limit(config)}


def stated_settings(config: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the rotary settings under the keys of every reader.

    All are needed: transformers 5 reads ``rope_parameters``; transformers 4 and vLLM read ``rope_scaling`` and
    ``rope_theta``, and silently ignore the first.

    Args:
        config: config.json.
        settings: as `rope_settings` gives them; those of `config` itself by default.
    """
    stated = dict(settings or rope_settings(config))
    scaling = {name: value for name, value in stated.items() if name != "rope_theta"}
    return {
        "rope_theta": stated["rope_theta"],
        "rope_parameters": stated,
        "rope_scaling": None if stated["rope_type"] == "default" else scaling,
    }


def progression_stride(kept_pairs: Sequence[int]) -> int | None:
    """Return the stride s where the pairs are 0, s, 2s, ...; None where they are not."""
    stride = kept_pairs[1] if len(kept_pairs) > 1 else 1
    is_progression = all(pair == place * stride for place, pair in enumerate(kept_pairs))
    return stride if is_progression else None


def context_limit(config: Mapping[str, Any]) -> int:
    """Return the number of tokens that the model was made for; LLaMA's default where config.json does not say."""
    return int(config.get("max_position_embeddings") or DEFAULT_MAX_POSITION_EMBEDDINGS)


def _head_dim(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _plain_frequencies(theta: float, head_dim: int) -> Tensor:
    """Return theta^(-2i/head_dim) for each pair i: RoFormer, arXiv 2104.09864, section 3.2.2."""
    import torch

    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    return torch.pow(theta, -exponents)


def _llama3(plain: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """Scale as Llama 3.1 does: divide low frequencies by the factor, keep high ones, blend in between."""
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    turns = settings["original_max_position_embeddings"] * plain / (2 * math.pi)
    kept_share: Tensor = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * (kept_share + (1 - kept_share) / float(settings["factor"]))


def check_rope(config: Mapping[str, Any], head_dim: int) -> None:
    """Check that the rotary settings make sense for heads of this many dims.

    Raises:
        ValueError: names the setting, its value and what is allowed.
    """
    settings = rope_settings(config)
    for theta in (settings["rope_theta"], config.get("rope_theta")):
        if theta is not None:
            check_number("rope_theta", theta, 1, MAX_ROPE_THETA)
    match settings["rope_type"]:
        case "linear":
            check_number("factor", settings.get("factor"), 1, MAX_FACTOR)
        case "llama3":
            check_number("factor", settings.get("factor"), 1, MAX_FACTOR)
            low, high = settings.get("low_freq_factor"), settings.get("high_freq_factor")
            check_number("low_freq_factor", low, 1e-3, MAX_FACTOR)
            check_number("high_freq_factor", high, 1e-3, MAX_FACTOR)
            original = settings.get("original_max_position_embeddings", context_limit(config))
            check_number("original_max_position_embeddings", original, 1, MAX_FACTOR)
            if low is not None and high is not None and not low < high:
                raise ValueError(f"config.json: low_freq_factor ({low}) must be below high_freq_factor ({high})")
        case "longrope":
            factors = settings["short_factor"]
            if not isinstance(factors, list) or len(factors) != head_dim // 2:
                count = len(factors) if isinstance(factors, list) else repr(factors)
                raise ValueError(
                    f"config.json: short_factor needs a number for each of {head_dim // 2} pairs, has {count}"
                )
            for factor in factors:
                check_number("short_factor", factor, 1e-6, MAX_ROPE_THETA)


def check_number(name: str, value: Any, lowest: float, highest: float) -> None:
    """Check that a value of config.json is a number in this range.

    Raises:
        ValueError: it is not; names the field and the range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value <= highest:
        raise ValueError(f"config.json: {name} must be a number from {lowest:g} to {highest:g}, got {shown(value)}")


def _check_settings(settings: Mapping[str, Any]) -> None:
    kind = settings["rope_type"]
    if kind not in SUPPORTED_ROPE_TYPES:
        raise ValueError(
            f"rope_type is {shown(kind)}; supported: {', '.join(SUPPORTED_ROPE_TYPES)} (the others "
            f"change frequencies with the length of the input)"
        )
    rotated = settings.get("partial_rotary_factor", 1.0)
    if rotated not in (None, 1.0):
        raise ValueError(f"partial_rotary_factor is {rotated}; supported: 1.0")
    if kind != "longrope":
        return
    if settings.get("attention_factor") != 1.0:
        raise ValueError(f"attention_factor of longrope is {settings.get('attention_factor')}; supported: 1.0")
    short, long = settings.get("short_factor"), settings.get("long_factor")
    if not short or short != long:
        raise ValueError("short_factor and long_factor of longrope differ; supported: equal ones")
