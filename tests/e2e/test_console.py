"""What a person sees of a run: on a terminal while it goes on, in its log, and at the end."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.e2e.conftest import ChainRun
from tests.support.terminal import HIDES_CURSOR, SHOWS_CURSOR, without_escapes
from transact.files import read_json


@pytest.fixture(scope="module")
def sent(chain_commands: Mapping[int, ChainRun]) -> str:
    """All that the terminal was sent by the run on two ranks through launch=local."""
    return chain_commands[2].ended.stdout


def test_a_terminal_shows_the_stages_and_the_loop_while_the_job_runs(sent: str) -> None:
    shown = without_escapes(sent)
    assert "round 01 ✓ calibrate" in shown
    assert "▸ recover" in shown
    assert "tokens/s" in shown
    assert re.search(r"about \d+:\d\d left in all", shown)
    assert "divergence " in shown


def test_the_terminal_is_given_back(sent: str) -> None:
    assert sent.rindex(SHOWS_CURSOR) > sent.rindex(HIDES_CURSOR)


def test_the_end_is_the_table_and_the_paths(sent: str, chain_commands: Mapping[int, ChainRun]) -> None:
    folder = chain_commands[2].folder
    lines = [line.rstrip() for line in without_escapes(sent).splitlines()]
    table = next(index for index, line in enumerate(lines) if "of the parameters removed, 40.0% asked" in line)
    end = lines[table:]
    assert any(line.startswith("round 2 recovered") for line in end)
    assert f"exported model: {folder}/export" in end
    assert f"result: {folder}/result.json" in end


def test_logs_have_no_escape_codes(chain_commands: Mapping[int, ChainRun]) -> None:
    run = chain_commands[2]
    (log,) = (run.folder / "logs").glob("*_0_log.out")
    assert "\x1b" not in log.read_text() + chain_commands[1].ended.stdout + chain_commands[1].ended.stderr
    assert "recover round 2  tokens=" in log.read_text()


def test_the_stages_are_those_that_the_view_announces(chain_commands: Mapping[int, ChainRun]) -> None:
    from transact.config.compose import typed_config
    from transact.models.folder import geometry_of
    from transact.rounds import outline

    for run in chain_commands.values():
        config = typed_config(_yaml(run))
        asked = outline(config, geometry_of(Path(config.model.path or "")))
        assert list(read_json(run.folder / "run.json")["stages"]) == [stage.name for stage in asked.stages]


def _yaml(run: ChainRun) -> dict[str, object]:
    import yaml

    return dict(yaml.safe_load((run.folder / "config.yaml").read_text()))
