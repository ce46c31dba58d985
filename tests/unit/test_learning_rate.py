"""The learning rate of a recovery: its peak by the parent's size and the cut, and its course over a round."""

from __future__ import annotations

import itertools
import math

import pytest

from tests.support.configs import compose_config
from transact.config.pruning import RecoverConfig
from transact.geometry import Geometry
from transact.pruning.schedule import LARGEST_RATE, learning_rate_at, peak_learning_rate, warmup_steps
from transact.rounds import peak_rates, steps_to_validate
from transact.stages.recover.checkpoints import Position
from transact.stages.recover.health import has_risen, rise

SIZES = [10**exponent * digit for exponent in range(5, 12) for digit in (1, 2, 5)]
SHARES = [0.02, 0.1, 0.25, 0.3, 0.5, 0.7, 0.95, 1.0]


@pytest.mark.parametrize(
    ("parameters", "removed", "expected"),
    [
        (2_262_720, 0.5, 2e-3),  # the demo parent: docs/log.md
        (134_515_008, 0.5, 5.1e-4),  # SmolLM2-135M: docs/log.md
        (8_030_261_248, 0.5, 1e-4),  # Minitron and modelopt
        (68_976_648_192, 0.5, 4.2e-5),
    ],
)
def test_the_peak_is_what_was_measured_or_published(parameters: int, removed: float, expected: float) -> None:
    assert peak_learning_rate(parameters, removed) == pytest.approx(expected, rel=0.05)


def test_the_peak_falls_with_size_and_grows_with_the_cut() -> None:
    for removed in SHARES:
        rates = [peak_learning_rate(size, removed) for size in SIZES]
        assert rates == sorted(rates, reverse=True)
        assert all(0 < rate <= LARGEST_RATE for rate in rates)
    for size in SIZES:
        rates = [peak_learning_rate(size, removed) for removed in SHARES]
        assert rates == sorted(rates)
        assert all(float(f"{rate:.1e}") == rate for rate in rates)  # what is shown is what is used


def test_adapters_have_ten_times_the_rate() -> None:
    """Of the tables of "LoRA Without Regret", for alpha = 32 at any rank, which is the default."""
    for size in SIZES:
        for removed in SHARES:
            rate = peak_learning_rate(size, removed, of_adapters=True)
            assert rate == pytest.approx(10 * peak_learning_rate(size, removed), rel=0.05)
            assert float(f"{rate:.1e}") == rate
    assert RecoverConfig().lora.alpha == 32


def test_the_rate_follows_what_is_trained_unless_it_is_given() -> None:
    parent = Geometry(
        hidden_size=4096,
        num_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=14336,
        vocab_size=128256,
        tied_embeddings=False,
    )
    full, lora, given = (
        peak_rates(compose_config(["name=x", *more]), parent, [0.5])
        for more in ([], ["recover.method=lora"], ["recover.method=lora", "recover.learning_rate=3e-4"])
    )
    assert (full, lora, given) == ([1e-4], [1e-3], [3e-4])


@pytest.mark.parametrize("num_steps", range(1, 40))
@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.5, 1.0])
def test_the_warm_up_has_its_fewest_steps_or_half_of_a_short_round(num_steps: int, fraction: float) -> None:
    fewest = RecoverConfig.__dataclass_fields__["min_warmup_steps"].default
    steps = warmup_steps(num_steps, fraction, fewest)
    assert steps >= min(fewest, num_steps // 2)
    assert steps >= fraction * num_steps
    assert steps == max(fewest, 1) or fraction * num_steps > fewest - 1 or num_steps < 2 * fewest
    settings = {"peak": 1e-3, "warmup_fraction": fraction, "min_warmup_steps": fewest, "final_fraction": 0.1}
    rates = [learning_rate_at(step, num_steps, **settings) for step in range(num_steps)]
    assert 0 < max(rates) <= 1e-3
    assert all(before < after for before, after in itertools.pairwise(rates[:steps]))
    assert all(before > after for before, after in itertools.pairwise(rates[steps:]))


@pytest.mark.parametrize(
    ("now", "risen"), [(5.0, False), (4.0, False), (5.019, False), (5.021, True), (math.inf, True), (math.nan, True)]
)
def test_a_loss_has_risen_beyond_the_up_and_down_of_steps(now: float, risen: bool) -> None:
    assert has_risen(5.0, now) == risen


def test_an_alert_says_the_new_rate_or_that_it_stays() -> None:
    lowered, kept = (rise((326.0, 4), 604.0, before=1e-3, after=after).text for after in (5e-4, 1e-3))
    assert lowered == (
        "perplexity 604.00 is above the 326.00 of step 4: back to those weights, peak learning rate 5.0e-04 instead of "
        "1.0e-03"
    )
    assert kept == (
        "perplexity 604.00 is above the 326.00 of step 4 (peak learning rate 1.0e-03); the best weights seen are kept"
    )


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [
        (16, {4, 8, 12, 16}),  # the warm-up ends with the first of the evenly spread ones
        (32, {4, 8, 16, 24, 32}),
        (1000, {50, 100, 200, 250, 500, 750, 1000}),
        (2, {1, 2}),
        (1, {1}),
    ],
)
def test_a_round_is_validated_early_too(num_steps: int, expected: set[int]) -> None:
    assert steps_to_validate(num_steps, RecoverConfig()) == expected


def test_a_lowered_rate_goes_on_after_a_restart() -> None:
    position = Position(step=9, best_loss=4.0, best_step=4, validated_step=8, rate_factor=0.25)
    manifest = position.to_dict()
    assert Position.from_manifest(manifest) == position
    del manifest["rate_factor"]  # a checkpoint of a version that lowered none
    assert Position.from_manifest(manifest).rate_factor == 1.0
