"""What a finished run gives to its quantised variants is what it worked with, and what has changed since is refused."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.e2e.conftest import ChainRun
from transact.config.compose import typed_config
from transact.data.order import SequenceOrder
from transact.data.token_store import TokenStore
from transact.errors import REFUSED
from transact.files import file_digest, read_json, write_json
from transact.quantize.command import main
from transact.quantize.finished_run import PARENT, PRUNED, FinishedRun, read_finished_run
from transact.rounds import reserved_sequences
from transact.runs.run_record import read_config, read_record


@pytest.fixture(scope="module")
def chain(chain_commands: Mapping[int, ChainRun]) -> ChainRun:
    return chain_commands[1]


@pytest.fixture(scope="module")
def run(chain: ChainRun) -> FinishedRun:
    return read_finished_run(chain.folder)


@pytest.fixture
def copied(chain: ChainRun, tmp_path: Path) -> Path:
    return shutil.copytree(chain.folder, tmp_path / "copied")


def test_both_models_and_their_own_figures(chain: ChainRun, run: FinishedRun) -> None:
    result = read_json(chain.folder / "result.json")
    assert run.sources[PRUNED].folder == chain.folder / "export"
    assert run.sources[PRUNED].perplexity == result["pruned"]["perplexity"]
    assert run.sources[PARENT].geometry.to_dict() == result["dense"]["geometry"]
    assert run.parent_missing is None


def test_the_tokens_are_the_runs_own(chain: ChainRun, run: FinishedRun) -> None:
    """Of 16 calibration and 32 held-out sequences; of the reserved ones, calibration comes behind validation."""
    assert run.calibration.shape == (16, 64) and run.evaluation.shape == (32, 64) and run.is_whole
    settings, record = read_config(chain.folder), read_record(chain.folder)
    assert settings is not None and record is not None
    config = typed_config(settings)
    train = TokenStore(Path(chain.token_store) / record["texts"]["data.train"]["store"])
    order = SequenceOrder(num_sequences=train.num_sequences, num_reserved=reserved_sequences(config), seed=config.seed)
    assert run.calibration.equal(train.sequences(order.reserved(config.recover.validation_sequences, 16)))


def test_a_part_of_the_held_out_text(chain: ChainRun, run: FinishedRun) -> None:
    part = read_finished_run(chain.folder, sequences=4)
    assert part.evaluation.equal(run.evaluation[:4]) and not part.is_whole
    with pytest.raises(ValueError, match="--sequences=33 is not allowed: the run has 1 to 32 sequences"):
        read_finished_run(chain.folder, sequences=33)


def test_tokens_that_are_gone(chain: ChainRun, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the tokens of data\.train, .*: is not there; give --token-store"):
        read_finished_run(chain.folder, token_store=tmp_path)
    assert read_finished_run(chain.folder, token_store=chain.token_store).texts


def test_an_export_that_was_changed(copied: Path) -> None:
    config = read_json(copied / "export" / "config.json")
    write_json(copied / "export" / "config.json", config | {"rms_norm_eps": 1.0})
    with pytest.raises(ValueError, match=r"config\.json' has"):
        read_finished_run(copied)


def test_a_parent_that_is_gone_is_left_out(copied: Path) -> None:
    record = read_json(copied / "run.json")
    record["parent"]["path"] = str(copied / "gone")
    write_json(copied / "run.json", record)
    run = read_finished_run(copied)
    assert list(run.sources) == [PRUNED] and "gone" in str(run.parent_missing)


def test_layers_that_differ_are_refused(copied: Path) -> None:
    record, path = read_json(copied / "run.json"), copied / "export" / "config.json"
    layers = {str(number): {"intermediate_size": 16 + number} for number in range(2)}
    write_json(path, read_json(path) | {"per_layer_config": layers})
    described = {"size": path.stat().st_size, "sha256": file_digest(path)}
    record["stages"]["export"]["files"]["export/config.json"] = described
    write_json(copied / "run.json", record)
    with pytest.raises(ValueError, match="llm-compressor is used for models of transformers' own classes alone"):
        read_finished_run(copied)


def test_an_environment_that_is_none(chain: ChainRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing; a program that is no Python; and this Python, which has no llm-compressor."""
    (broken := tmp_path / "broken").write_text("#!/bin/sh\necho no python here; exit 3\n")
    broken.chmod(0o755)
    reasons = {tmp_path / "none": "is no Python that can be run", broken: "no python here"}
    for python, reason in (reasons | {Path(sys.executable): "has no llmcompressor: python -m venv"}).items():
        assert main([str(chain.folder), "--python", str(python)]) == REFUSED
        said = capsys.readouterr().err
        assert f"--python={str(python)!r}" in said and reason in said and said.count("\n") == 1
    assert not (chain.folder / "quantized").exists()
