"""Every kind of file of a finished run, damaged in every way: the same command names it, and the result stays."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from hashlib import sha256
from itertools import cycle
from pathlib import Path

import pytest

from tests.support.commands import Workplace, transact
from transact.files import read_json

SMALL = ["prune.rounds=1", "recover.tokens=2048", "eval.efficiency.measured=false"]
# Written at every end from files that are compared; and what holds no result: a record that is JSON all the same costs
# work that is done again, at worst.
NOT_COMPARED = {"result.json", "report.html", "run.json", "run.lock"}
TOGETHER = 3  # of the files that nobody reads any more, which one warning names


def flip(path: Path) -> None:
    """A bit in the middle; of the configuration in the name of a section that results depend on: others may change."""
    content = bytearray(path.read_bytes())
    place = content.index(b"prune:") if path.name == "config.yaml" else len(content) // 2
    content[place] ^= 0x40
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES: tuple[Callable[[Path], None], ...] = (flip, truncate, empty, Path.unlink)


def files_of(run: Path) -> list[str]:
    paths = (path.relative_to(run) for path in run.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in paths if path.parts[0] not in ("logs", ".hydra"))


def cases_of(names: list[str]) -> list[list[str]]:
    """One file of each kind in each folder, and those that are damaged in the same job together."""
    kinds: dict[str, str] = {}
    for name in names:
        kind = re.sub(r"model-\d+-of", "model", name)
        kind = re.sub(r"(special_tokens_map|tokenizer\w*)\.json", "tokenizer", kind)
        kinds.setdefault(kind.replace("generation_config", "config"), name)
    read = [name for name in kinds.values() if not name.startswith("round_01") or name.endswith("evaluation.json")]
    unread = [name for name in kinds.values() if name not in read]
    return [[name] for name in read] + [unread[at : at + TOGETHER] for at in range(0, len(unread), TOGETHER)]


def weights_of(run: Path) -> dict[str, str]:
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in (run / "export").glob("*.safetensors")}


def state_of(run: Path) -> str:
    return str(read_json(run / "run.json")["state"])


@pytest.fixture(scope="module")
def finished(workplace: Workplace) -> Path:
    ended = transact([*workplace.overrides("sound"), *SMALL])
    assert ended.returncode == 0, ended.stderr
    return workplace.folder / "sound"


def test_no_damaged_file_is_passed_over(workplace: Workplace, finished: Path, tmp_path: Path) -> None:
    folder, sound = workplace.folder / "sound", tmp_path / "sound"
    shutil.move(finished, sound)  # the copies stand in its place: the path is part of the request
    expected, problems = weights_of(sound), []
    assert expected
    damages = cycle(DAMAGES)
    for names in cases_of(files_of(sound)):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sound, folder)
        case = []
        for name in names:
            damage = next(damages)
            damage(folder / name)
            case.append(f"{name} ({damage.__name__})")
        ended = transact([*workplace.overrides("sound"), *SMALL])
        said = ended.stdout + ended.stderr
        told = f"{', '.join(case)}: exit {ended.returncode}: {said}"
        unnamed = [name for name in names if name not in said and str(folder / name) not in said]
        if ended.returncode not in (0, 2) or "Traceback" in said or set(unnamed) - NOT_COMPARED:
            problems.append(told)
        elif ended.returncode == 0 and (weights_of(folder), state_of(folder)) != (expected, "done"):
            problems.append(f"another result: {told}")
        elif ended.returncode == 2 and len(ended.stderr.splitlines()) != 1:
            problems.append(f"more than a line: {told}")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.move(sound, folder)
    assert not problems, "\n".join(problems)
