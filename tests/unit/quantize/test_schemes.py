"""What llm-compressor is asked for: groups that divide the rows of every weight, and names that are known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from transact.geometry import Geometry
from transact.quantize.schemes import SCHEMES, by_group, check_schemes, group_words, recipe, undivided_words

USUAL = Geometry(
    hidden_size=4096,
    num_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    intermediate_size=14336,
    vocab_size=128256,
    tied_embeddings=False,
)
SMOLLM2 = replace(
    USUAL, hidden_size=576, num_attention_heads=9, num_key_value_heads=3, head_dim=64, intermediate_size=1536
)


def test_the_usual_group_divides_the_usual_model() -> None:
    assert group_words(USUAL) == "groups of 128"
    assert undivided_words(USUAL) == ""


def test_rows_that_128_does_not_divide_get_a_smaller_group() -> None:
    """576 is 9 times 64; 1,536 is 12 times 128."""
    projections = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "o_proj"]
    assert by_group(SMOLLM2) == {64: projections, 128: ["down_proj"]}
    assert group_words(SMOLLM2) == "groups of 64, of 128 in down_proj"
    assert undivided_words(SMOLLM2).startswith("128 does not divide the rows of q_proj (576), k_proj (576)")
    assert "down_proj" not in undivided_words(SMOLLM2)


def test_rows_that_no_group_divides_are_scaled_as_a_whole() -> None:
    """9 heads of 40 are 360: 32 does not divide it."""
    cut = replace(SMOLLM2, head_dim=40)
    assert group_words(cut) == "groups of 64, whole rows in o_proj, of 128 in down_proj"
    groups = recipe("w4a16", cut)["arguments"]["config_groups"]
    whole = next(each for each in groups.values() if each["targets"] == ["re:.*(o_proj)$"])
    assert whole["weights"] == {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel"}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_recipe_leaves_the_output_layer(scheme: str) -> None:
    asked = recipe(scheme, SMOLLM2)
    assert asked["arguments"]["ignore"] == ["lm_head"]
    assert asked["modifier"] == ("GPTQModifier" if SCHEMES[scheme].calibrated else "QuantizationModifier")


def test_an_unknown_scheme_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ValueError, match="'w3a16' is no scheme: allowed are w4a16, w8a8, fp8"):
        check_schemes(["fp8", "w3a16"])
    with pytest.raises(ValueError, match="names one twice"):
        check_schemes(["fp8", "fp8"])
