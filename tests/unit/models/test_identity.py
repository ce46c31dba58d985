"""The same model is known again wherever it lies; another one, and one that was trained on, is not taken for it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.commands import Workplace
from tests.support.configs import compose_config
from transact.data.order import SequenceOrder
from transact.data.token_parts import Packing
from transact.data.token_store import TokenStore
from transact.data.tokenising import write_token_store
from transact.models.folder import geometry_of
from transact.models.identity import Identity, difference, identify, identity_files, not_finite
from transact.models.stock import load_tokenizer
from transact.stages.sharing import evaluation_identity, gram_identity, summed_statistics
from transact.stages.texts import Texts


def identity_of(folder: Path, *, in_full: bool = False) -> Identity:
    return {name: identify(folder / name, in_full=in_full) for name in identity_files(folder)}


@pytest.fixture
def model(workplace: Workplace, tmp_path: Path) -> Path:
    return Path(shutil.copytree(workplace.model, tmp_path / "elsewhere"))


def test_a_copy_is_the_same(workplace: Workplace, model: Path) -> None:
    """Neither the place nor the times of the files count, nor what no run reads."""
    (model / "README.md").write_text("# another card")
    (model / "notes.txt").write_text("mine")
    for in_full in (False, True):
        assert difference(identity_of(workplace.model), identity_of(model, in_full=in_full)) is None


def train(model: Path) -> None:
    """Every weight changes a little."""
    path = sorted(model.glob("model-*.safetensors"))[2]
    save_file({name: tensor * 1.001 for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


def rename_a_tensor(model: Path) -> None:
    path = sorted(model.glob("model-*.safetensors"))[0]
    content = path.read_bytes()
    path.write_bytes(content.replace(b"embed_tokens", b"embed_tokenz"))


def lengthen(model: Path) -> None:
    path = sorted(model.glob("model-*.safetensors"))[1]
    path.write_bytes(path.read_bytes() + b"\0")


def drop_the_tokenizer_settings(model: Path) -> None:
    (model / "tokenizer_config.json").unlink()


def add_a_chat_template(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ messages }}")


def change_a_setting(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-6}))


CHANGES = [
    (train, "model-00003-of-00005.safetensors has another content"),
    (rename_a_tensor, "model-00001-of-00005.safetensors has another content"),
    (lengthen, "model-00002-of-00005.safetensors had"),
    (drop_the_tokenizer_settings, "tokenizer_config.json is gone"),
    (add_a_chat_template, "chat_template.jinja was not there"),
    (change_a_setting, "config.json"),
]


@pytest.mark.parametrize(("change", "named"), CHANGES)
def test_another_model_is_told(workplace: Workplace, model: Path, change: Callable[[Path], None], named: str) -> None:
    before = identity_of(workplace.model)
    change(model)
    told = difference(before, identity_of(model))
    assert told is not None and named in told


@pytest.fixture
def texts(workplace: Workplace, tmp_path: Path) -> Texts:
    tokenizer = load_tokenizer(workplace.model)
    write_token_store(
        tmp_path / "t", [workplace.train.read_text()], tokenizer, Packing(sequence_length=16, max_sequences=50)
    )
    store = TokenStore(tmp_path / "t")
    order = SequenceOrder(num_sequences=store.num_sequences, num_reserved=0, seed=0)
    return Texts(train=store, order=order, trained={"data.train": store}, evaluation=store)


def shared_names(folder: Path, texts: Texts) -> list[str]:
    """By what the points of a sweep find results of this parent."""
    files, geometry = identity_of(folder), geometry_of(folder)
    evaluation = evaluation_identity(texts, files)
    config = compose_config(["name=any"])
    gram = gram_identity(config, texts, files)
    statistics = gram | summed_statistics(config, geometry)
    return [json.dumps(each, sort_keys=True) for each in (evaluation, gram, statistics)]


def test_a_sweep_shares_results_of_a_parent_that_was_moved(workplace: Workplace, model: Path, texts: Texts) -> None:
    for path in model.iterdir():
        os.utime(path, (1, 1))
    assert shared_names(model, texts) == shared_names(workplace.model, texts)


@pytest.mark.parametrize("change", [change for change, _ in CHANGES if change is not rename_a_tensor])
def test_a_sweep_shares_nothing_of_a_parent_that_was_replaced(
    model: Path, texts: Texts, change: Callable[[Path], None]
) -> None:
    """Its place and the times of its files are as they were."""
    before, times = shared_names(model, texts), {path: path.stat().st_mtime_ns for path in model.iterdir()}
    change(model)
    for path in model.iterdir():
        os.utime(path, ns=(times.get(path, 1), times.get(path, 1)))
    assert not set(before) & set(shared_names(model, texts))


def test_a_sweep_shares_no_calibration_between_weights_of_a_mixture(workplace: Workplace, texts: Texts) -> None:
    """They say which sequences are reserved, where the stores are the same."""

    def gram(weight: int) -> str:
        source = f"{{source: python_stdlib, weight: {weight}}}"
        overrides = ["name=any", "data=mixture", f"+data.train.sources.a={source}"]
        return json.dumps(gram_identity(compose_config(overrides), texts, identity_of(workplace.model)))

    assert gram(1) == gram(1) != gram(3)


def test_a_single_byte_between_the_samples_is_told_by_the_whole_digest_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(8_000_000, dtype=torch.uint8)}, path)
    before = {full: {path.name: identify(path, in_full=full)} for full in (False, True)}
    content = bytearray(path.read_bytes())
    content[-8_000_000 + 70_000] ^= 1
    path.write_bytes(content)
    now = {full: {path.name: identify(path, in_full=full)} for full in (False, True)}
    assert difference(before[False], now[False]) is None
    assert difference(before[True], now[True]) == "model.safetensors has another content"
    assert difference(before[False], now[True]) is None  # nothing of the kind was recorded


@pytest.mark.parametrize("elements", [0, 1, 16_383, 16_384, 16_385, 40_000])
def test_of_a_small_shard_every_byte_is_sampled(tmp_path: Path, elements: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(elements)}, path)
    before, content = identify(path, in_full=False), path.read_bytes()
    for place in {4 * elements * part // 8 for part in range(8)} if elements else set():
        changed = bytearray(content)
        changed[len(content) - 1 - place] ^= 1
        path.write_bytes(changed)
        assert identify(path, in_full=False)["sample"] != before["sample"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 1000])
@pytest.mark.parametrize(
    ("value", "named"), [("nan", "NaN"), ("inf", "infinite"), ("-inf", "infinite"), ("1e4", None), ("-1e-4", None)]
)
def test_values_that_are_no_numbers(dtype: Any, length: int, value: str, named: str | None) -> None:
    """Wherever they stand among the values, as isfinite says too."""
    for place in {0, length // 2, length - 1}:
        values = torch.linspace(-1, 1, length, dtype=torch.float64).to(dtype)
        values[place] = float(value)
        found = not_finite(values)
        assert (found is None) == bool(values.isfinite().all())
        assert found is None if named is None else named in str(found)


def test_what_only_float64_can_hold_is_infinite_here() -> None:
    assert not_finite(torch.tensor([1e39], dtype=torch.float64)) == "infinite values"
