"""Whatever a user downloads, nothing in it is executed: no pickle is read, no code of a folder imported."""

from __future__ import annotations

import ast
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import REPOSITORY, Workplace
from transact.models.stock import load_tokenizer
from transact.run import main

PICKLE_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
LOADERS = {"torch.load", "torch.jit.load", "torch.hub.load", "pandas.read_pickle", "yaml.load", "yaml.unsafe_load"}
DANGEROUS_OPTIONS = {("allow_pickle", "True"), ("trust_remote_code", "True"), ("weights_only", "False")}
CODE_RUNNERS = {"eval", "exec", "__import__"}


def ways_to_execute(source: str) -> Iterator[str]:
    """What in a module could execute data: pickles, remote code, eval."""
    tree = ast.parse(source)
    names = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    names |= {
        alias.asname: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.asname
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in PICKLE_MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PICKLE_MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Call):
            head, dot, rest = ast.unparse(node.func).partition(".")
            called = names.get(head, head) + dot + rest
            if called in LOADERS | CODE_RUNNERS:
                yield called
            for option in node.keywords:
                given = ast.unparse(option.value)
                if (option.arg, given) in DANGEROUS_OPTIONS:
                    yield f"{option.arg}={given}"


def test_no_module_reads_pickles_or_runs_what_it_reads() -> None:
    found = {
        path.relative_to(REPOSITORY).as_posix(): ways
        for path in (REPOSITORY / "transact").rglob("*.py")
        if (ways := list(ways_to_execute(path.read_text(encoding="utf-8"))))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch\ntorch.load(path)", ["torch.load"]),
        ("from torch import load as read\nread(path)", ["torch.load"]),
        ("import torch as t\nt.load(path)", ["torch.load"]),
        ("def f():\n    from pickle import loads", ["pickle"]),
        ("numpy.load(path, allow_pickle=True)", ["allow_pickle=True"]),
        ("X.from_pretrained(folder, trust_remote_code=True)", ["trust_remote_code=True"]),
        ("X.from_pretrained(folder, trust_remote_code=False)", []),
        ("import yaml\nyaml.safe_load(text)", []),
    ],
)
def test_the_search_finds_what_it_is_for(source: str, found: list[str]) -> None:
    assert list(ways_to_execute(source)) == found


class TouchesAFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return open, (str(self.path), "w")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.fixture
def payload(marker: Path) -> bytes:
    """A pickle that leaves the marker when it is loaded, which is tried once."""
    content = pickle.dumps(TouchesAFile(marker))
    pickle.loads(content).close()
    marker.unlink()  # raises where the pickle did nothing
    return content


@pytest.fixture
def model(workplace: Workplace, tmp_path: Path) -> Path:
    return Path(shutil.copytree(workplace.model, tmp_path / "model"))


def refused(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> str:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["transact", *overrides])
    assert main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "model.safetensors"])
def test_weights_in_a_pickle(
    name: str,
    workplace: Workplace,
    model: Path,
    payload: bytes,
    marker: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The last one is a pickle under a name that is read."""
    for path in model.glob("model*"):
        path.unlink()
    (model / name).write_bytes(payload)
    line = refused([*workplace.overrides("pickled"), f"model.path={model}"], monkeypatch, capsys, marker.parent)
    assert str(model) in line and name in line
    assert not marker.exists()


@pytest.mark.parametrize("name", ["text.pkl", "text.pickle", "text.pt", "text.npy", "text.jsonl", "text.parquet"])
def test_text_in_a_pickle(
    name: str,
    workplace: Workplace,
    payload: bytes,
    marker: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = marker.with_name(name)
    path.write_bytes(payload)
    overrides = [*workplace.overrides("pickled"), f"data.train.files=[{path}]"]
    assert str(path) in refused(overrides, monkeypatch, capsys, marker.parent)
    assert not marker.exists()


EVIL_MODULE = "open({marker!r}, 'w')\nclass Tokenizer: pass\n"


@pytest.mark.parametrize(
    ("tokenizer", "settings"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.model", "{}"),
        ("tokenizer.model", '{"tokenizer_class": "LlamaTokenizer"}'),
        ("tokenizer.model", '{"tokenizer_class": "TransfoXLTokenizer"}'),
        ("tokenizer.model", '{"tokenizer_class": "X", "auto_map": {"AutoTokenizer": ["evil.Tokenizer", null]}}'),
    ],
)
def test_a_tokenizer_that_would_be_executed(
    tokenizer: str, settings: str, model: Path, payload: bytes, marker: Path
) -> None:
    (model / "tokenizer.json").unlink()
    for name in (tokenizer, "vocab.pkl", "vocab.bin", "vocab.txt"):
        (model / name).write_bytes(payload)
    (model / "tokenizer_config.json").write_text(settings)
    (model / "evil.py").write_text(EVIL_MODULE.format(marker=str(marker)))
    with pytest.raises(ValueError, match=r"model\.path: no tokenizer in"):
        load_tokenizer(model)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"[]"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"\xff\xfe"),
        ("tokenizer.json", b'{"added_tokens": [], "model": {"type": "?"}}'),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b'{"eos_token": 5}'),
    ],
)
def test_a_damaged_tokenizer(name: str, content: bytes, model: Path) -> None:
    (model / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"^model\.path: no tokenizer in '.*': \S[^\n]*$"):
        load_tokenizer(model)
