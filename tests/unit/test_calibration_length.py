"""Too little calibration text for the width of a layer is told before the run, with the number that would do."""

from __future__ import annotations

import re

import pytest

from tests.support.configs import compose_config
from transact.estimate.contents import forecast
from transact.estimate.text import text
from transact.geometry import Geometry
from transact.stages.advice import TOKENS_PER_CHANNEL, calibration_warning


def geometry(channels: int, heads: int = 4, head_dim: int = 16) -> Geometry:
    return Geometry(
        hidden_size=64,
        num_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=head_dim,
        intermediate_size=channels,
        vocab_size=256,
        tied_embeddings=True,
    )


@pytest.mark.parametrize("channels", [32, 64, 640, 1536, 11008])
@pytest.mark.parametrize("sequences", [1, 2, 16, 128, 512])
@pytest.mark.parametrize("length", [64, 256, 4096])
def test_it_is_told_when_there_are_fewer_than_some_tokens_a_channel(channels: int, sequences: int, length: int) -> None:
    config = compose_config(["name=x"])
    config.prune.calibration_sequences, config.data.sequence_length = sequences, length
    warning = calibration_warning(config, geometry(channels))
    widest = max(channels, 64)
    assert (warning is None) == (sequences * length >= TOKENS_PER_CHANNEL * widest)
    if warning is None:
        return
    assert f"{sequences * length:,} calibration tokens" in warning and f"{widest:,} channels" in warning
    enough = re.search(r"prune\.calibration_sequences=(\d+)", warning)
    assert enough is not None
    config.prune.calibration_sequences = int(enough[1])
    assert calibration_warning(config, geometry(channels)) is None


def test_a_choice_that_fits_nothing_needs_less() -> None:
    config = compose_config(["name=x", "prune/method=magnitude", "prune.calibration_sequences=1"])
    assert calibration_warning(config, geometry(640)) is None


def test_the_estimate_tells_it() -> None:
    few = compose_config(["name=x", "prune.calibration_sequences=1"])
    assert "warning: 256 calibration tokens are few for 640 channels" in text(forecast(few))
    assert "calibration tokens are few" not in text(forecast(compose_config(["name=x"])))
