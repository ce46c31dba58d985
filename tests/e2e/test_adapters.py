"""The command with recover.method=lora: it recovers, is killed and goes on to the same end, and says what it did."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.test_resume import STEPS, TOKENS_PER_STEP, assert_same_end, interrupt
from tests.e2e.test_resume import overrides as of_resume
from tests.support.commands import Workplace, transact
from tests.support.runs import checkpoints
from transact.models.tensor_files import ModelReader

RANK = 3


def overrides(workplace: Workplace, name: str) -> list[str]:
    """One round on ZeRO-3, at a rate at which the adapters learn something from next to nothing."""
    lora = ["recover.method=lora", f"recover.lora.rank={RANK}", "recover.lora.alpha=6", "recover.learning_rate=2e-2"]
    return [*of_resume(workplace, name), *lora, "recover.objective=mixed"]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def undisturbed(workplace: Workplace) -> Path:
    ended = transact(overrides(workplace, "by_adapters"), ranks=2)
    assert ended.returncode == 0, ended.stderr
    assert f"recovers with {STEPS * TOKENS_PER_STEP:,} tokens, adapters of rank 3, peak learning rate" in ended.stdout
    return workplace.folder / "by_adapters"


def test_it_recovers_and_leaves_a_stock_model(undisturbed: Path) -> None:
    from transformers import AutoModelForCausalLM

    evaluation = read(undisturbed / "round_01" / "evaluation.json")
    assert evaluation["recovered"]["perplexity"] < evaluation["sliced"]["perplexity"]
    model, loaded = AutoModelForCausalLM.from_pretrained(
        undisturbed / "export", dtype=torch.float32, output_loading_info=True
    )
    assert not any(loaded.values())
    with ModelReader(undisturbed / "round_01" / "recovered") as recovered:
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter.detach(), recovered.tensor(name).float())


def test_what_it_learnt_is_of_low_rank_and_in_the_projections_alone(undisturbed: Path) -> None:
    folder = undisturbed / "round_01"
    with ModelReader(folder / "sliced") as sliced, ModelReader(folder / "recovered") as recovered:
        assert set(sliced.files) == set(recovered.files)
        for name in sliced.files:
            before, after = sliced.tensor(name).float(), recovered.tensor(name).float()
            if "_proj" not in name:
                assert torch.equal(before, after), name
                continue
            sizes = torch.linalg.svdvals((after - before).double())
            assert sizes[0] > 0, name
            assert sizes[RANK] < 1e-4 * sizes[0], name  # rounding alone


def test_the_result_and_the_card_say_so(undisturbed: Path) -> None:
    (round_,) = read(undisturbed / "result.json")["rounds"]
    assert round_["adapters"]["rank"] == RANK
    assert round_["adapters"]["alpha"] == 6
    assert "q_proj" in round_["adapters"]["targets"]
    card = (undisturbed / "export" / "README.md").read_text()
    assert "`mixed`, by low-rank adapters (LoRA, rank 3, alpha 6) that are merged into the weights." in card
    assert "by adapters of rank 3" in (undisturbed / "report.html").read_text()


def test_killed_it_ends_the_same(workplace: Workplace, undisturbed: Path) -> None:
    arguments, folder = overrides(workplace, "killed_adapters"), workplace.folder / "killed_adapters"
    interrupt(arguments, 2, lambda: len(checkpoints(folder)) >= 2, signal.SIGKILL)
    newest = checkpoints(folder)[-1]
    stored = read(newest / "manifest.json")["files"]
    whole = sum(path.stat().st_size for path in (folder / "round_01" / "sliced").glob("*.safetensors"))
    assert sum(entry["size"] for entry in stored.values()) < whole  # of adapters alone
    ended = transact(arguments, ranks=2)
    assert ended.returncode == 0, ended.stderr
    assert "goes on from checkpoint" in ended.stdout
    assert_same_end(folder, undisturbed)
