"""What the README says was measured is what the results hold."""

from __future__ import annotations

from statistics import mean
from typing import Any

import pytest

from benchmarks.quality_table import quality_table
from tests.support.commands import REPOSITORY
from transact.files import read_json

RESULTS = REPOSITORY / "benchmarks" / "results"


@pytest.fixture(scope="module")
def quality() -> dict[str, Any]:
    return read_json(RESULTS / "quality.json")


def test_the_readme_shows_the_tables_of_the_results(quality: dict[str, Any]) -> None:
    table = quality_table(quality)
    assert (RESULTS / "quality.md").read_text() == table
    assert table.strip() in (REPOSITORY / "README.md").read_text()


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
