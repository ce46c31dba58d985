"""mode=plan: what it writes, refuses, and says about memory, time and disk."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import REPOSITORY, Workplace
from transact.accelerators import BY_NAME
from transact.configuring import compose_config
from transact.forecast.contents import forecast
from transact.forecast.disk import gguf_bytes
from transact.forecast.text import text
from transact.geometry import Geometry
from transact.run import main

GIB = 1024**3
LARGE = ["+experiment=llama7b_50pct", "plan.num_ranks=8"]


def plan(*overrides: str) -> dict[str, Any]:
    return forecast(compose_config([*LARGE, *overrides]))


def test_the_command_prints_and_writes_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    arguments = [*LARGE, "mode=plan", f"output_dir={folder}", "plan.accelerator=h100", "plan.price_per_gpu_hour=2"]
    monkeypatch.setattr(sys, "argv", ["transact", *arguments])
    assert main() == 0
    said = capsys.readouterr().out
    assert (folder / "plan.txt").read_text() in said
    assert {path.name for path in folder.iterdir()} == {"plan.txt", "plan.json"}
    assert json.loads((folder / "plan.json").read_text())["memory"]["fits"] is True
    for part in ("KV bytes/token", "optimizer", "fits: ", "disk: ", "plan.mfu=0.4, an assumption", "cost: about"):
        assert part in said


def test_what_would_make_it_fit_does() -> None:
    """Each remedy, given as a setting, makes a plan that fits, with the peak that was promised."""
    tight = ["plan.memory_gib=18", "engine.activation_checkpointing=false"]
    memory = plan(*tight)["memory"]
    assert memory["fits"] is False
    assert memory["would_fit_with"]
    for each in memory["would_fit_with"]:
        settings = each["change"].split()
        ranks = [f"plan.num_ranks={settings[-2]}"] if settings[-1] == "ranks" else []
        again = plan(*tight, *(settings[:-2] if ranks else settings), *ranks)["memory"]
        assert again["fits"] is True, each
        assert again["peak_gib"] == pytest.approx(each["peak_gib"], abs=0.01)


def test_machines_come_before_quality() -> None:
    """What fits on more ranks is not bought with another objective, nor with settings that it does not take."""
    large = ("+experiment=llama70b_50pct", "plan.accelerator=h100")
    alone = [
        each["change"] for each in forecast(compose_config([*large, "plan.num_ranks=8"]))["memory"]["would_fit_with"]
    ]
    assert "32 ranks" in alone
    assert not any("cross_entropy" in each and "ranks" in each for each in alone)
    together = plan("plan.num_ranks=1", "plan.memory_gib=11", "recover.batch_sequences=16")["memory"]["would_fit_with"]
    for each in together:
        settings = each["change"].split()
        for left_out in settings[:-2] if settings[-1] == "ranks" else settings:
            fewer = [setting for setting in settings[:-2] if setting != left_out]
            again = plan(f"plan.num_ranks={settings[-2]}", "plan.memory_gib=11", "recover.batch_sequences=16", *fewer)
            assert again["memory"]["fits"] is False, left_out


def test_what_the_run_refuses_is_not_planned() -> None:
    """Nor recommended: 16 sequences divide into no more than 16 ranks."""
    with pytest.raises(ValueError, match="128 ranks need at least one sequence each"):
        plan("plan.num_ranks=128")
    with pytest.raises(ValueError, match=r"data\.sequence_length=8192 is not allowed: the model takes at most 4096"):
        plan("data.sequence_length=8192")
    few = ["recover.batch_sequences=16", "engine.micro_batch_sequences=1", "plan.memory_gib=8"]
    assert not any("32 ranks" in each["change"] for each in plan(*few)["memory"]["would_fit_with"])


def test_a_folder_at_hand_is_what_is_planned(workplace: Workplace) -> None:
    """Not the model of the experiment, whose name the plan bears."""
    with pytest.raises(ValueError, match=r"model\.architecture: hidden_size=4096, but .* has 64"):
        plan(f"model.path={workplace.model}")


def test_whole_heads_are_shown() -> None:
    found = plan("prune/method=paper_heads")
    counts = {each["geometry"]["num_attention_heads"] for each in found["rounds"]}
    assert len(counts) > 1 and min(counts) < 32
    said = text(found)
    assert f" {min(counts)}/{min(counts)} " in said
    assert "(heads/KV / intermediate): 32/32 / " in said


def test_scores_from_gradients_need_the_activations_of_all_layers() -> None:
    """And as much work again as a forward."""
    by_norms, by_taylor = (plan(f"prune/method={name}") for name in ("norms", "taylor"))
    (norms,), (taylor,) = (
        [each["bytes"] for each in found["memory"]["moments"] if each["stage"] == "round_01/calibrate"]
        for found in (by_norms, by_taylor)
    )
    assert taylor["activations"] > 10 * norms["activations"]
    assert "logits" in taylor and "logits" not in norms
    assert by_taylor["flops"]["calibrate"] == 2 * by_norms["flops"]["calibrate"]


def test_embeddings_of_q4_0_are_q8_0() -> None:
    small = Geometry.from_dict(plan()["rounds"][-1]["geometry"])
    inside = small.parameters() - 2 * 32000 * 4096
    assert gguf_bytes(small, "q4_0") == pytest.approx((inside * 4.5 + 2 * 32000 * 4096 * 8.5) / 8)


def test_nothing_fits_into_nothing() -> None:
    assert plan("plan.memory_gib=0.01")["memory"]["would_fit_with"] == []


def test_hours_follow_from_flops_and_the_assumed_share_of_the_peak() -> None:
    found = plan("eval=paper", "plan.accelerator=a100_80gb", "plan.mfu=0.5", "plan.price_per_gpu_hour=3")
    teacher = Geometry.from_dict(found["dense"]["geometry"]).flops_per_token(4096)
    flops = sum(
        each["tokens"] * (3 * Geometry.from_dict(each["geometry"]).flops_per_token(4096) + teacher)
        for each in found["rounds"]
    )
    hours = found["duration"]["hours"]
    assert hours["recover"] == pytest.approx(flops / (0.5 * 8 * BY_NAME["a100_80gb"].peak_flops) / 3600, rel=1e-3)
    assert {"measuring splits", "eval.texts and eval.tasks"} <= set(found["duration"]["not_counted"])
    assert found["duration"]["cost"] == pytest.approx(hours["all"] * 8 * 3, rel=1e-2)


def test_a_throughput_that_was_measured_counts_instead() -> None:
    """Of a model of its own size, in proportion to FLOPs: a run without a cut would take tokens over throughput."""
    given = plan("plan.tokens_per_second=10000")["duration"]
    assert given["hours"]["recover"] < 999_817_216 / 10_000 / 3600
    measured = plan(f"plan.throughput_file={REPOSITORY}/benchmarks/results/throughput.json")["duration"]
    assert "measured on 2 rank(s)" in measured["basis"]
    assert measured["hours"]["recover"] > 1000 * given["hours"]["recover"]
    with pytest.raises(ValueError, match=r"plan\.throughput_file=.* is no results file"):
        plan("plan.throughput_file=/nowhere.json")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("plan.accelerator=h900", r"plan\.accelerator='h900' is not allowed: it must be one of b200"),
        ("plan.mfu=2", r"plan\.mfu=2\.0 is not allowed"),
        ("plan.memory_gib=0", r"plan\.memory_gib=0\.0 is not allowed"),
    ],
)
def test_wrong_assumptions_are_refused(setting: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        compose_config([*LARGE, setting])
