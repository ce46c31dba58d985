"""mode=estimate: what it writes, refuses, and says about memory, time and disk."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import REPOSITORY, Workplace
from tests.support.configs import compose_config
from transact.config.accelerators import BY_NAME
from transact.estimate.contents import forecast
from transact.estimate.duration import RANK_BYTES_PER_SECOND
from transact.estimate.storage import gguf_bytes
from transact.estimate.text import in_words, text
from transact.files import write_json
from transact.geometry import Geometry
from transact.models.shard_writer import WRITE_BUFFER_BYTES
from transact.run import main

GIB = 1024**3
ONE_ROUND = ["prune.rounds=1", "recover.token_shares=null"]
LARGE = ["+experiment=llama7b_50pct", "estimate.num_ranks=8"]


def estimate(*overrides: str) -> dict[str, Any]:
    return forecast(compose_config([*LARGE, *overrides]))


def test_the_command_prints_and_writes_the_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    arguments = [
        *LARGE,
        "mode=estimate",
        f"output_dir={folder}",
        "estimate.accelerator=h100",
        "estimate.price_per_gpu_hour=2",
    ]
    monkeypatch.setattr(sys, "argv", ["transact", *arguments])
    assert main() == 0
    said = capsys.readouterr().out
    assert (folder / "estimate.txt").read_text() in said
    assert {path.name for path in folder.iterdir()} == {"estimate.txt", "estimate.json"}
    assert json.loads((folder / "estimate.json").read_text())["memory"]["fits"] is True
    for part in (
        "KV bytes/token",
        "optimizer",
        "fits: ",
        "disk: ",
        "a utilisation of 0.25, an assumption that nobody measured",
        "cost: about",
    ):
        assert part in said


def test_what_would_make_it_fit_does() -> None:
    """Each remedy, given as a setting, makes an estimate that fits, with the peak that was promised."""
    tight = ["estimate.memory_gib=18", "engine.activation_checkpointing=false"]
    memory = estimate(*tight)["memory"]
    assert memory["fits"] is False
    assert memory["would_fit_with"]
    for each in memory["would_fit_with"]:
        settings = each["change"].split()
        ranks = [f"estimate.num_ranks={settings[-2]}"] if settings[-1] == "ranks" else []
        again = estimate(*tight, *(settings[:-2] if ranks else settings), *ranks)["memory"]
        assert again["fits"] is True, each
        assert again["peak_gib"] == pytest.approx(each["peak_gib"], abs=0.01)


def test_machines_come_before_quality() -> None:
    """What fits on more ranks is not bought with another objective, nor with settings that it does not take."""
    large = ("+experiment=llama70b_50pct", "estimate.accelerator=h100")
    alone = [
        each["change"]
        for each in forecast(compose_config([*large, "estimate.num_ranks=8"]))["memory"]["would_fit_with"]
    ]
    assert "32 ranks" in alone
    assert not any("cross_entropy" in each and "ranks" in each for each in alone)
    together = estimate("estimate.num_ranks=1", "estimate.memory_gib=11")["memory"]["would_fit_with"]
    assert together
    for each in together:
        settings = each["change"].split()
        for left_out in settings[:-2] if settings[-1] == "ranks" else settings:
            fewer = [setting for setting in settings[:-2] if setting != left_out]
            again = estimate(f"estimate.num_ranks={settings[-2]}", "estimate.memory_gib=11", *fewer)
            assert again["memory"]["fits"] is False, left_out


def test_what_the_run_refuses_is_not_estimated() -> None:
    """Nor recommended: 16 sequences divide into no more than 16 ranks."""
    with pytest.raises(ValueError, match="128 ranks need at least one sequence each"):
        estimate("estimate.num_ranks=128")
    with pytest.raises(ValueError, match=r"data\.sequence_length=8192 is not allowed: the model takes at most 4096"):
        estimate("data.sequence_length=8192")
    few = ["engine.micro_batch_sequences=1", "estimate.memory_gib=22"]
    left_open, given = (estimate(*few, *batch)["memory"] for batch in ([], ["recover.batch_sequences=16"]))
    assert "32 ranks" in [each["change"] for each in left_open["would_fit_with"]]
    assert not any("32 ranks" in each["change"] for each in given["would_fit_with"])


def test_a_folder_at_hand_is_what_is_estimated(workplace: Workplace) -> None:
    """Not the model of the experiment, whose name the estimate bears."""
    with pytest.raises(ValueError, match=r"model\.architecture: hidden_size=4096, but .* has 64"):
        estimate(f"model.path={workplace.model}")


def test_whole_heads_are_shown() -> None:
    found = estimate("prune/method=paper_heads")
    counts = {each["geometry"]["num_attention_heads"] for each in found["rounds"]}
    assert len(counts) > 1 and min(counts) < 32
    said = text(found)
    assert f" {min(counts)}/{min(counts)} " in said
    assert "(heads/KV x intermediate): 32/32 x " in said and "measures 8 splits of the cut" in " ".join(said.split())


def test_splits_are_listed_with_what_differs_among_them() -> None:
    """Heads of 128 or 64; where the cache is limited all 32 or 16 of them, of which not all need be measured."""
    said = " ".join(text(estimate("prune.multiple.head_dim=64")).split())
    assert "measures 2 splits of the cut" in said and "(head_dim x intermediate): 128 x 2,560, 64 x 5,120 " in said
    limits = ["prune=half_cache", "prune.multiple.head_dim=64"]
    said = " ".join(text(estimate(*limits)).split())
    assert "measures at most 3 splits of the cut" in said
    assert "(heads/KV x head_dim x intermediate): 32/32 x 64 x " in said and ", 16/16 x 128 x " in said
    said = " ".join(text(estimate(*limits, "prune.multiple.num_key_value_heads=32")).split())
    assert "measures 1 split of the cut" in said


def test_scores_from_gradients_need_the_activations_of_all_layers() -> None:
    """And as much work again as a forward."""
    by_norms, by_taylor = (estimate(f"prune/method={name}") for name in ("norms", "taylor"))
    (norms,), (taylor,) = (
        [each["bytes"] for each in found["memory"]["moments"] if each["stage"] == "round_01/calibrate"]
        for found in (by_norms, by_taylor)
    )
    assert taylor["activations"] > 10 * norms["activations"]
    assert "logits" in taylor and "logits" not in norms
    assert by_taylor["flops"]["calibrate"] == 2 * by_norms["flops"]["calibrate"]


def test_embeddings_of_q4_0_are_q8_0() -> None:
    small = Geometry.from_dict(estimate()["rounds"][-1]["geometry"])
    inside = small.parameters() - 2 * 32000 * 4096
    assert gguf_bytes(small, "q4_0") == pytest.approx((inside * 4.5 + 2 * 32000 * 4096 * 8.5) / 8)


def test_a_save_needs_a_buffer_of_the_machine_s_memory_and_not_the_state() -> None:
    """The first recovery has the largest model; its best weights are kept twice while better ones replace them."""
    found = estimate("prune/method=parallel")
    parameters, host = found["rounds"][0]["parameters"], found["memory"]["host_bytes"]
    assert host == {"best_weights": 2 * parameters * 4 // found["ranks"], "write_buffer": WRITE_BUFFER_BYTES}
    whole = estimate("prune/method=parallel", "engine.zero_stage=0")["memory"]["host_bytes"]
    assert whole["best_weights"] == 2 * parameters * 4  # which every rank has


def test_an_offloaded_optimizer_is_in_the_machine_s_memory() -> None:
    """Masters and two moments, and the gradients that they are updated with."""
    changes = ("engine.device=cuda", "engine.offload_optimizer=cpu")
    found, offloaded = estimate(changes[0]), estimate(*changes)
    (device, smaller) = (
        next(each for each in of["memory"]["moments"] if each["stage"] == "round_01/recover")
        for of in (found, offloaded)
    )
    assert device["total_bytes"] - smaller["total_bytes"] >= device["bytes"]["optimizer"] > 0
    assert "optimizer" not in smaller["bytes"]
    share = found["rounds"][0]["parameters"] / found["ranks"]
    assert offloaded["memory"]["host_bytes"]["offloaded_optimizer"] == pytest.approx(16 * share)


def test_passes_for_gram_matrices_follow_from_the_memory_of_the_accelerator() -> None:
    """At 7B all layers' sums are 35 GiB: one pass on what has room for them, more where less is left or asked for."""

    def passes(*overrides: str) -> list[int]:
        found = estimate("prune.method.gram_gib=null", *overrides)
        calibration, memory = found["calibration"], found["memory"]
        assert sum(calibration["gram_passes"]) == 32
        (moment,) = (each for each in memory["moments"] if each["stage"].endswith("gram"))
        assert moment["bytes"]["gram"] == calibration["gram_bytes_per_rank"]
        if memory["limit_gib"] is not None:
            assert moment["total_bytes"] < memory["limit_gib"] * 2**30
        return calibration["gram_passes"]

    assert passes("estimate.accelerator=h100") == [32]
    assert passes("estimate.accelerator=a100_40gb") == [16, 16]
    assert passes("estimate.memory_gib=5") == [1] * 32
    assert passes() == passes("prune.method.gram_gib=8") == passes("prune.method.gram_gib=8", "estimate.memory_gib=80")
    assert len(passes()) == 5


def test_nothing_fits_into_nothing() -> None:
    assert estimate("estimate.memory_gib=0.01")["memory"]["would_fit_with"] == []


def test_hours_follow_from_flops_and_the_assumed_share_of_the_peak() -> None:
    priced = ("estimate.accelerator=a100_80gb", "estimate.mfu=0.5", "estimate.price_per_gpu_hour=3")
    found = estimate("eval=paper", *priced)
    teacher = Geometry.from_dict(found["dense"]["geometry"]).flops_per_token(4096)
    forwards = [Geometry.from_dict(each["geometry"]).flops_per_token(4096) for each in found["rounds"]]
    flops = sum(
        each["tokens"] * (3 * forward + teacher) for each, forward in zip(found["rounds"], forwards, strict=True)
    )
    # Validation: at the start of a round, four times in it, before that after the warm-up, twice as many steps ...
    warmups = [math.ceil(0.03 * each["steps"]) for each in found["rounds"]]
    early = [
        sum(steps * 2**turn < round(each["steps"] / 4) for turn in range(10))
        for steps, each in zip(warmups, found["rounds"], strict=True)
    ]
    assert min(early) >= 3
    flops += 128 * 4096 * sum((5 + count) * forward for count, forward in zip(early, forwards, strict=True))
    hours, files = found["duration"]["hours"], found["duration"]["input_output_hours"]
    assert hours["recover"] - files["recover"] == pytest.approx(
        flops / (0.5 * 8 * BY_NAME["a100_80gb"].peak_flops) / 3600, rel=1e-3
    )
    assert hours["split"] > 0
    assert {"reading and tokenising text", "eval.tasks"} <= set(found["duration"]["not_counted"])
    assert found["duration"]["cost"] == pytest.approx(hours["all"] * 8 * 3, rel=1e-2)


def test_files_take_their_bytes_over_what_the_nodes_move() -> None:
    """Calibration looks through the engine of the evaluation before it, and reads a model to compare its digests."""
    found = estimate("estimate.accelerator=h100")
    sizes = [4 * each["parameters"] for each in (found["dense"], *found["rounds"][:-1])]
    one = found["duration"]["input_output_hours"]
    assert one["calibrate"] * 3600 == pytest.approx(sum(sizes[1:]) / 2e9, rel=1e-3)
    on_eight_nodes = estimate("estimate.accelerator=h100", "estimate.num_ranks=64")["duration"]
    for kind in ("calibrate", "gram", "evaluate"):
        assert on_eight_nodes["input_output_hours"][kind] == pytest.approx(one[kind] / 8, rel=1e-3)
    # Every rank reads every layer, so that more nodes read as long; layers that are fitted each for itself are shared.
    assert on_eight_nodes["input_output_hours"]["slice"] > 0.8 * one["slice"]
    alone, shared = (
        estimate("prune/method=parallel", "estimate.accelerator=h100", f"estimate.num_ranks={ranks}")["duration"]
        for ranks in (8, 64)
    )
    hours = [each["input_output_hours"]["slice"] for each in (alone, shared)]
    assert hours[1] == pytest.approx(hours[0] / 8, rel=1e-3)
    # One rank writes the export: 2 bytes a parameter, at the speed of a rank.
    exported = 2 * found["rounds"][-1]["parameters"] / RANK_BYTES_PER_SECOND
    for each in (found["duration"], on_eight_nodes):
        assert each["one_rank_hours"]["export"] * 3600 == pytest.approx(exported, rel=1e-3)


def test_checkpoints_of_a_recovery_are_counted_by_the_time_between_them() -> None:
    found = estimate("estimate.accelerator=h100")["duration"]
    seldom = estimate("estimate.accelerator=h100", "engine.checkpoint_every.minutes=100000")
    assert seldom["duration"]["saves"] == 0
    assert 8 <= found["saves"] <= 3 * seldom["duration"]["hours"]["recover"]  # at most one in twenty minutes
    hours = found["input_output_hours"]["recover"] - seldom["duration"]["input_output_hours"]["recover"]
    last, first = (16 * seldom["rounds"][number]["parameters"] / 2e9 / 3600 for number in (-1, 0))
    assert found["saves"] * last < hours < found["saves"] * first


def test_what_gpu_check_measured_counts_for_its_accelerator_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transact.estimate.duration.GPU_RESULTS", tmp_path)
    for name, mfu in (("gpu_h100.json", 0.4), ("gpu_8x_h100.json", 0.35), ("gpu_l4.json", None)):
        best = {"best": {"mfu": mfu}}
        write_json(tmp_path / name, {"parts": {"fast": {"sections": {"layers": {"figures": best}}}}})
    on_h100, on_l4 = (estimate(f"estimate.accelerator={name}")["duration"] for name in ("h100", "l4"))
    assert on_h100["basis"].startswith("a utilisation of 0.35, measured by make gpu-check (gpu_8x_h100.json)")
    assert on_l4["basis"].startswith("a utilisation of 0.25, an assumption that nobody measured")
    given = estimate("estimate.accelerator=h100", "estimate.mfu=0.35")["duration"]
    assert given["hours"] == on_h100["hours"] and given["basis"].startswith("estimate.mfu=0.35, as given")


def slicing_hours(ranks: int, method: str) -> float:
    """Of computing alone."""
    settings = (f"estimate.num_ranks={ranks}", f"recover.batch_sequences={ranks}", f"prune/method={method}")
    found = estimate("estimate.accelerator=h100", *settings)["duration"]
    return float(found["hours"]["slice"] - found["input_output_hours"]["slice"])


def test_layers_that_are_shared_out_take_as_long_as_the_rank_with_the_most() -> None:
    """32 layers on 24 ranks take as long as two on each: as on 16."""
    assert slicing_hours(16, "parallel") == pytest.approx(slicing_hours(24, "parallel"), abs=1e-5)


def test_where_layers_are_cut_in_order_every_rank_makes_every_fit() -> None:
    """Text is shared by the ranks; what does not get shorter by more of them is the fits."""
    few, more, many = (slicing_hours(ranks, "default") for ranks in (16, 32, 64))
    assert few > more > many
    assert few - more == pytest.approx(2 * (more - many), rel=1e-2)
    fits = 2 * more - few
    assert fits > 0 and many - fits == pytest.approx((few - fits) / 4, rel=1e-2)


def test_a_throughput_that_was_measured_counts_instead() -> None:
    """Of a model of its own size, in proportion to FLOPs: a run without a cut would take tokens over throughput."""
    given = estimate("estimate.tokens_per_second=10000")["duration"]
    assert given["hours"]["recover"] < 999_817_216 / 10_000 / 3600
    measured = estimate(f"estimate.throughput_file={REPOSITORY}/benchmarks/results/throughput_14m_stage0.json")[
        "duration"
    ]
    assert "measured on 2 rank(s)" in measured["basis"]
    assert measured["hours"]["recover"] > 1000 * given["hours"]["recover"]
    with pytest.raises(ValueError, match=r"estimate\.throughput_file=.* is no results file"):
        estimate("estimate.throughput_file=/nowhere.json")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("estimate.accelerator=h900", r"estimate\.accelerator='h900' is not allowed: it must be one of b200"),
        ("estimate.mfu=2", r"estimate\.mfu=2(\.0)? is not allowed"),
        ("estimate.memory_gib=0", r"estimate\.memory_gib=0(\.0)? is not allowed"),
    ],
)
def test_wrong_assumptions_are_refused(setting: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        compose_config([*LARGE, setting])


SMALL = ["name=small", "prune.rounds=1", "estimate.tokens_per_second=500"]


def small(*overrides: str) -> tuple[dict[str, Any], str]:
    found = forecast(compose_config([*SMALL, *overrides]))
    return found, text(found)


def test_the_fraction_is_told_of_all_parameters_and_of_the_layers() -> None:
    found, said = small("prune.remove_fraction=0.5")
    (last,) = found["rounds"]
    parent, pruned = (Geometry.from_dict(each["geometry"]) for each in (found["dense"], last))
    per_layer = [
        each.hidden_size * (2 * each.head_dim * (6 + 2) + 3 * each.intermediate_size) for each in (parent, pruned)
    ]
    of_all, of_layers = 1 - pruned.parameters() / parent.parameters(), 1 - per_layer[1] / per_layer[0]
    assert of_layers > of_all + 0.05
    assert f"removed: {of_all:.1%} of all parameters, which is {of_layers:.1%} of the layers'" in said


def test_at_most_five_warnings_and_none_about_what_the_parent_has() -> None:
    """Of every split of many requests. The parent's head_dim of 32 has rows of 192 weights, which have no K-quants."""
    for request in (["prune.multiple.head_dim=2", "prune.multiple.intermediate_size=2"], ["prune.split=equal"], []):
        for fraction in (0.1, 0.3, 0.5):
            found, said = small(f"prune.remove_fraction={fraction}", *request)
            warned = [line for line in said.splitlines() if line.startswith("warning: ")]
            assert len(warned) <= 6 and len([line for line in warned if "more of the kind" not in line]) <= 5
            assert len(found["warnings"]) <= 5 or "more of the kind, all of them in estimate.json" in warned[-1]
            assert not [
                line for line in found["warnings"] if line.startswith(("head_dim 32:", "intermediate_size 640:"))
            ]


def test_no_tokens_are_no_training() -> None:
    """Neither in memory, nor on the disk, nor in time."""
    found, said = small("recover.tokens=0", "prune/method=parallel")
    assert not [each for each in found["memory"]["moments"] if each["stage"].endswith("recover")]
    assert found["memory"]["host_bytes"] == {} and found["disk_bytes"]["training_checkpoints"] == 0
    assert "recover" not in found["duration"]["hours"]
    assert "recovery: none (recover.tokens=0)" in said
    assert not re.search("checkpoint|peak rate|best weights|optimizer|teacher", said)
    trained, _ = small()
    assert trained["memory"]["peak_gib"] > 1.5 * found["memory"]["peak_gib"]


@pytest.mark.parametrize(
    ("hours", "said"),
    [
        (4.15, "4.2 hours"),
        (1000.0, "1,000.0 hours"),
        (1.5, "90 minutes"),
        (0.05, "3 minutes"),
        (0.01, "36 seconds"),
        (1 / 3600, "1 second"),
        (0.0, "under a second"),
    ],
)
def test_times_have_the_unit_that_says_something(hours: float, said: str) -> None:
    assert in_words(hours) == said


def test_a_small_run_is_told_in_minutes_and_one_rank_as_one() -> None:
    said = small("launch=inline")[1]
    assert re.search(r"time: about \d+ (minutes|seconds), ", said) and " 0.0" not in said.split("time:")[1]
    assert "memory per rank on 1 rank, " in said and "rank(s)" not in said


def test_a_recovery_of_a_few_steps_is_warned_of() -> None:
    warned, silent = (
        small(f"recover.tokens={tokens}", "recover.batch_sequences=16")[0]["warnings"] for tokens in (8192, 65536)
    )
    assert [line for line in warned if line.startswith("a recovery of 2 steps")]
    assert not [line for line in silent if "teaches little" in line]


def test_no_line_but_those_of_the_table_is_longer_than_a_page() -> None:
    for request in ([], ["recover.tokens=0"], ["estimate.accelerator=h100", "estimate.tokens_per_second=null"]):
        lines = small(*request, "prune.split=auto")[1].splitlines()
        start = next(number for number, line in enumerate(lines) if "heads/KV" in line)
        assert max(len(line) for line in lines[:start] + lines[start + 3 :]) <= 110


def test_a_search_for_shapes_is_told_with_its_range_and_counted() -> None:
    uniform, layers = (
        estimate("estimate.accelerator=h100"),
        estimate("estimate.accelerator=h100", "prune.shapes=layers"),
    )
    assert "shapes: layers" not in text(uniform)
    assert "round_01/shapes" in text(layers) and "other stages of later rounds need less" in text(layers)
    words = " ".join(text(layers).split())
    last = layers["rounds"][-1]
    found = layers["shape_range"]
    assert f"shapes: layers; the search begins with the split that measures best of {found['starts']}." in words
    ends = [Geometry.from_dict(last["geometry"] | each) for each in layers["split_candidates"]]
    most = max(each.parameters() for each in ends), max(each.kv_bytes_per_token() for each in ends)
    assert found["starts"] == len(ends) > 1 and most[1] > last["kv_bytes_per_token"]
    assert f"of at most {most[0]:,} parameters and {most[1]:,} KV bytes per token; it measures" in words
    # The search cuts the dense parent, however many rounds then go towards what it finds.
    assert (found["intermediate_size"], found["num_key_value_heads"]) == (11_008, 32)
    given = estimate("prune.shapes=layers", "prune.split=equal", *ONE_ROUND)
    words, last = " ".join(text(given).split()), given["rounds"][-1]
    assert "the dimensions above are those that the search begins with" in words
    assert f"up to 11,008, and with 1 to 32 key-value heads, of at most {last['parameters']:,} parameters" in words
    limited = estimate("prune.shapes=layers", *ONE_ROUND, "prune=budget", "prune.budget.memory_bytes=0.5")
    assert "KV bytes per token, within prune.budget; it measures" in " ".join(text(limited).split())
    last = layers["rounds"][-1]
    hours = layers["duration"]["hours"]
    forward = last["flops_per_token"] * 128 * 4096 * 256 / (0.25 * 8 * BY_NAME["h100"].peak_flops) / 3600
    assert forward < hours["shapes"] < 5 * forward
    of_one_round = estimate("estimate.accelerator=h100", "prune.shapes=layers", *ONE_ROUND)["duration"]["hours"]
    assert hours["shapes"] == pytest.approx(of_one_round["shapes"])
    assert "shapes" not in uniform["duration"]["hours"] and "round_01/shapes" in layers["stages"]
    (row,) = [row for row in layers["memory"]["moments"] if row["stage"] == "round_01/shapes"]
    # Every projection of 32 layers: 4,096 rows of as many inputs as before the round, 2 bytes each.
    geometry = last["geometry"]
    widths = geometry["num_attention_heads"] * geometry["head_dim"] + geometry["intermediate_size"]
    assert row["bytes"]["gram"] >= 32 * 4096 * widths * 2


def test_too_few_shapes_for_a_search_are_told() -> None:
    few = estimate("prune.shapes=layers", "prune.shape_evaluations=66")["warnings"]
    words = "prune.shape_evaluations=66 is too few for the search, which begins with up to 64 shapes"
    assert any(words in line for line in few)
    for enough in ("prune.shape_evaluations=67", "prune.shapes=layers"):
        warnings = estimate("prune.shapes=layers", enough)["warnings"]
        assert not any("shape_evaluations" in line for line in warnings)
    assert estimate("prune.shapes=layers")["shape_evaluations"] == 8 * 32


def test_every_moment_of_the_only_round_is_told() -> None:
    said = small("prune.shapes=layers")[1]
    assert all(f"round_01/{kind}" in said for kind in ("calibrate", "gram", "shapes", "slice", "recover"))
    assert "later rounds" not in said


def test_the_token_store_holds_every_text() -> None:
    """Two bytes a token; a text of chats, of whose tokens answers alone count, has a byte more for each."""
    length = ["data=local", "data.train.files=[/x]", "data.evaluation.files=[/x]", "data.sequence_length=128"]

    def stored(*overrides: str) -> int:
        return int(small(*length, *overrides)[0]["disk_bytes"]["token_store"])

    plain = stored()
    held_out = compose_config([*SMALL, *length]).data.evaluation_sequences
    assert stored("data.evaluation.messages_field=messages", "data.evaluation.loss=answers") == plain + held_out * 128
    further = "+eval.texts.more={source: files, files: [/x]}"
    assert stored(further, "eval.text_sequences=10") == plain + 10 * 128 * 2
