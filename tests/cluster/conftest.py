"""A real SLURM for the tests that need one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.slurm import Slurm, is_installed

REQUIRED = "TRANSACT_TESTS_NEED_SLURM"  # set where a skip would hide that nothing was tested


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if not is_installed():
        reason = "SLURM is not installed: apt-get install slurmctld slurmd slurm-client"
        pytest.fail(f"{reason} ({REQUIRED} is set)") if os.environ.get(REQUIRED) else pytest.skip(reason)
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
