"""docs/extending.md does what it says: its worked example is a criterion that scores a model."""

from __future__ import annotations

import re

import pytest
import torch

from tests.support.commands import REPOSITORY
from transact.geometry import Geometry
from transact.prune.criteria import CHANNEL_CRITERIA, Evidence, score
from transact.prune.statistics import ActivationStatistics

BLOCK = re.compile(r"<!-- criterion -->\n```python\n(.*?)```", re.DOTALL)


def test_the_documented_criterion_scores_channels(tiny: Geometry, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = BLOCK.findall((REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8"))
    known = dict(CHANNEL_CRITERIA)
    exec(block, {})
    (name,) = CHANNEL_CRITERIA.keys() - known.keys()
    monkeypatch.delitem(CHANNEL_CRITERIA, name)
