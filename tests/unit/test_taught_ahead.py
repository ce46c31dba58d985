"""How far the teacher runs ahead of the student."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

from tests.support.configs import compose_config
from tests.support.report_folders import SMALL
from transact.engine.memory import estimate_memory, taught_at_once


def test_hidden_states_taught_ahead_stay_within_their_bound() -> None:
    """As many micro-batches as fit, at least one; the estimate counts those, and the one at work."""
    settings = ["recover.objective=distillation", "engine.micro_batch_sequences=2", "data.sequence_length=64"]
    small = replace(SMALL, hidden_size=256)
    of_one = 2 * 64 * 256 * 4
    for in_step, bound, expected in ((8, of_one * 8, 8), (8, of_one * 8 - 1, 7), (8, of_one - 1, 1), (1, 2**40, 1)):
        config = compose_config(["name=bound", f"recover.batch_sequences={2 * 2 * in_step}", *settings])
        with patch("transact.engine.memory.TAUGHT_BYTES", bound):
            assert taught_at_once(small, config, 2) == expected
            part = estimate_memory(small, config, 2, "recover", parent=small).teacher
        with patch("transact.engine.memory.TAUGHT_BYTES", 0):
            least = estimate_memory(small, config, 2, "recover", parent=small).teacher
        assert part - least == (expected - 1) * of_one
