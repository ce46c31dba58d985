"""What users who install the wheel get, and that the command starts fast."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.commands import REPOSITORY, environment

BARE_HYDRA = """
import hydra

@hydra.main(version_base="1.3", config_path=None)
def main(config):
    pass

main()
"""
SMALL_LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 640,
    "vocab_size": 2048,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}


def run_python(*arguments: str, cwd: Path, path: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment() | {"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel's files land in, as in site-packages. Nothing is downloaded to build it."""
    folder = tmp_path_factory.mktemp("wheel")
    built = run_python("-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=REPOSITORY)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def files_below(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in found}


def pinned(name: str) -> set[str]:
    """The packages of a file of .ci/constraints, each with the hashes of its files."""
    pins = re.split(r"\n(?=\S)", (REPOSITORY / ".ci" / "constraints" / name).read_text(encoding="utf-8").strip())
    packages = [pin for pin in pins if not pin.startswith("#")]
    assert [pin for pin in packages if not re.match(r"\S+==\S+( ;.*)? \\\n +--hash=sha256:", pin)] == []
    return {canonicalize_name(pin.partition("==")[0]) for pin in packages}


def needed(asked: list[str]) -> set[str]:
    """What is asked for with all that it needs, as the packages that are installed here say."""
    found: set[tuple[str, str]] = set()
    waiting = [Requirement(each) for each in asked]
    while waiting:
        requirement = waiting.pop()
        for extra in {"", *requirement.extras}:
            if (requirement.name, extra) not in found:
                found.add((requirement.name, extra))
                inner = map(Requirement, metadata.requires(requirement.name) or [])
                waiting += [each for each in inner if each.marker is None or each.marker.evaluate({"extra": extra})]
    return {canonicalize_name(name) for name, _ in found}


def test_what_is_installed_is_pinned_by_hash_and_running_installs_no_more_than_it_needs() -> None:
    """`make demo` installs run.txt, all other targets dev.txt on top of it."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    to_run = needed([*project["dependencies"], "hatchling"])
    of_torch = needed(["torch"])  # its build, which the Makefile's TORCH names, brings more or fewer of them
    assert pinned("run.txt") <= to_run
    assert to_run - pinned("run.txt") <= of_torch
    assert pinned("dev.txt") == needed(["transact[dev]"]) - to_run - {"transact"}


def test_wheel_holds_package_assets_and_configuration(unpacked: Path) -> None:
    """Every file of transact/, models that ship included, and conf/ inside it; nothing else but the metadata."""
    expected = {f"transact/{name}" for name in files_below(REPOSITORY / "transact")}
    expected |= {f"transact/conf/{name}" for name in files_below(REPOSITORY / "conf")}
    inside = {name for name in files_below(unpacked) if ".dist-info/" not in name}
    assert inside == expected
    assert "transact/conf/experiment/demo.yaml" in inside
    assert list(unpacked.glob("*.dist-info/licenses/LICENSE"))


def test_unpacked_wheel_reads_its_own_configuration(unpacked: Path, tmp_path: Path) -> None:
    """An experiment that only the unpacked wheel has is found, so nothing comes from the checkout."""
    experiment = "# @package _global_\ndefaults:\n  - demo\nname: only_in_the_wheel\n"
    (unpacked / "transact/conf/experiment/only_in_the_wheel.yaml").write_text(experiment, encoding="utf-8")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps(SMALL_LLAMA), encoding="utf-8")
    overrides = ["+experiment=only_in_the_wheel", "mode=estimate", "model.path=model"]
    printed = run_python("-m", "transact.run", *overrides, cwd=tmp_path, path=unpacked)
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout.startswith("only_in_the_wheel: model, 2 rounds")
    usage = run_python("-m", "transact.run", "--help", cwd=tmp_path, path=unpacked)
    assert usage.returncode == 0, usage.stderr
    assert "demo_parent" in usage.stdout
    assert "only_in_the_wheel" in usage.stdout


def test_help_takes_no_second_more_than_hydra_itself(tmp_path: Path) -> None:
    bare = tmp_path / "bare.py"
    bare.write_text(BARE_HYDRA, encoding="utf-8")
    commands = {"bare": [str(bare), "--help"], "transact": ["-m", "transact.run", "--help"]}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(3):  # in turns, so that a busy machine slows both
        for name, arguments in commands.items():
            start = time.perf_counter()
            assert run_python(*arguments, cwd=tmp_path).returncode == 0
            seconds[name].append(time.perf_counter() - start)
    assert statistics.median(seconds["transact"]) < statistics.median(seconds["bare"]) + 1, seconds
