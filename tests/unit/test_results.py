"""What the README says was measured is what the results hold."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest

from benchmarks.efficiency_picture import draw
from benchmarks.efficiency_table import breakdown_markdown, efficiency_markdown
from benchmarks.memory_model import Case, architecture, memory_markdown
from benchmarks.quality_table import quality_table
from tests.support.commands import REPOSITORY
from transact.engine.memory import estimate_memory
from transact.files import read_json
from transact.models.llama import read_geometry

RESULTS = REPOSITORY / "benchmarks" / "results"


@pytest.fixture(scope="module")
def quality() -> dict[str, Any]:
    return read_json(RESULTS / "quality.json")


def test_the_readme_shows_the_tables_of_the_results(quality: dict[str, Any]) -> None:
    table = quality_table(quality)
    assert (RESULTS / "quality.md").read_text() == table
    assert table.strip() in (REPOSITORY / "README.md").read_text()


def test_the_readme_shows_what_the_efficiency_benchmark_measured() -> None:
    result = read_json(RESULTS / "efficiency.json")
    table = efficiency_markdown(result)
    assert (RESULTS / "efficiency.md").read_text() == table
    assert table.strip() in (REPOSITORY / "README.md").read_text()


def test_the_picture_of_latencies_is_that_of_the_results(tmp_path: Path) -> None:
    """The same figures make the same file, with the version of matplotlib that the constraints name."""
    result = read_json(RESULTS / "efficiency.json")
    for name in ("first.svg", "second.svg"):
        draw(result["grid"], tmp_path / name)
    first, second = ((tmp_path / name).read_text() for name in ("first.svg", "second.svg"))
    assert first == second
    assert first == (RESULTS / "efficiency.svg").read_text()


def test_the_page_on_efficiency_shows_where_the_time_goes() -> None:
    table = breakdown_markdown(read_json(RESULTS / "efficiency.json"))
    assert (RESULTS / "efficiency_breakdown.md").read_text() == table
    assert table.strip() in (REPOSITORY / "docs" / "efficiency.md").read_text()


def test_half_removed_reaches_the_speed_up_that_it_allows_in_float32() -> None:
    (measured,) = large_models("float32")
    reached = [
        row["speed_ups"]["50% removed"][phase]["reached"]
        for row in measured["latency"]
        for phase in ("prefill", "decode")
    ]
    assert len(reached) == 4 and min(reached) >= 0.85


def test_where_less_is_reached_the_matrix_products_are_not_the_reason() -> None:
    """They alone are what a cut shrinks."""
    shares = {
        (measured["dtype"], row["model"], row["phase"]): row["products_speed_up"] / row["products_allowed"]
        for measured in large_models()
        for row in measured["breakdown"]
        if "products_allowed" in row
    }
    assert len(shares) == 8
    assert min(share for (dtype, *_), share in shares.items() if dtype == "float32") >= 0.85
    assert min(shares.values()) >= 0.8


def large_models(*dtypes: str) -> list[dict[str, Any]]:
    sizes = read_json(RESULTS / "efficiency.json")["sizes"]
    return [each for each in sizes if each["size"] != "demo" and each["dtype"] in (dtypes or each["dtype"])]


def perplexity(quality: dict[str, Any], method: str, fraction: float, figure: str) -> float:
    rows = [
        row
        for row in quality["rows"]
        if (row["method"], row["fraction"], row["text"]) == (method, fraction, "python_heldout")
        and (row["tokens"] > 0) == (figure == "perplexity_recovered")
    ]
    assert {row["seed"] for row in rows} == {0, 1}
    return mean(row[figure] for row in rows)


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("baseline", ["norms", "paper_heads", "paper_dims", "taylor", "magnitude", "random"])
def test_the_default_is_better_than_every_baseline(quality: dict[str, Any], baseline: str, fraction: float) -> None:
    ours, theirs = (perplexity(quality, name, fraction, "perplexity_one_shot") for name in ("default", baseline))
    assert ours < theirs
    if baseline == "paper_heads":
        assert ours <= {0.3: 1.0, 0.5: 0.7, 0.7: 0.6}[fraction] * theirs


@pytest.mark.parametrize("fraction", [0.5, 0.7])
def test_the_default_recovers_further_than_the_papers_recipe(quality: dict[str, Any], fraction: float) -> None:
    figures = (perplexity(quality, name, fraction, "perplexity_recovered") for name in ("default", "paper recipe"))
    ours, theirs = figures
    assert ours <= 0.85 * theirs


def test_the_readme_states_what_the_method_costs() -> None:
    cost, readme = read_json(RESULTS / "method_cost.json"), (REPOSITORY / "README.md").read_text()
    seconds = {row["channels"]: row["seconds"] for row in cost["greedy_obs"]}
    assert f"{seconds[4096]:.0f} s of 4,096 and {seconds[11008]:.0f} s of 11,008" in " ".join(readme.split())
    assert f"{cost['sequential_over_parallel']:.1f} times" in readme


def test_the_reliability_page_tells_what_was_measured() -> None:
    page = " ".join((REPOSITORY / "docs" / "reliability.md").read_text().split())
    faults, saving = (read_json(RESULTS / f"{name}.json") for name in ("faults", "saving"))
    assert faults["identical"] == faults["runs"] and faults["kills"] >= 30
    during = sum(count for place, count in faults["by_stage"].items() if place.endswith(": saving"))
    noticed = faults["seconds_to_notice"]["all"]
    assert max(noticed) < 30
    for told in (
        f"{faults['kills']} kills over {faults['runs']} runs, {during} of them while a checkpoint was written",
        f"{faults['identical']} runs ended with the weights and losses of the undisturbed one",
        f"{faults['lost_steps']} steps lost, {faults['repeated_steps']} repeated",
        f"{faults['left_over_files']} temporary files left",
        f"({len(noticed)} times) the whole job had ended within {max(noticed):.1f} s",
        f"the median was {median(noticed):.1f} s",
    ):
        assert told in page, told
    largest = max(saving["sizes"].values(), key=lambda size: size["parameters"])
    assert largest["share_of_time"] < saving["target"]
    for told in (
        f"A checkpoint of {largest['parameters'] / 1e6:.0f} million parameters, best weights included",
        f"is {largest['bytes'] / 1e6:,.0f} MB and took {largest['save_seconds']:.1f} s",
        f"{largest['share_of_time']:.2%}".replace("%", " % of the time at the default interval"),
    ):
        assert told in page, told


def test_the_memory_model_is_within_its_target_of_what_ranks_allocated() -> None:
    """Against today's formulas, whatever they were when it was measured."""
    result = read_json(RESULTS / "memory.json")
    for row in result["rows"]:
        case = Case(**{field.name: row[field.name] for field in fields(Case)})
        geometry = read_geometry(architecture(case.size).to_model_config())
        estimate = estimate_memory(geometry, case.config(), row["ranks"], case.stage, parent=geometry)
        assert round(estimate.total()) == row["estimated_bytes"]
        assert abs(estimate.total() / row["measured_bytes"] - 1) < result["target"], row
    assert {row["ranks"] for row in result["rows"]} == {1, 2, 4}
    table = memory_markdown(result)
    assert (RESULTS / "memory.md").read_text() == table
    assert table.strip() in (REPOSITORY / "docs" / "planning.md").read_text()
