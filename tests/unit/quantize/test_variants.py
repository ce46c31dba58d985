"""Variants are made once, again where their weights are others, and never published broken; what the folder holds."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.exported import write_exported
from tests.support.report_folders import MadeUpRun, write_run
from transact.errors import Failure
from transact.export.folder import GUARD_NAME
from transact.files import read_json, write_json
from transact.models.folder import geometry_of
from transact.quantize import variants
from transact.quantize.finished_run import PARENT, PRUNED, FinishedRun, Source
from transact.quantize.folder import complete
from transact.quantize.table import markdown_table, text_table
from transact.quantize.variants import Variants, Workshop, check_not_broken, relative_difference
from transact.tracking.report.drawing import Named
from transact.tracking.report.quantized import quantized_section
from transact.tracking.report.run_files import read_run

LOSS = 3.0
CARD = """---
license: mit
tags:
- pruned
model-index:
- name: a model
---
# a model

## Use

Stock transformers load it.

**GGUF only through transact**: so.

## Licence

That of the parent.
"""
VERSIONS = {"packages": {"llmcompressor": "0.14.0", "transformers": "5.17.0"}, "device": "cpu"}


@dataclass
class OtherEnvironment:
    """llm-compressor and vLLM as far as their answers go."""

    loss: float = LOSS
    asked: list[str] = field(default_factory=list)

    def __call__(self, python: Path, script: str, question: dict[str, Any], log: Path) -> dict[str, Any]:
        self.asked.append(f"{question.get('action', 'time')} {Path(question['folder']).name}")
        if "action" not in question:
            return {"version": "vLLM 1", "device": "GPU", "seconds_per_token": 0.01}
        if question["action"] == "quantize":
            target = Path(question["output"])
            shutil.copyfile(Path(question["folder"], "model.safetensors"), target / "model.safetensors")
            config = read_json(Path(question["folder"], "config.json"))
            write_json(
                target / "config.json", {"quantization_config": {"format": "x"}, "hidden_size": config["hidden_size"]}
            )
            return {}
        is_quantised = "-" in Path(question["folder"]).name
        save_file({"logits": torch.ones(2, 4, 8) * (1.1 if is_quantised else 1.0)}, question["logits"])
        return {"loss": self.loss if is_quantised else LOSS, "tokens": 30}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_exported(tmp_path_factory.mktemp("exported"), {"head_dim": 8})


@pytest.fixture
def run(tmp_path: Path, export: Path) -> FinishedRun:
    folder = write_run(tmp_path / "run", MadeUpRun())
    shutil.copytree(export, folder / "export")
    (folder / "export" / "README.md").write_text(CARD)
    source = Source(
        folder=folder / "export",
        geometry=geometry_of(export),
        dtype="float32",
        perplexity=math.exp(LOSS),
        digest="first",
    )
    return FinishedRun(
        folder=folder,
        name="made_up",
        sources={
            PARENT: replace(source, folder=export.parent / "parent", geometry=geometry_of(export.parent / "parent")),
            PRUNED: source,
        },
        parent_missing=None,
        calibration=torch.zeros(2, 16, dtype=torch.int64),
        evaluation=torch.zeros(2, 16, dtype=torch.int64),
        is_whole=True,
        texts={"calibration": "a", "evaluation": "b"},
        dtype="float32",
    )


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> OtherEnvironment:
    environment = OtherEnvironment()
    monkeypatch.setattr(variants, "ask", environment)
    return environment


def workshop(vllm: Path | None = None) -> Workshop:
    return Workshop(python=Path("p"), versions=VERSIONS, vllm=vllm, vllm_version="vLLM 1", say=lambda line: None)


def test_a_second_call_makes_only_what_is_missing(run: FinishedRun, other: OtherEnvironment) -> None:
    Variants(run, workshop()).make(["fp8"])
    assert len(other.asked) == 6  # a model and a variant measured, and a variant made, of parent and pruned
    other.asked.clear()
    rows = Variants(run, workshop()).make(["fp8"])
    assert other.asked == []
    assert [(row["model"], row["scheme"]) for row in rows] == [
        ("parent", "none"), ("pruned", "none"), ("parent", "fp8"), ("pruned", "fp8"),
    ]  # fmt: skip
    shutil.rmtree(run.folder / "quantized" / "pruned-fp8")
    Variants(run, workshop()).make(["fp8"])
    assert other.asked == ["measure export", "quantize export", "measure pruned-fp8.tmp"]


def test_other_weights_are_quantised_anew(run: FinishedRun, other: OtherEnvironment) -> None:
    Variants(run, workshop()).make(["fp8", "w8a8"])
    changed = replace(run, sources=dict(run.sources) | {PRUNED: replace(run.sources[PRUNED], digest="second")})
    other.asked.clear()
    rows = Variants(changed, workshop()).make(["fp8"])
    assert other.asked == ["measure export", "quantize export", "measure pruned-fp8.tmp"]
    assert ("pruned", "w8a8") not in [(row["model"], row["scheme"]) for row in rows]  # was of the first weights
    assert not (run.folder / "quantized" / "pruned-w8a8").exists()


def test_other_text_is_measured_on_and_nothing_made_again(run: FinishedRun, other: OtherEnvironment) -> None:
    Variants(run, workshop(Path("vllm"))).make(["fp8", "w8a8"])
    other.asked.clear()
    part = replace(run, evaluation=run.evaluation[:1], is_whole=False)
    rows = Variants(part, workshop()).make(["fp8"])
    assert len(rows) == 6 == len(other.asked) and all(each.startswith("measure") for each in other.asked)
    assert all(row["speed"] is not None and row["measured_on"]["evaluation_sequences"] == 1 for row in rows)
    left = replace(run, sources={PRUNED: run.sources[PRUNED]}, parent_missing="it is gone")
    assert {row["model"] for row in Variants(left, workshop()).make(["fp8"])} == {"pruned"}  # one table, one text


def test_speed_is_measured_later_too(run: FinishedRun, other: OtherEnvironment) -> None:
    rows = Variants(run, workshop()).make(["fp8"])
    assert all(row["speed"] is None for row in rows)
    other.asked.clear()
    rows = Variants(run, workshop(Path("vllm"))).make(["fp8"])
    assert [row["speed"]["tokens_per_second"] for row in rows] == [100.0] * 4
    assert [each.split()[0] for each in other.asked] == ["time"] * 4


def test_nothing_is_timed_of_a_parent_that_is_gone(run: FinishedRun, other: OtherEnvironment) -> None:
    Variants(run, workshop()).make(["fp8"])
    left = replace(run, sources={PRUNED: run.sources[PRUNED]}, parent_missing="it is gone")
    rows = Variants(left, workshop(Path("vllm"))).make(["fp8"])
    assert [row["model"] for row in rows if row["speed"] is not None] == ["pruned", "pruned"]
    assert [row["model"] for row in rows].count("parent") == 2


@pytest.mark.parametrize("loss", [math.nan, math.inf, LOSS + 2.5, 800.0])
def test_a_broken_variant_is_not_published(run: FinishedRun, other: OtherEnvironment, loss: float) -> None:
    other.loss = loss
    made = Variants(run, workshop())
    rows = made.make(["fp8"])
    assert [str(each).partition(":")[0] for each in made.failures] == [
        f"{role} in fp8 is broken and not published" for role in (PARENT, PRUNED)
    ]
    assert [path.name for path in (run.folder / "quantized").iterdir()] == ["comparison.json"]
    assert [row["scheme"] for row in rows] == ["none", "none"]


def test_a_folder_in_the_way_is_told_before_the_work(run: FinishedRun, other: OtherEnvironment) -> None:
    (run.folder / "quantized" / "pruned-fp8" / "mine").mkdir(parents=True)
    with pytest.raises(ValueError, match="pruned-fp8' holds a folder, which is not ours"):
        Variants(run, workshop()).make(["fp8"])
    assert other.asked == []


def test_an_environment_that_computes_another_model_is_told(run: FinishedRun, other: OtherEnvironment) -> None:
    source = replace(run.sources[PRUNED], perplexity=10.0)
    with pytest.raises(Failure, match=r"10\.00 in the run, is 20\.09 with transformers 5\.17\.0"):
        Variants(replace(run, sources={PRUNED: source}), workshop()).make(["fp8"])
    Variants(replace(run, sources={PRUNED: source}, is_whole=False), workshop()).make(["fp8"])  # of other tokens


def test_logits_without_a_likeness_are_broken() -> None:
    ours = torch.randn(2, 8, 16)
    assert relative_difference(ours, ours) == 0
    assert relative_difference(2 * ours, ours) == pytest.approx(1)
    with pytest.raises(Failure, match=r"its logits differ by 1\.40"):
        check_not_broken("it", {"loss": LOSS, "logit_difference": 1.4}, LOSS)
    check_not_broken("it", {"loss": LOSS + 2, "logit_difference": 0.9}, LOSS)  # bad, and for its user to judge


def test_config_tokenizer_and_guard_are_the_exports(export: Path, tmp_path: Path) -> None:
    weights = {name: tensor for name, tensor in load_file(export / "model.safetensors").items() if name != GUARD_NAME}
    save_file(weights, tmp_path / "model.safetensors")
    write_json(tmp_path / "config.json", {"quantization_config": {"format": "x"}, "rope_scaling": "another"})
    complete(export, tmp_path, "bfloat16")
    ours, theirs = (read_json(folder / "config.json") for folder in (tmp_path, export))
    added = {"quantization_config": {"format": "x"}, "dtype": "bfloat16", "torch_dtype": "bfloat16"}
    assert ours == theirs | added and ours["rope_scaling"]["rope_type"] == "longrope"
    assert (tmp_path / "tokenizer.json").read_bytes() == (export / "tokenizer.json").read_bytes()
    assert load_file(tmp_path / "model.safetensors")[GUARD_NAME].equal(
        load_file(export / "model.safetensors")[GUARD_NAME]
    )


def test_table_card_and_report_show_the_same_rows(run: FinishedRun, other: OtherEnvironment) -> None:
    made = Variants(run, workshop())
    rows = made.make(["w4a16"])
    made.write_cards()
    assert "| pruned, w4a16 |" in markdown_table(rows) and "pruned, w4a16" in text_table(rows)
    card = (run.folder / "quantized" / "pruned-w4a16" / "README.md").read_text()
    assert card.startswith("---\nlicense: mit") and "## Quantised to w4a16" in card and "llm-compressor 0.14.0" in card
    assert card.index("## Quantised") < card.index("## Use") < card.index("## Licence") and markdown_table(rows) in card
    assert "- pruned\n- compressed-tensors\n---\n" in card  # and nothing that is true of the unquantised model alone
    assert not any(words in card for words in ("model-index", "Stock transformers", "GGUF"))
    assert "license" not in (run.folder / "quantized" / "parent-w4a16" / "README.md").read_text()
    section = quantized_section(read_run(run.folder))
    assert section is not None
    (table,) = [block.table for block in section.blocks if isinstance(block, Named)]
    assert [row[0] for row in table.rows] == ["parent", "pruned", "parent, w4a16", "pruned, w4a16"]
    assert table.rows[0][2] == "100.0%"


def test_a_run_without_variants_has_no_section(tmp_path: Path) -> None:
    assert quantized_section(read_run(write_run(tmp_path / "run", MadeUpRun()))) is None
