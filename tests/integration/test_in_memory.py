"""prune_model: the cut of a model in memory is the cut of the job, and stock transformers loads what it saves."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.support.commands import REPOSITORY, environment, make_workplace, transact
from tests.support.tiny import write_model
from transact import prune_model
from transact.config.compose import compose_config, conf_folder, method_preset
from transact.config.pruning import BudgetConfig, MethodConfig
from transact.data.order import SequenceOrder
from transact.data.token_store import TokenStore
from transact.files import read_json
from transact.rounds import reserved_sequences

PRESETS = tuple(sorted(path.stem for path in (conf_folder() / "prune/method").glob("*.yaml")))


def tokens(sequences: int = 8, length: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 512, (sequences, length), generator=torch.Generator().manual_seed(seed))


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("method", ["default", "parallel", "obs", "taylor", "magnitude", "paper_heads"])
def test_cut_is_that_of_the_job(method: str, tmp_path: Path) -> None:
    place = make_workplace(tmp_path)
    overrides = [
        *place.overrides("job"),
        "prune.rounds=1",
        "prune.multiple.head_dim=null",
        f"prune/method={method}",
        "recover.tokens=0",
    ]
    ran = transact([*overrides, "eval.efficiency.measured=false"])
    assert ran.returncode == 0, ran.stderr
    config = compose_config(overrides)
    store = TokenStore(tmp_path / "tokens" / read_json(tmp_path / "job/run.json")["texts"]["data.train"]["store"])
    order = SequenceOrder(num_sequences=store.num_sequences, num_reserved=reserved_sequences(config), seed=config.seed)
    chosen = order.reserved(config.recover.validation_sequences, config.prune.calibration_sequences)
    cut = prune_model(
        load(place.model),
        store.sequences(chosen).split(config.engine.micro_batch_sequences),
        remove_fraction=0.4,
        target="transformers",
        method=method,
    )
    job = {}
    for path in (tmp_path / "job/round_01/sliced").glob("*.safetensors"):
        job |= load_file(path)
    ours = cut.state_dict()
    assert set(job) == set(ours) - {"lm_head.weight"}
    assert all(torch.equal(ours[name], job[name]) for name in job)


@pytest.mark.parametrize("method", PRESETS)
def test_what_it_saves_is_loaded_by_stock_transformers(method: str, tiny: Path, tmp_path: Path) -> None:
    model = load(tiny)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cut = prune_model(model, [tokens()], method=method, remove_fraction=0.4, target="transformers")
    cut.save_pretrained(tmp_path / "cut")
    assert 0.55 < cut.num_parameters() / model.num_parameters() < 0.62
    assert torch.equal(load(tmp_path / "cut")(tokens()).logits, cut(tokens()).logits)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_given_model_is_as_it_was(tiny: Path) -> None:
    model = load(tiny).train()
    model.model.norm.weight.requires_grad_(False)
    settings = model.config.to_dict()
    cut = prune_model(model, iter([{"input_ids": tokens()}]), method="taylor", head_dim=8, target="transformers")
    assert model.training and cut.training and model.config.to_dict() == settings
    assert [name for name, each in model.named_parameters() if not each.requires_grad] == ["model.norm.weight"]
    assert all(each.grad is None and not each._backward_hooks for each in model.parameters())
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())
    assert {each.data_ptr() for each in model.parameters()}.isdisjoint(each.data_ptr() for each in cut.parameters())


def test_a_model_in_bfloat16_stays_so(tiny: Path) -> None:
    cut = prune_model(load(tiny).to(torch.bfloat16), [tokens()], intermediate_size=96, target="transformers")
    assert {each.dtype for each in cut.parameters()} == {torch.bfloat16} and cut.config.intermediate_size == 96


def test_limits_are_met(tiny: Path) -> None:
    model, budget = load(tiny), BudgetConfig(kv_bytes_per_token=0.5)
    cut = prune_model(model, [tokens()], budget=budget, target="transformers")
    assert cut.config.head_dim == model.config.head_dim // 2
    assert cut.config.intermediate_size == model.config.intermediate_size


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_read_as_hydra_composes_them(name: str) -> None:
    assert method_preset(name) == compose_config(["name=any", f"prune/method={name}"]).prune.method


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "scope": ({"method": MethodConfig(pair_scope="layer")}, "prune.method.pair_scope='layer' is not allowed"),
    "preset": ({"method": "best"}, "method='best' is not allowed: it must be one of default"),
    "fraction": ({"remove_fraction": 1.5}, "prune.remove_fraction=1.5 is not allowed"),
    "odd": ({"head_dim": 7, "target": "transformers"}, "head_dim"),
    "name": ({"rounds": 2}, "settings=['rounds'] is not allowed: they are remove_fraction, head_dim"),
    "target": ({"target": "ollama"}, "prune.target='ollama' is not allowed"),
    "nothing": ({"calibration": []}, "calibration holds no batch"),
    "words": ({"calibration": ["text"]}, "calibration batch 0 must be a tensor"),
    "too long": ({"calibration": [tokens(1, 129)]}, "calibration batch 0=129 is not allowed"),
    "no token": ({"calibration": [tokens(), tokens() + 512]}, "calibration batch 1 holds token"),
    "padding": ({"calibration": [{"input_ids": tokens(), "attention_mask": tokens() * 0}]}, "has padding"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_requests_are_refused_in_one_line(case: str, tiny: Path) -> None:
    given, reason = REFUSED[case]
    sound = {"calibration": [tokens()], "remove_fraction": 0.4, "target": "transformers"}
    with pytest.raises(ValueError, match=re.escape(reason)) as refused:
        prune_model(load(tiny), **(sound | given))
    assert "\n" not in str(refused.value)


def test_models_that_are_none_are_refused(tiny: Path) -> None:
    whole = load(tiny)
    for model, reason in (
        (torch.nn.Linear(2, 2), "must be a model of transformers"),
        (whole.model, "must be a LlamaForCausalLM"),
        (load(tiny).to("meta"), "must be whole on one device"),
    ):
        with pytest.raises(ValueError, match=reason):
            prune_model(model, [tokens()])


ALONE = """
import sys
sys.modules["deepspeed"] = sys.modules["hydra"] = None  # importing them fails
import transact
assert "torch" not in sys.modules
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
cut = transact.prune_model(model, [torch.randint(0, 512, (8, 32))], remove_fraction=0.4, target="transformers")
assert not torch.distributed.is_initialized() and cut.num_parameters() < model.num_parameters()
"""


def test_it_needs_neither_deepspeed_nor_hydra_nor_a_folder(tiny: Path, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", ALONE, str(tiny)], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_example_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/python.md").read_text(), re.DOTALL)[0]
    place = str(REPOSITORY / "transact/assets/demo_parent")
    exec(example.replace("path/or/owner-name", place), {"batches": [tokens(length=64)]})
    assert 1.9 < load(Path(place)).num_parameters() / load(tmp_path / "smaller").num_parameters() < 2.1


@pytest.mark.parametrize("method", PRESETS)
def test_the_callers_random_numbers_are_not_used(method: str, tiny: Path) -> None:
    model, state = load(tiny), torch.get_rng_state()
    prune_model(model, [tokens()], method=method, remove_fraction=0.4, target="transformers")
    assert torch.equal(torch.get_rng_state(), state)
