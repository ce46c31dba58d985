"""A run that would not read what it was given is refused, so that it is not taken for the one that was meant."""

from __future__ import annotations

import pytest

from tests.support.configs import compose_config
from transact.stages.preflight import check_what_is_read

PRETRAIN = ["mode=pretrain", "model=demo_random", "recover.objective=cross_entropy"]
UNREAD = r"^data.*files=\['mine.txt'\] is not allowed: source "


@pytest.mark.parametrize(
    ("overrides", "refused"),
    [
        (["data.train.files=[mine.txt]"], f'{UNREAD}"python_stdlib" reads no files'),
        (["data=fineweb", "data.evaluation.files=[mine.txt]"], f'{UNREAD}"hub" reads no files'),
        (
            [*PRETRAIN, "model.path=/models/llama"],
            "^model.path='/models/llama' is not allowed: mode=pretrain begins at random",
        ),
        ([*PRETRAIN, "+eval.tasks.piqa=0"], r"^eval.tasks=\['piqa'\] is not allowed: mode=pretrain compares no models"),
    ],
)
def test_what_nothing_would_read_is_refused(overrides: list[str], refused: str) -> None:
    """A run on Python's library, or from random weights, that looks like the one that was meant."""
    with pytest.raises(ValueError, match=refused):
        check_what_is_read(compose_config(["name=x", *overrides]))


@pytest.mark.parametrize(
    "overrides", [[], ["data=local", "data.train.files=[a]", "data.evaluation.files=[b]"], PRETRAIN]
)
def test_what_is_read_is_not(overrides: list[str]) -> None:
    check_what_is_read(compose_config(["name=x", *overrides]))
