"""The software that a run was made with: the versions of its packages, and the revision of this code."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

COPIED_REVISION = Path(__file__).resolve().parents[1] / "REVISION"  # in the copy of the code that a cluster job runs
PACKAGES = ("transact", "torch", "transformers", "deepspeed", "datasets", "hydra-core", "wandb", "submitit")


def package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def git_revision() -> str | None:
    """Return the revision of the checkout that this code runs or was copied from; None in an installed package."""
    if COPIED_REVISION.is_file():
        return COPIED_REVISION.read_text(encoding="utf-8").strip() or None
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
