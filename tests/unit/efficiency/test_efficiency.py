"""What a model costs to run: counted figures against hand counts, and the command as a user calls it."""

from __future__ import annotations

import json
import shutil
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.commands import REPOSITORY, Workplace
from tests.support.tiny import TINY
from transact.config.outputs import EfficiencyConfig
from transact.evaluation.efficiency.command import (
    draft_words,
    efficiency_table,
    main,
    parse,
    requested,
    turns_text,
)
from transact.evaluation.efficiency.draft import measure_draft
from transact.evaluation.efficiency.generation import (
    Clock,
    Seconds,
    allocated_peak,
    generate,
    peak_bytes,
    random_prompt,
    speed_ups,
    weight_bytes,
)
from transact.evaluation.efficiency.measure import Pace, Patience, describe, measure, tokens_to_make
from transact.models.folder import geometry_of

DEMO_PARENT = REPOSITORY / "transact" / "assets" / "demo_parent"


def test_peak_counts_what_lives_at_the_same_time() -> None:
    old = torch.zeros(1000)

    def work() -> torch.Tensor:
        nonlocal old
        large = torch.ones(400)  # 1600 bytes
        small = large[:100] * 1  # and 400
        del large
        old = old[:1] * 1  # 4 bytes, and 4000 that were there before are free
        return torch.cat([small, torch.ones(600)]).view(7, 100)  # 2400 and 2800, less the above

    assert allocated_peak(work) == 2000
    assert allocated_peak(lambda: (torch.zeros(10) + 1) * 2) == 80


def test_peak_counts_what_only_a_view_or_the_graph_still_holds() -> None:
    def with_a_view() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones(1000)[:1], torch.ones(500)

    assert allocated_peak(with_a_view) == 6000

    def with_a_graph() -> torch.Tensor:
        return torch.ones(1000, requires_grad=True).exp().exp()  # each saves its result

    assert allocated_peak(with_a_graph) == 12000


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**TINY)).eval()


def test_peak_holds_the_weights_and_the_longest_cache(model: LlamaForCausalLM) -> None:
    prompt = random_prompt(TINY["vocab_size"], 2, 8, torch.device("cpu"))
    assert weight_bytes(model) >= sum(weight.nbytes for weight in model.parameters())
    short, long = (peak_bytes(model, prompt, new_tokens) for new_tokens in (100, 101))
    cache_per_token = 2 * 4 * 2 * TINY["num_hidden_layers"] * TINY["num_key_value_heads"] * TINY["head_dim"]
    assert short > weight_bytes(model) + 107 * cache_per_token
    # A token more in the cache, once more in the layer that is being lengthened, and in what attention makes of it.
    assert cache_per_token < long - short < 4 * cache_per_token


def test_generation_is_that_of_transformers(model: LlamaForCausalLM) -> None:
    prompt = random_prompt(TINY["vocab_size"], 2, 8, torch.device("cpu"))
    chosen: list[torch.Tensor] = []
    hook = model.register_forward_pre_hook(lambda _, __, given: chosen.append(given["input_ids"]), with_kwargs=True)
    ticks = iter(range(100))
    found = generate(model, prompt, [3, 6], lambda: (float(next(ticks)), 10.0 * next(ticks)))
    hook.remove()
    theirs = model.generate(prompt, do_sample=False, max_new_tokens=6, eos_token_id=None, pad_token_id=0)
    assert torch.cat(chosen, dim=1).equal(theirs[:, :-1])
    # Every look at the clock takes two ticks: one for each of the two times.
    assert found[3]["prefill"] == found[6]["prefill"] == Seconds(processor=2, wall=20)
    assert found[3]["decode"] == Seconds(processor=2 / 2, wall=20 / 2)
    assert found[6]["decode"] == Seconds(processor=4 / 5, wall=40 / 5)
    assert found[6]["whole"] == Seconds(processor=6, wall=60)


def turn(prefill: float, decode: float) -> dict[str, Seconds]:
    return {
        "prefill": Seconds(processor=prefill, wall=3 * prefill),
        "decode": Seconds(processor=decode, wall=2 * decode),
        "whole": Seconds(processor=prefill + decode, wall=prefill + decode),
    }


def test_speed_ups_are_medians_of_the_ratios_in_a_turn() -> None:
    """A turn in which everything was slow counts like any other."""
    parent = [turn(9, 4), turn(900, 400), turn(9, 4)]
    child = [turn(3, 3), turn(300, 300), turn(3, 1)]
    found = speed_ups(parent, child, {"prefill": 4.0, "decode": 2.0}, "processor")
    assert found["prefill"]["speed_up"] == pytest.approx(3)
    assert found["prefill"]["allowed"] == pytest.approx(4)
    assert found["prefill"]["reached"] == pytest.approx(0.75)
    assert found["decode"]["speed_up"] == pytest.approx(4 / 3)
    assert found["whole"]["speed_up"] == pytest.approx(13 / 6)
    assert "allowed" not in found["whole"]


def test_there_is_time_for_as_many_turns_as_fit() -> None:
    assert Patience(100.0).turns(5, 9.0) == 5
    assert Patience(100.0).turns(5, 30.0) == 3
    assert Patience(100.0).turns(5, 101.0) == 0


def test_the_prompt_is_foreseen_once_and_each_further_token_as_a_step() -> None:
    assert Pace(prefill=30.0, decode=0.35).seconds(256) == pytest.approx(30 + 255 * 0.35)


def test_a_draft_for_which_there_is_no_time_is_left_out(workplace: Workplace) -> None:
    config = EfficiencyConfig(prompt_tokens=[4], new_tokens=[3], turns=2, max_minutes=1e-9, draft=True)
    folders = {"parent": workplace.model, "pruned": workplace.model}
    prompts = torch.zeros(8, 4, dtype=torch.long)
    result = measure(folders, config, dtype="float32", device=torch.device("cpu"), prompts=prompts)
    assert result["draft"] is None
    assert result["left_out"] == ["4 tokens of prompt, batch size 1: 2 of 2 turns", "the draft: 2 of 2 turns"]


def test_what_there_is_no_time_for_is_named(workplace: Workplace) -> None:
    config = EfficiencyConfig(prompt_tokens=[4], new_tokens=[3], batch_sizes=[1, 2], turns=2, max_minutes=1e-9)
    result = measure({"model": workplace.model}, config, dtype="float32", device=torch.device("cpu"))
    assert result["latency"] == []
    assert result["left_out"] == [
        "4 tokens of prompt, batch size 1: 2 of 2 turns",
        "4 tokens of prompt, batch size 2: 2 of 2 turns",
    ]
    assert "max_minutes" in result["not_measured"]


def test_turns_that_were_made_are_the_ones_that_are_told() -> None:
    assert turns_text([{"turns": 3}, {"turns": 3}]) == "3 turns"
    assert turns_text([{"turns": 3}, {"turns": 1}]) == "1 to 3 turns"


def test_a_second_copy_of_the_weights_does_not_count(workplace: Workplace, tmp_path: Path) -> None:
    """Mistral's folders hold one, under the names of its own library."""
    folder = shutil.copytree(workplace.model, tmp_path / "model")
    size = describe(folder, geometry_of(folder), "float32")["file_bytes"]
    shutil.copy(next(folder.glob("model*.safetensors")), folder / "consolidated.safetensors")
    assert describe(folder, geometry_of(folder), "float32")["file_bytes"] == size > 0


def test_every_figure_of_the_folder_and_its_parent(workplace: Workplace) -> None:
    config = EfficiencyConfig(prompt_tokens=[4], new_tokens=[5, 3], batch_sizes=[1, 2], turns=2)
    folders = {"parent": DEMO_PARENT, "model": workplace.model}
    told: list[int] = []
    threads = torch.get_num_threads()
    result = measure(folders, config, dtype="bfloat16", device=torch.device("cpu"), progress=told.append)
    assert torch.get_num_threads() == threads
    assert sum(told) == tokens_to_make(config, len(folders))
    assert [(row["batch_size"], row["new_tokens"]) for row in result["latency"]] == [(1, 3), (1, 5), (2, 3), (2, 5)]
    for role, folder in folders.items():
        geometry = geometry_of(folder)
        assert result["models"][role]["parameters"] == geometry.parameters()
        row = result["latency"][-1]["models"][role]
        assert row["prefill"]["flops"] == 2 * geometry.prefill_flops(4)
        assert row["decode"]["bytes"] == geometry.decode_bytes(4 + 2, 2, 2)
        assert row["peak_bytes"] > 2 * geometry.parameters()
    files = workplace.model.glob("*.safetensors")
    assert result["models"]["model"]["file_bytes"] == sum(file.stat().st_size for file in files)
    faster = result["latency"][0]["speed_ups"]["model"]["decode"]
    assert faster["reached"] == pytest.approx(faster["speed_up"] / faster["allowed"])
    assert faster["allowed"] > 5
    assert set(result["latency"][0]["models"]) == set(folders)
    json.dumps(result)


def test_the_command_prints_a_table_or_json_and_writes_a_file(
    workplace: Workplace, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ["--new-tokens", "2", "--prompt-tokens", "2", "--turns", "1", "--device", "cpu"]
    assert main([str(workplace.model), *options]) == 0
    told = capfd.readouterr().out
    assert "allowed" not in told and "prefill GFLOPs" in told and "medians of 1 turns" in told
    output = tmp_path / "found.json"
    assert main([str(workplace.model), "--against", str(DEMO_PARENT), *options, "--json", "--output", str(output)]) == 0
    printed = capfd.readouterr().out
    found = json.loads(printed)
    assert found == json.loads(output.read_text())
    heading, parent, model = efficiency_table(found).split("\n\n")[3].splitlines()
    assert heading.split()[-7:] == ["prefill", "allowed", "reached", "decode", "allowed", "reached", "whole"]
    assert parent.count("x") == 0 and model.count("x") == 5


def test_the_papers_grid_goes_to_256_and_768_tokens() -> None:
    config = requested(parse(["folder", "--preset", "paper", "--turns", "1"]))
    assert (config.prompt_tokens[-1], config.new_tokens[-1], config.turns) == (256, 768, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "'nowhere' is no model folder: it holds no config.json"),
        ([str(DEMO_PARENT), "--against", "nowhere"], "'nowhere' is no model folder"),
        (
            [str(DEMO_PARENT), "--new-tokens", "1"],
            "--new-tokens=[1] is not allowed: it takes 1 to 100 entries, each from 2 to",
        ),
        ([str(DEMO_PARENT), "--dtype", "int8"], "--dtype='int8' is not allowed: it must be one of stored, float32"),
        ([str(DEMO_PARENT), "--turns", "many"], "argument --turns: invalid int value: 'many'"),
        ([str(DEMO_PARENT), "--output", "no/such/file.json"], "there is no such folder"),
        ([str(DEMO_PARENT), "--calibrate", str(DEMO_PARENT)], "is a folder: name a file in it"),
        ([str(DEMO_PARENT), "--trns", "1"], "unrecognized arguments: --trns 1"),
    ],
)
def test_a_wrong_request_ends_with_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(arguments)
    except SystemExit as left:  # argparse's way
        code = left.code
    said = capsys.readouterr()
    assert code == 2
    assert said.out == ""
    assert said.err.count("\n") == 1 and said.err.startswith("error: ")
    assert message in said.err


def test_a_draft_is_as_good_as_it_agrees_with_its_parent(model: LlamaForCausalLM) -> None:
    """The parent takes all that it proposes itself, and nothing of a model that proposes what it finds least likely."""
    prompts = random_prompt(512, 3, 8, torch.device("cpu"))
    clock = Clock(device=torch.device("cpu"), threads=1)
    other = deepcopy(model)
    other.model.norm.weight.data.neg_()
    made: list[int] = []
    own, foreign = (measure_draft(model, each, prompts, 12, 2, clock, made.append) for each in (deepcopy(model), other))
    assert own["acceptance_rate"] == 1 and own["proposed"] == own["accepted"] > 0
    assert foreign["acceptance_rate"] == 0 and foreign["tokens_per_parent_forward"] == 1
    assert own["same_tokens"] == foreign["same_tokens"] == 1
    assert sum(made) == 2 * 2 * 2 * 3 * 12
    assert "100% of its proposals accepted" in draft_words(own)


def test_the_command_tries_a_draft(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("def main(argument):\n    return argument\n" * 20)
    lengths = ["--prompt-tokens", "16", "--new-tokens", "4", "--turns", "1"]
    asked = [str(DEMO_PARENT), *lengths, "--draft", str(text)]
    assert main(asked) == 2 and "--draft needs --against" in capsys.readouterr().err
    assert main([*asked, "--against", str(DEMO_PARENT)]) == 0
    assert "as a draft of its parent: 100% of its proposals accepted" in capsys.readouterr().out
    vllm = [*asked, "--against", str(DEMO_PARENT), "--vllm"]
    assert main([*vllm, "/nowhere"]) == 2 and "is no Python that can be run" in capsys.readouterr().err
    assert main([*vllm, sys.executable]) == 2
    said = capsys.readouterr().err
    assert "cannot be used" in said and "ModuleNotFoundError: No module named 'vllm'" in said
    assert main([str(DEMO_PARENT), "--vllm", "x"]) == 2 and "--vllm needs --draft" in capsys.readouterr().err
    text.write_text("short")
    assert main([*asked, "--against", str(DEMO_PARENT)]) == 2 and "a prompt has 16" in capsys.readouterr().err
