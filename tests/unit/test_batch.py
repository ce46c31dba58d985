"""The batch of recovery where the request leaves it to the tokens: settled once, kept by what goes on from there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from transact.config.compose import compose_config, to_yaml
from transact.config.run import RunConfig
from transact.files import write_text
from transact.models.folder import declared_geometry
from transact.rounds import outline, text_sequences
from transact.stages.preflight import check_ranks, check_same_run, with_batch

SETTINGS = ["name=run", "data.sequence_length=64", "recover.tokens=131072"]


def asked(folder: Path, *overrides: str) -> RunConfig:
    return compose_config([*SETTINGS, f"output_dir={folder}", *overrides])


@pytest.mark.parametrize(
    ("ranks", "micro_batch", "expected"),
    [
        (1, "auto", (8, "auto")),
        (16, "auto", (16, "auto")),
        (1, "3", (8, 2)),
        (2, "2", (8, 2)),
        (2, "8", (8, 4)),
        (16, "8", (16, 1)),
    ],
)
def test_ranks_divide_it_and_micro_batches_do(
    tmp_path: Path, ranks: int, micro_batch: str, expected: tuple[int, int | str]
) -> None:
    found = with_batch(asked(tmp_path / "run", f"engine.micro_batch_sequences={micro_batch}"), ranks)
    assert (found.recover.batch, found.engine.micro_batch_sequences) == expected


@pytest.mark.parametrize("micro_batch", [3, 8, "auto"])
def test_without_recovery_there_is_no_batch_and_any_ranks_go_on(tmp_path: Path, micro_batch: int | str) -> None:
    one_shot = asked(tmp_path / "run", "recover.tokens=0", f"engine.micro_batch_sequences={micro_batch}")
    for ranks in (1, 2, 5):
        found = with_batch(one_shot, ranks)
        check_ranks(found, ranks)
        assert found == one_shot  # what config.yaml says, which the run is compared with
    with pytest.raises(ValueError, match=r"recover.batch_sequences=3 is not allowed: 4 ranks need at least one"):
        check_ranks(asked(tmp_path / "run", "recover.tokens=0", "recover.batch_sequences=3"), 4)


def test_a_batch_that_an_earlier_version_recorded_without_recovery_is_no_conflict(tmp_path: Path) -> None:
    before = asked(tmp_path / "run", "recover.tokens=0", "recover.batch_sequences=16")
    (tmp_path / "run").mkdir()
    write_text(tmp_path / "run" / "config.yaml", to_yaml(before))
    check_same_run(asked(tmp_path / "run", "recover.tokens=0"))
    with pytest.raises(ValueError, match="holds a run of another configuration"):
        check_same_run(asked(tmp_path / "run", "recover.batch_sequences=8"))


def test_a_batch_that_is_given_stays(tmp_path: Path) -> None:
    assert with_batch(asked(tmp_path / "run", "recover.batch_sequences=3"), 2).recover.batch == 3


@pytest.mark.parametrize("other", [{"recover": {}}, {"recover": {"learning_rate": 1e-4, "variant": "slow"}}])
def test_what_goes_on_with_a_run_keeps_its_batch_on_other_ranks(tmp_path: Path, other: dict[str, Any]) -> None:
    first = with_batch(asked(tmp_path / "run", "engine.micro_batch_sequences=auto"), 16)
    (tmp_path / "run").mkdir()
    write_text(tmp_path / "run" / "config.yaml", to_yaml(first))
    again = asked(tmp_path / "run", "engine.micro_batch_sequences=auto")
    again = replace(again, recover=replace(again.recover, **other["recover"]))
    if again.recover.variant is not None:
        again = replace(again, output_dir=str(tmp_path / "run" / "variants" / "slow"))
    assert with_batch(again, 2).recover.batch == 16
    more = replace(again, recover=replace(again.recover, tokens=16 * again.recover.tokens))
    assert with_batch(more, 2).recover.batch == 32
    many = replace(again, engine=replace(again.engine, micro_batch_sequences=8))
    assert with_batch(many, 4).engine.micro_batch_sequences == 4
    with pytest.raises(ValueError, match=r"began with steps of 16 sequences, .* 6 ranks do not divide that"):
        with_batch(again, 6)


def test_any_batch_finds_the_same_text(tmp_path: Path) -> None:
    """mode=tokenize is one process, the run it works for are many: their whole steps are not the same tokens."""
    found = []
    for ranks in (1, 24):
        config = with_batch(asked(tmp_path / "run", "recover.tokens=100000000", "data.sequence_length=64"), ranks)
        tokens = outline(config, declared_geometry(config.model)).tokens
        found.append((tokens, text_sequences(config, tokens)))
    assert found[0][0] != found[1][0] and found[0][1] == found[1][1]


def test_more_ranks_than_a_round_has_text_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"a step of 4096 rank\(s\) has 4096 sequences of 64 tokens, more than a round"
    ):
        with_batch(asked(tmp_path / "run"), 4096)
