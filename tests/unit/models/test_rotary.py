"""Own formulas against those of transformers, and frequencies that survive cuts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from transact.models.rotary import inverse_frequencies, kept_pairs_settings, rope_settings

BASE: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "rope_theta": 50000.0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}
SCALINGS = [None, {"type": "linear", "factor": 2.0}, LLAMA3]


def stock_frequencies(config: dict[str, Any]) -> torch.Tensor:
    rotary = LlamaRotaryEmbedding(LlamaConfig(**config))
    assert rotary.attention_scaling == 1.0
    frequencies: torch.Tensor = rotary.inv_freq
    return frequencies


@pytest.mark.parametrize("scaling", SCALINGS, ids=["default", "linear", "llama3"])
def test_frequencies_equal_transformers(scaling: dict[str, Any] | None) -> None:
    config = BASE | {"rope_scaling": scaling}
    own = inverse_frequencies(config)
    assert own.dtype == torch.float64 and own.shape == (8,)
    torch.testing.assert_close(own.float(), stock_frequencies(dict(config)))


def test_llama3_exercises_all_three_ranges() -> None:
    ratio = inverse_frequencies(BASE | {"rope_scaling": LLAMA3}) / inverse_frequencies(BASE)
    assert ratio[0] == 1 and ratio[-1] == 1 / 8
    assert ((ratio > 1 / 8) & (ratio < 1)).any()


def test_new_and_old_keys_mean_the_same() -> None:
    old = BASE | {"rope_scaling": LLAMA3}
    new = {key: value for key, value in BASE.items() if key != "rope_theta"}
    new["rope_parameters"] = LLAMA3 | {"rope_theta": 50000.0}
    assert rope_settings(old) == rope_settings(new)
    assert rope_settings({"rope_theta": None})["rope_theta"] == 10000.0


@pytest.mark.parametrize("scaling", SCALINGS, ids=["default", "linear", "llama3"])
def test_kept_pairs_keep_their_frequencies_over_two_cuts(scaling: dict[str, Any] | None) -> None:
    config = BASE | {"rope_scaling": scaling}
    original = inverse_frequencies(config)
    first = config | {"head_dim": 10} | kept_pairs_settings(config, [0, 2, 3, 6, 7])
    second = first | {"head_dim": 6} | kept_pairs_settings(first, [1, 3, 4])

    exactly: dict[str, Any] = {"rtol": 1e-14, "atol": 0.0}
    torch.testing.assert_close(inverse_frequencies(first), original[[0, 2, 3, 6, 7]], **exactly)
    torch.testing.assert_close(inverse_frequencies(second), original[[2, 6, 7]], **exactly)
    torch.testing.assert_close(stock_frequencies(dict(second)), original[[2, 6, 7]].float())


@pytest.mark.parametrize("scaling", SCALINGS, ids=["default", "linear", "llama3"])
@pytest.mark.parametrize(("stride", "count"), [(1, 5), (2, 3), (2, 4), (3, 3), (7, 2)])
def test_pairs_in_progression_need_another_theta_only(scaling: dict[str, Any] | None, stride: int, count: int) -> None:
    config = BASE | {"rope_scaling": scaling}
    kept = [place * stride for place in range(count)]
    cut = config | {"head_dim": 2 * count} | kept_pairs_settings(config, kept)
    assert rope_settings(cut)["rope_type"] == rope_settings(config)["rope_type"]
    torch.testing.assert_close(inverse_frequencies(cut), inverse_frequencies(config)[kept], rtol=1e-12, atol=0.0)
    torch.testing.assert_close(stock_frequencies(dict(cut)), inverse_frequencies(config)[kept].float())
    # transformers 4 looks at these two keys alone
    old = {key: value for key, value in cut.items() if key != "rope_parameters"}
    torch.testing.assert_close(inverse_frequencies(old), inverse_frequencies(cut))


def test_keys_for_old_and_new_transformers_and_vllm() -> None:
    settings = kept_pairs_settings(BASE, [1, 3])
    scaling = settings["rope_scaling"]
    assert settings["rope_theta"] == 50000.0
    assert settings["max_position_embeddings"] == scaling["original_max_position_embeddings"]
    assert settings["rope_parameters"] == scaling | {"rope_theta": 50000.0}
    assert scaling["short_factor"] == scaling["long_factor"]
    # Pair 1 of 8 turns at theta^(-1/8), but pair 0 of a smaller head would at 1.
    assert scaling["short_factor"][0] == pytest.approx(50000 ** (1 / 8))


def test_two_sets_of_settings_must_be_one() -> None:
    """transformers 5 reads rope_scaling where there is one, and its own files have rope_parameters."""
    new = BASE | {"rope_parameters": LLAMA3 | {"rope_theta": BASE["rope_theta"]}}
    both = inverse_frequencies(new | {"rope_scaling": LLAMA3})
    assert torch.equal(both, inverse_frequencies(new))
    with pytest.raises(ValueError, match="rope_parameters and rope_scaling differ"):
        inverse_frequencies(new | {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}})


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "yarn", "factor": 2.0}, "rope_type is 'yarn'; supported: default, linear"),
        ({"type": "dynamic", "factor": 2.0}, "rope_type is 'dynamic'"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"full_attention": {"rope_type": "default"}}, r"differ between kinds of layers \(full_attention\)"),
        ({"rope_type": "longrope", "short_factor": [1.0]}, "attention_factor of longrope is None"),
        (
            {
                "rope_type": "longrope",
                "attention_factor": 1.0,
                "short_factor": [1.0],
                "long_factor": [2.0],
            },
            "short_factor and long_factor of longrope differ",
        ),
    ],
)
def test_refuses(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inverse_frequencies(BASE | {"rope_scaling": scaling})
