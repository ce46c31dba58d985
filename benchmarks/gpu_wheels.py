"""Collect the wheels that a machine with torch and transformers, and without a network, lacks for `make gpu-check`.

    python -m benchmarks.gpu_wheels --python 3.12 --folder .wheels
    python3 -m pip list --format=freeze > there.txt          # on that machine, where it can be asked
    python -m benchmarks.gpu_wheels --present there.txt

The packages are those that DeepSpeed, transformers and the command need, at the versions that are installed here and
that the tests ran on; what torch brings along is left out, and what the list of that machine has in a version that will
do. Wheels are for Linux on x86-64. What has no wheel is built here, DeepSpeed without any operators.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from transact.errors import DONE, leave
from transact.files import write_text

ROOTS = ("deepspeed", "transformers", "hydra-core", "omegaconf", "submitit", "rich")  # in versions that transact takes
# On every machine with torch and transformers, in versions that do not matter here.
ASSUMED = ("torch", "numpy", "packaging", "pyyaml", "regex", "safetensors", "tqdm")
WITHOUT_WHEEL = ("deepspeed", "antlr4-python3-runtime")
PLATFORMS = [f"manylinux_2_{glibc}_x86_64" for glibc in (28, 27, 24, 17, 12, 5)] + ["manylinux2014_x86_64"]
LIST = "requirements.txt"


def closure(roots: Iterable[str], python: str) -> dict[str, SpecifierSet]:
    """Return the packages that some need, themselves among them, with the versions that will do."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    environment |= {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
    found: dict[str, SpecifierSet] = {}
    ours = {each.name: each for each in map(Requirement, _requires("transact")) if each.marker is None}
    waiting = [ours[root] if root in ROOTS else Requirement(root) for root in roots]
    while waiting:
        each = waiting.pop()
        name = canonicalize_name(each.name)
        is_known = name in found
        found[name] = found.get(name, SpecifierSet()) & each.specifier
        if not is_known:
            needed = map(Requirement, _requires(name))
            waiting += [one for one in needed if one.marker is None or one.marker.evaluate(environment)]
    return found


def _requires(name: str) -> list[str]:
    try:
        return requires(name) or []
    except PackageNotFoundError:  # of another platform
        return []


def missing(python: str, present: Mapping[str, str] | None) -> list[str]:
    """Return NAME==VERSION of all that is missing on a machine.

    Args:
        present: its packages and their versions; None: not known.
    """
    there = dict.fromkeys(closure(ASSUMED, python), None) if present is None else dict(present)
    pinned = []
    for name, versions in sorted(closure(ROOTS, python).items()):
        own = there.get(name)
        if name in there and (own is None or versions.contains(own, prereleases=True)):
            continue
        if name == "torch":
            raise SystemExit(f"error: torch {own} is there, {versions} is needed: it is no package to take along")
        pinned.append(f"{name}=={version(name)}")
    return pinned


def packages_of(listed: str) -> dict[str, str]:
    """Return the packages of `pip list --format=freeze`, without what was not installed from a release."""
    pairs = (line.partition("==") for line in listed.splitlines() if "==" in line)
    return {canonicalize_name(name): number.strip().partition("+")[0] for name, _, number in pairs}


def download(pinned: list[str], folder: Path, python: str) -> None:
    """Put a wheel of each package into the folder."""
    built = [each for each in pinned if each.partition("==")[0] in WITHOUT_WHEEL]
    ready = [each for each in pinned if each not in built]
    target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    for platform in PLATFORMS:
        target += ["--platform", platform]
    _pip("download", *target, "--dest", str(folder), *ready)
    if built:
        _pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder), *built, DS_BUILD_OPS="0")


def _pip(command: str, *arguments: str, **variables: str) -> None:
    call = [sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check", "--no-deps", *arguments]
    subprocess.run(call, env=os.environ | variables, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_wheels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--python", default="3.12", help="version of the Python there (default: 3.12)")
    parser.add_argument("--folder", type=Path, default=Path(".wheels"))
    parser.add_argument("--present", type=Path, help="`pip list --format=freeze` of that machine")
    arguments = parser.parse_args()
    present = None if arguments.present is None else packages_of(arguments.present.read_text(encoding="utf-8"))
    pinned, folder = missing(arguments.python, present), arguments.folder
    for old in folder.glob("*.whl"):
        old.unlink()  # of another version: two of a package stop the installation
    folder.mkdir(parents=True, exist_ok=True)
    download(pinned, folder, arguments.python)
    write_text(folder / LIST, "".join(f"{each}\n" for each in pinned))
    wheels = list(folder.glob("*.whl"))
    size = sum(each.stat().st_size for each in wheels)
    print(f"{len(wheels)} wheels, {size / 1e6:.1f} MB, for Python {arguments.python}; on that machine:")
    print(f"  python3 -m pip install --no-index --no-deps --find-links {folder} --target .site -r {folder / LIST}")
    print('  make gpu-check PYTHON_RUN="env PYTHONPATH=.site python3"', flush=True)
    return DONE


if __name__ == "__main__":
    leave(main())
