"""The work of stages, which the time left and the estimate rest on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.configs import compose_config
from transact.engine.memory import sums_grams_in_calibration
from transact.models.folder import declared_geometry
from transact.rounds import Outline, Stage, outline
from transact.stages.workload import (
    GRAM_SHARE,
    GRAM_WEIGHT,
    elimination_share,
    stage_flops,
)

REQUESTS: list[list[str]] = [
    [],
    ["prune.rounds=3"],
    ["prune.split=auto", "prune.remove_fraction=0.5"],
    ["prune/method=norms"],
    ["prune/method=taylor"],
    ["prune/method=paper_heads"],
    ["prune/method=parallel"],
    ["prune/method=obs"],
    ["recover.objective=cross_entropy"],
    ["export.gguf=f16", "eval.efficiency.measured=false"],
    ["+experiment=llama7b_50pct"],
    ["+experiment=llama7b_70pct"],
]


def work_of(*overrides: str) -> tuple[dict[Stage, float], Any, Outline]:
    config = compose_config(["name=run", "data.sequence_length=256", *overrides])
    asked = outline(config, declared_geometry(config.model))
    return stage_flops(config, asked), config, asked


@pytest.mark.parametrize("request_", REQUESTS, ids=" ".join)
def test_every_stage_of_every_request_has_its_work(request_: list[str]) -> None:
    work, config, asked = work_of(*request_)
    assert tuple(work) == asked.stages
    # A selection may have no channels to choose, a cut no refit, and a file for llama.cpp is written, not computed.
    free = ["select", "slice", f"gguf_{config.export.gguf}"]
    free += ["gram"] if sums_grams_in_calibration(config, 1) else []
    assert [stage for stage, flops in work.items() if flops == 0 and stage.kind not in free] == []
    assert all(flops >= 0 for flops in work.values())


def test_a_split_begins_with_the_choice_of_channels() -> None:
    _, config, asked = work_of("prune.split=auto", "prune.remove_fraction=0.5", "prune/method=obs")
    assert 0 < elimination_share(config, asked) < 1
    _, config, asked = work_of("prune.split=auto", "prune.remove_fraction=0.5")
    assert elimination_share(config, asked) == 0


def test_a_recovery_of_zero_tokens_is_no_work() -> None:
    work, _, _ = work_of("recover.tokens=0")
    assert not [stage for stage, flops in work.items() if stage.kind == "recover" and flops]


def test_the_first_pass_for_gram_matrices_is_that_of_calibration() -> None:
    """But not where points of a sweep share the parent's sums, nor where gradients are summed."""

    def passes(*overrides: str) -> list[float]:
        """Forwards over the calibration text by stage, in round 1 and 2, without what is summed in them."""
        work, config, asked = work_of("prune/method=obs", "prune.rounds=2", *overrides)
        tokens = config.prune.calibration_sequences * config.data.sequence_length
        found = []
        for number in (1, 2):
            forward = tokens * asked.before(number).flops_per_token(config.data.sequence_length)
            kinds = ("calibrate", "gram")
            both = sum(work[stage] for stage in work if stage.kind in kinds and stage.round == number)
            found.append((both - _summing(config, asked, number)) / forward)
            assert (work[Stage("gram", number)] < forward) == sums_grams_in_calibration(config, number)
        return found

    assert passes() == pytest.approx([1, 1])
    assert passes("share_dir=shared") == pytest.approx([2, 1])
    assert passes("prune/method=taylor", "prune.method.refit=least_squares") == pytest.approx([3, 3])


def _summing(config: Any, asked: Outline, number: int) -> float:
    """By hand: a product of each layer's inputs of o_proj and down_proj with themselves, for each token."""
    before, tokens = asked.before(number), config.prune.calibration_sequences * config.data.sequence_length
    squares = (before.num_attention_heads * before.head_dim) ** 2 + before.intermediate_size**2
    return GRAM_WEIGHT * GRAM_SHARE * tokens * before.num_layers * 2 * squares


def test_forwards_are_counted_exactly() -> None:
    """By hand, from FLOPs of a token."""
    recovery = ["recover.objective=cross_entropy", "recover.tokens=65536", "recover.batch_sequences=16"]
    work, config, asked = work_of("prune/method=obs", "prune.rounds=1", *recovery)
    context = config.data.sequence_length
    parent, cut = asked.parent, asked.rounds[0].geometry
    forward, tokens = cut.flops_per_token(context), 65536
    validated = 5 * config.recover.validation_sequences * context
    assert work[Stage("evaluate", 0)] == config.data.evaluation_sequences * context * parent.flops_per_token(context)
    evaluated = config.data.evaluation_sequences * context  # of the sliced model within the recovery
    assert work[Stage("evaluate", 1)] == evaluated * forward
    calibrated = config.prune.calibration_sequences * context * parent.flops_per_token(context)
    assert work[Stage("calibrate", 1)] == pytest.approx(calibrated + _summing(config, asked, 1))
    assert work[Stage("recover", 1)] == pytest.approx((3 * tokens + validated + evaluated) * forward)
