"""A disk that is full is named, whichever of them it is."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.support.commands import Workplace
from tests.support.configs import compose_config
from transact.config.run import RunConfig
from transact.launch.outcome import explain


@pytest.fixture
def config(workplace: Workplace) -> RunConfig:
    return compose_config([*workplace.overrides("failing"), f"output_dir={workplace.folder}"])


@pytest.mark.parametrize("setting", ["output_dir", "data.token_store", "HF_HOME", "TMPDIR"])
def test_the_disk_that_is_full_is_named(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    """A real disk is filled to its end; the error of a write to an open file says nothing of where."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], check=False).returncode != 0:
        pytest.skip("this user may not mount a tmpfs")
    try:
        monkeypatch.setattr(tempfile, "tempdir", str(small if setting == "TMPDIR" else tmp_path))
        monkeypatch.setenv("HF_HOME", str(small if setting == "HF_HOME" else tmp_path))
        config.output_dir = str(small if setting == "output_dir" else tmp_path)
        config.data.token_store = str(small if setting == "data.token_store" else tmp_path)
        with pytest.raises(OSError, match="No space left") as caught, (small / "file").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 18))
        assert caught.value.filename is None
        told = explain(caught.value, "round_01/recover", config, 1)
        assert told.startswith(f"round_01/recover: the disk is full ({setting}={small}, 0.00 GiB free)")
    finally:
        subprocess.run(["umount", str(small)], check=True)
