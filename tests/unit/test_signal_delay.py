"""A job is warned of its time limit early enough to write what it has."""

from __future__ import annotations

import pytest

from transact.config.machines import LaunchConfig
from transact.launch.cluster import with_signal_delay


@pytest.mark.parametrize(
    ("parameters", "nodes", "gpus_per_node", "minutes", "given", "seconds"),
    [
        (135e6, 1, 1, 60, None, 300),
        (6.7e9, 1, 8, 600, None, 388),  # 120 s for a step, and twice 13.4 GB at 100 MB/s
        (70e9, 8, 8, 600, None, 470),
        (70e9, 1, 8, 600, None, 2920),
        (70e9, 1, 8, 60, None, 1800),  # half of the time limit
        (70e9, 1, 8, 60, 5, 5),
    ],
)
def test_the_warning_comes_early_enough_to_write(
    parameters: float, nodes: int, gpus_per_node: int, minutes: int, given: int | None, seconds: int
) -> None:
    launch = LaunchConfig(
        kind="slurm", nodes=nodes, gpus_per_node=gpus_per_node, timeout_minutes=minutes, signal_delay_seconds=given
    )
    assert with_signal_delay(launch, int(parameters)).signal_delay_seconds == seconds


def test_a_batch_script_of_ones_own_may_say_how_early_it_is_warned() -> None:
    assert LaunchConfig(kind="inline", signal_delay_seconds=1200).signal_delay_seconds == 1200
    with pytest.raises(ValueError, match="launch=local has no use for it"):
        LaunchConfig(kind="local", signal_delay_seconds=1200)
