"""What only the work itself meets, tokenising or reading a tokenizer, is refused in one line, and leaves nothing."""

from __future__ import annotations

import json
import pickle
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import Workplace, transact
from tests.support.ranks import run_on_ranks
from transact.config.inputs import TextConfig
from transact.data.text import check_text, documents
from transact.data.token_parts import Packing
from transact.data.token_store import TokenStore
from transact.data.tokenising import write_token_store
from transact.models.stock import load_tokenizer

# More than what is looked at before the work.
SOUND = b"".join(json.dumps({"text": f"row {number} of sound text"}).encode() + b"\n" for number in range(4000))


def test_text_that_is_damaged_in_the_middle(workplace: Workplace, tmp_path: Path) -> None:
    path = tmp_path / "late.jsonl"
    path.write_bytes(SOUND + b'{"text": "caf\xe9"}\n')
    ended = transact([*workplace.overrides("late"), f"data.train.files=[{path}]", "recover.tokens=10000000"])
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith(f"error: data.train.files: '{path}'")
    assert "Traceback" not in ended.stderr
    assert not (workplace.folder / "late").exists()


class Marker:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "w")


def test_a_tokenizer_in_a_pickle(workplace: Workplace, tmp_path: Path) -> None:
    model, marker = Path(shutil.copytree(workplace.model, tmp_path / "model")), tmp_path / "executed"
    (model / "tokenizer.json").rename(model / "not_read.json")
    payload = pickle.dumps(Marker(marker))
    pickle.loads(payload).close()
    marker.unlink()  # raises where the pickle did nothing
    (model / "tokenizer.model").write_bytes(payload)
    ended = transact([*workplace.overrides("pickled_tokenizer"), f"model.path={model}"])
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"error: model.path: no tokenizer in '{model}'")
    assert not marker.exists()
    assert not (workplace.folder / "pickled_tokenizer").exists()


LONG_CHARACTERS, MORE_BYTES = 100_000_000, 1_500_000_000


def prose(characters: int) -> str:
    return "some words of prose " * (characters // 20)


def word(characters: int) -> str:
    return "a" * characters


def tokenise_with_little_memory(path: Path, model: Path, output: Path) -> int:
    """Returns the number of sequences."""
    tokenizer = load_tokenizer(model)
    config = TextConfig(source="files", files=[str(path)])
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MORE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    check_text(config, "data.train")
    write_token_store(
        output, documents(config, "data.train"), tokenizer, Packing(sequence_length=64, max_sequences=20_000)
    )
    return TokenStore(output).num_sequences


@pytest.mark.parametrize(("name", "text"), [("long.txt", prose), ("long.jsonl", word)])
def test_a_line_of_100_megabytes(name: str, text: Callable[[int], str], workplace: Workplace, tmp_path: Path) -> None:
    """Tokenised whole, it would take 16 GB."""
    path = tmp_path / name
    line = text(LONG_CHARACTERS)
    path.write_text(line if path.suffix == ".txt" else f'{{"text": "{line}"}}\n')
    del line
    (sequences,) = run_on_ranks(1, tokenise_with_little_memory, path, workplace.model, tmp_path / "store")
    assert sequences > 1000
