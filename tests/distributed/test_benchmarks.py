"""The benchmarks run: the same code as on a GPU, at a size of seconds. Figures are not judged here."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from benchmarks import gpu_check
from benchmarks.gpu_check import PARTS, check
from benchmarks.gpu_place import CheckFailed, Place, Section
from benchmarks.gpu_table import gpu_markdown
from benchmarks.peers.with_torch_pruning import perplexity
from benchmarks.workload import DEMO_PARENT
from tests.support.commands import REPOSITORY, environment
from tests.support.ranks import run_on_ranks
from tests.support.tasks import write_tasks
from tests.support.warm import WarmProcess, run_warm
from transact.data.stdlib_text import stdlib_documents

# Packages that a GPU machine may lack. A None in sys.modules makes an import fail as if it were not installed.
ABSENT = ("hydra", "omegaconf", "datasets", "pyarrow", "wandb", "submitit", "accelerate", "rich")
START_WITHOUT = "import runpy, sys; sys.modules.update(dict.fromkeys({absent!r})); sys.argv = {argv!r}; "
RUN_MODULE = "runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m`, without waiting for its imports."""
    return run_warm(list(arguments), module=module, cwd=REPOSITORY, environment=environment(), seconds=480)


def run_cold(command: list[str], seconds: float = 120) -> subprocess.CompletedProcess[str]:
    """In an interpreter of its own."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def result_of(process: subprocess.CompletedProcess[str], path: Path) -> dict[str, Any]:
    assert process.returncode == 0, process.stdout + process.stderr
    result = json.loads(path.read_text())
    assert isinstance(result, dict)
    return result


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_check_without_a_gpu_says_so(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    process = run("benchmarks.gpu_check", "--output", str(output))
    assert process.returncode == 0, process.stderr
    assert "there is no GPU" in process.stdout
    assert not output.exists()


def test_gpu_check_runs_under_torchrun_without_the_packages_for_configuration_and_tracking(tmp_path: Path) -> None:
    output, script, folder = tmp_path / "result.json", tmp_path / "script.py", tmp_path / "folder"
    folder.mkdir()
    argv = ["gpu_check", "--part=works", "--device=cpu", "--size=tiny", f"--folder={folder}", f"--output={output}"]
    script.write_text(START_WITHOUT.format(absent=ABSENT, argv=argv) + RUN_MODULE.format(module="benchmarks.gpu_check"))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    result = result_of(run_cold(launcher), output)
    assert result["world_size"] == 2
    sections = sections_of(result, "works")
    assert sections["same_units"]["figures"]["float32"] == 1.0
    assert len(sections["every_stage"]["figures"]) == 8
    assert sections["against_pytorch"]["figures"]["ours"][0] > 0
    assert sections["saving"]["figures"]["bytes"] > 0
    assert list(folder.iterdir()) == []  # the working folder is gone


def sections_of(result: dict[str, Any], part: str) -> dict[str, Any]:
    """The sections of a part, all of which ended well."""
    sections = result["parts"][part]["sections"]
    assert {name: each["said"] for name, each in sections.items() if each["state"] != "ok"} == {}
    assert [*sections] == [each.name for each in PARTS[part]]
    return dict(sections)


def test_gpu_check_measures_layers_and_channels_beside_the_estimate(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    options = ["--part=fast", "--device=cpu", "--size=tiny", f"--output={output}"]
    sections = sections_of(result_of(run("benchmarks.gpu_check", *options), output), "fast")
    cases = sections["layers"]["figures"]["cases"]
    refused = [each for each in cases if "reason" in each]
    cases = [each for each in cases if each not in refused]
    assert all("it needs a GPU" in each["reason"] for each in refused), refused
    measured = {(each["attention"], each["whole_layers"], each["recomputes"], each["sequences"]) for each in cases}
    assert len(measured) == len(cases) and {("sdpa", True, False, 2), ("sdpa", False, True, 1)} < measured
    assert all(each["tokens_per_s"] > 0 and each["estimated_bytes"] > 0 for each in cases)
    assert [each["channels"] for each in sections["channels"]["figures"]["cases"]] == [128, 192]


def test_gpu_check_stops_kills_and_ends_a_run(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    options = ["--part=chain", "--device=cpu", "--size=tiny", f"--output={output}"]
    ended = run_cold(["-m", "benchmarks.gpu_check", *options], seconds=400)  # it starts and kills processes of its own
    sections = sections_of(result_of(ended, output), "chain")
    figures = sections["resume_and_export"]["figures"]
    assert {"round_01/slice", "round_02/recover", "export"} <= figures["stages"].keys()
    assert figures["tokens_per_s"] > 0 and figures["stages"]["round_02/recover"]["estimated_bytes"] > 0


def checked_with(sections: tuple[Section, ...], output: Path, budget: float) -> int:
    """gpu-check of these sections alone, on this rank."""
    from transact.distributed.process import process_group

    PARTS["works"] = sections
    arguments = argparse.Namespace(part="works", size="full", output=output, budget=budget)
    with process_group("cpu", 5) as group:
        return check(arguments, group, output.with_suffix(".work"))


def fails(place: Place) -> dict[str, Any]:
    if place.group.rank == 1:
        raise CheckFailed("the second rank sees it")
    return {"said": "well"}


def ends_well(place: Place) -> dict[str, Any]:
    return {"figure": 1.5, "said": "well"}


def test_gpu_check_goes_on_after_a_failure_and_keeps_to_its_time(tmp_path: Path) -> None:
    output = tmp_path / "gpu_test.json"
    sections = (
        Section(name="broken", seconds=1, run=fails),
        Section(name="long", seconds=100, run=ends_well),
        Section(name="sound", seconds=1, run=ends_well),
    )
    assert run_on_ranks(2, checked_with, sections, output, 50) == [1, 1]
    result = json.loads(output.read_text())
    found = result["parts"]["works"]["sections"]
    assert [each["state"] for each in found.values()] == ["failed", "skipped", "ok"]
    assert found["broken"]["said"] == "the second rank sees it"
    assert found["long"]["said"].startswith("100 s would be needed, ")
    assert found["sound"]["figures"] == {"figure": 1.5}
    table = gpu_markdown([result])
    assert "| 2 x cpu | works: broken | failed | the second rank sees it |\n" in table and table.count("\n") == 5
    assert "nothing was measured on a GPU" in gpu_markdown([])

    # Another part of the same machine stays; one of another number of ranks does not.
    stored = result | {"parts": result["parts"] | {"fast": {"sections": {}}}}
    output.write_text(json.dumps(stored))
    assert run_on_ranks(2, checked_with, sections[1:], output, 500) == [0, 0]
    assert json.loads(output.read_text())["parts"].keys() == {"works", "fast"}
    assert run_on_ranks(1, checked_with, sections[2:], output, 50) == [0]
    assert json.loads(output.read_text())["parts"].keys() == {"works"}


def hangs(place: Place) -> dict[str, Any]:
    time.sleep(120)
    return {"said": "well"}


def checked_within_a_second(output: Path) -> int:
    gpu_check.OVERRUN_SECONDS = 0.0
    return checked_with((Section(name="sound", seconds=0, run=ends_well), SLOW), output, 1.0)


SLOW = Section(name="slow", seconds=0, run=hangs)


def test_gpu_check_ends_in_time_and_keeps_what_it_measured(tmp_path: Path) -> None:
    output = tmp_path / "gpu_test.json"
    with pytest.raises(AssertionError, match=r"ranks \[0\] died"):
        run_on_ranks(1, checked_within_a_second, output)
    found = json.loads(output.read_text())["parts"]["works"]["sections"]
    assert [each["state"] for each in found.values()] == ["ok", "failed"]
    assert found["slow"]["said"].startswith("it took longer than the call may")


def test_tokenizing_compares_one_process_and_two(tmp_path: Path) -> None:
    """The stores that they make have the same bits, or it ends."""
    output = tmp_path / "tokenizing.json"
    options = ["--documents=30", "--repetitions=1", f"--output={output}"]
    result = result_of(run("benchmarks.tokenizing", *options), output)
    assert result["tokens"] > 0 and result["seconds"].keys() == {"one_process", "two_threads", "two_processes"}
    assert min(result["speed_up"], result["speed_up_by_processor_time"]) > 0


def test_throughput_compares_three_loops_on_two_ranks(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    small = ["--size=tiny", "--steps=2", "--repetitions=1", "--sequence-length=32", "--micro-batch-sequences=2"]
    more = ["--accumulation=2", "--processes=2", "--device=cpu", f"--output={output}"]
    result = result_of(run("benchmarks.throughput", *small, *more), output)
    assert result["world_size"] == 2
    assert result["tokens_per_s"].keys() == {"ours", "bare_deepspeed", "plain_pytorch"}
    assert min(result["tokens_per_s"].values()) > 0


def test_saving(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    process = run("benchmarks.saving", "--sizes", "tiny", "--repetitions=1", f"--output={output}")
    figures = result_of(process, output)["sizes"]["tiny"]
    # Four float32 for each parameter: the weight, Adam's two moments, the best weight.
    assert figures["bytes"] == pytest.approx(16 * figures["parameters"], rel=0.2)


def test_packing(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    small = ["--size=tiny", "--repetitions=2", "--sequence-length=32", "--document-tokens=8", f"--output={output}"]
    result = result_of(run("benchmarks.packing", *small), output)
    assert result["ratio"] > 0 and min(result["tokens_per_s"].values()) > 0


def test_quality_benchmark_writes_the_promised_rows_and_table(tmp_path: Path) -> None:
    output = tmp_path / "quality.json"
    sizes = ["--tokens=4096", "--evaluation-sequences=8", "--calibration-sequences=16", "--seeds", "0"]
    fractions = ["--fractions", "0.5", "--recovered-fractions", "0.5"]
    methods = ["--one-shot", "obs, equal split", "paper_heads", "--recovered", "obs, equal split"]
    process = run("benchmarks.quality", "--jobs=2", *sizes, *fractions, *methods, f"--output={output}")
    result = result_of(process, output)
    assert set(result["parent"]) == {"python_heldout", "package_descriptions"}
    assert len(result["rows"]) == 3 * 2
    for row in result["rows"]:
        assert {"method", "fraction", "seed", "objective", "rounds", "tokens", "stock", "text"} <= row.keys()
        assert row["stock"] is True
        assert row["perplexity_one_shot"] > result["parent"][row["text"]]
        assert (row["perplexity_recovered"] is None) == (row["tokens"] == 0)
    ours, paper = (
        next(row for row in result["rows"] if row["method"] == method and row["tokens"] == 0)
        for method in ("obs, equal split", "paper_heads")
    )
    assert ours["parameters"] == pytest.approx(paper["parameters"], rel=0.002)
    assert ours["perplexity_one_shot"] < paper["perplexity_one_shot"]
    assert "| paper_heads |" in output.with_suffix(".md").read_text()


def write_measured_text(folder: Path) -> None:
    """Write files of the standard library as a mixture of two sources, and others as a text of its own."""
    documents = list(islice(stdlib_documents("train"), 160))
    lines = [{"source": f"kind {number % 2}", "text": text[:6000]} for number, text in enumerate(documents)]
    folder.mkdir()
    folder.joinpath("mixture.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    folder.joinpath("held_out.txt").write_text("\n\n".join(islice(stdlib_documents("heldout"), 4)))


def test_rows_of_a_real_model_survive_a_kill_and_are_those_of_the_command_line(tmp_path: Path) -> None:
    output, text = tmp_path / "real_model.json", tmp_path / "text"
    write_measured_text(text)
    sizes = ["--sequence-length=128", "--calibration-sequences=8", "--validation-sequences=2"]
    sizes += ["--evaluation-sequences=2", "--fractions=0.5", "--threads=1", f"--model={DEMO_PARENT}"]
    places = [f"--text={text}", f"--work={tmp_path / 'work'}", f"--output={output}"]
    command = [*sizes, *places, "--methods", "default, equal split", "norms", "flap"]
    killed = WarmProcess(command, module="benchmarks.real_model", cwd=REPOSITORY, environment=environment())
    try:
        assert killed.stdout is not None
        next(line for line in killed.stdout if "row 4 of 7" in line)  # it is at work on the fourth
    finally:
        killed.kill()
        killed.wait(10)
    finished = json.loads(output.read_text())["rows"]
    assert len(finished) == 3
    result = result_of(run("benchmarks.real_model", *command), output)
    rows = {row["method"]: row for row in result["rows"]}
    assert list(rows) == [
        "dense",
        *("default, equal split", "default, equal split, no refit"),
        *("norms", "norms, refit", "flap", "flap, refit"),
    ]
    assert len(result["rows"]) == len(rows)
    assert result["rows"][:3] == finished  # with their measured seconds: nothing was done twice
    for row in result["rows"][1:]:
        assert row["removed_transitional"] == pytest.approx(0.5, abs=0.01)
        assert set(row["perplexity"]) == {"held_out", "mixture"}
        assert all(value > rows["dense"]["perplexity"][name] for name, value in row["perplexity"].items())
    for name in ("norms", "flap"):
        assert rows[f"{name}, refit"]["perplexity"]["mixture"] < rows[name]["perplexity"]["mixture"]
    assert output.with_suffix(".md").read_text().count("\n| flap") == 2
    assert output.with_suffix(".svg").read_text().count("<path") > 8
    assert list((tmp_path / "work" / "rows").iterdir()) == []  # models are large

    # What the peers measure: stock transformers, no code of ours between.
    tokens = load_file(tmp_path / "work" / "tokens.safetensors")
    stock = AutoModelForCausalLM.from_pretrained(DEMO_PARENT, dtype=torch.float32).eval()
    for name, expected in rows["dense"]["perplexity"].items():
        assert perplexity(stock, tokens[name].long()) == pytest.approx(expected, rel=1e-5)
    assert tokens["calibration"].shape == (8, 128)

    own = [f"output_dir={tmp_path / 'run'}", f"data.token_store={tmp_path / 'tokens'}", "name=run"]
    more = ["eval.efficiency.measured=false", *own]
    process = run("transact.run", *rows["default, equal split"]["overrides"], *more)
    summary = result_of(process, tmp_path / "run" / "result.json")
    compared = json.loads((tmp_path / "run" / "comparison.json").read_text())["pruned"]["texts"]
    assert rows["default, equal split"]["perplexity"] == {
        "held_out": summary["pruned"]["perplexity"],
        "mixture": compared["mixture"]["perplexity"],
    }

    # A later call asks for more: the rows that are there stay.
    tasks = write_tasks(tmp_path / "tasks", "")
    for name in ("how_likely", "what_next"):  # which have no accuracy
        (tasks / f"{name}.yaml").unlink()
    more = ["--tasks", str(tasks), "--task-methods", "--recover=1024", "--recovered", "default, equal split"]
    more.append("--recovered-fractions=0.5")
    longer = result_of(run("benchmarks.real_model", *command, *more), output)["rows"]
    assert longer[:7] == result["rows"]
    recovered, accuracies = longer[7:]
    assert recovered["recovery_tokens"] == 1024
    assert recovered["perplexity"]["mixture"] <= rows["default, equal split"]["perplexity"]["mixture"] * 1.01
    (scored,) = accuracies["tasks"].values()
    share, count = scored["accuracy"], scored["documents"]
    right = [1.0] * round(share * count) + [0.0] * round((1 - share) * count)
    assert count == 5
    assert scored["standard_error"] == pytest.approx(stdev(right) / count**0.5)
    assert "after recovery on 1,024 tokens" in output.with_suffix(".md").read_text()

    other = run("benchmarks.real_model", *command, "--seed=1")
    assert other.returncode == 2
    assert "holds rows of another settings" in other.stderr


def test_ablations_write_a_table_and_a_picture(tmp_path: Path) -> None:
    output = tmp_path / "ablations.json"
    sizes = ["--tokens=2048", "--evaluation-sequences=8", "--smallest"]
    result = result_of(run("benchmarks.ablations", "--jobs=2", *sizes, f"--output={output}"), output)
    assert len(result["rows"]) == 4 * 2
    assert "| rounds | `+experiment=ablation_one_shot` |" in output.with_suffix(".md").read_text()
    assert output.with_suffix(".svg").read_text().count("<path") > 8


def test_method_cost_runs(tmp_path: Path) -> None:
    output = tmp_path / "cost.json"
    sizes = ["--widths", "256", "--hidden-size", "64", "--repetitions", "1", "--calibration-sequences", "8"]
    sizes.append(f"--model={DEMO_PARENT}")
    result = result_of(run("benchmarks.method_cost", *sizes, f"--output={output}"), output)
    assert result["greedy_obs"][0]["seconds"] > 0
    (turn,) = result["cut"]["turns"]
    for method in ("parallel", "default"):
        assert turn[method].keys() == {"calibrate", "gram", "select", "slice"} and min(turn[method].values()) > 0
        spent = sum(turn[method].values()) / turn["forwards"]["all"]
        assert result["cut"]["over_forwards"][method] == pytest.approx(spent)


def test_rotary_pairs_compares_both_choices(tmp_path: Path) -> None:
    output = tmp_path / "rotary_pairs.json"
    sizes = ["--head-dims", "16", "--tokens=2048", "--calibration-sequences=4", "--evaluation-sequences=2"]
    result = result_of(run("benchmarks.rotary_pairs", "--jobs=2", *sizes, f"--output={output}"), output)
    rows = [row for row in result["rows"] if row["text"] == "python_heldout"]
    assert [row["method"] for row in rows] == ["free", "progression"]
    for row in rows:
        assert row["geometry"]["head_dim"] == 16
        assert result["parent"]["python_heldout"] < min(row["perplexity_recovered"], row["perplexity_one_shot"])
    assert rows[0]["perplexity_one_shot"] != rows[1]["perplexity_one_shot"]


def test_efficiency_measures_every_model_and_draws(tmp_path: Path) -> None:
    output = tmp_path / "efficiency.json"
    options = ["--sizes", "demo", "--pictured", "demo", "--smallest", "--output", str(output)]
    result = result_of(run("benchmarks.efficiency", *options), output)
    (measured,) = result["sizes"]
    assert measured["models"].keys() == {"parent", "50% removed", "80% removed"}
    parameters = [model["parameters"] for model in measured["models"].values()]
    assert [each / parameters[0] for each in parameters] == pytest.approx([1, 0.5, 0.2], abs=0.005)
    table = output.with_suffix(".md").read_text()
    assert table.count("\n| demo float32 |") == 3
    assert output.with_suffix(".svg").read_text().startswith("<?xml")
    assert len(measured["breakdown"]) == 6
    assert all(row["seconds"]["matrix_products"] > 0 for row in measured["breakdown"])
    assert output.with_name("efficiency_breakdown.md").read_text().count("\n| demo float32 |") == 6
