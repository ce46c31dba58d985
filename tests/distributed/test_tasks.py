"""Tasks of lm-eval on a model that the ranks share."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from tests.support.commands import REPOSITORY, Workplace
from tests.support.ranks import run_on_ranks
from tests.support.tasks import QUESTIONS, SHOTS, write_tasks
from tests.support.tiny import TINY
from transact.config.machines import EngineConfig
from transact.data.document_marks import document_marks
from transact.data.token_parts import Packing
from transact.data.token_store import TokenStore
from transact.data.tokenising import write_token_store

lm_eval = pytest.importorskip("lm_eval", reason="the tasks need transact[eval]")


def text_of(workplace: Workplace) -> str:
    """Fits into the context of the tiny model."""
    return workplace.heldout.read_text()[:150]


@pytest.fixture(scope="module")
def tasks(workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks") / "tasks", text_of(workplace))


@pytest.fixture(scope="module")
def model(workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its documents begin with a mark, which is what lm-eval puts before a text."""
    folder = tmp_path_factory.mktemp("model") / "model"
    shutil.copytree(workplace.model, folder)
    plain = AutoTokenizer.from_pretrained(folder)
    backend = plain.backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<eos>", eos_token="<eos>").save_pretrained(folder)
    return folder


def metrics_of(
    model: Path, tasks: Path, zero_stage: int, shots: dict[str, int] = SHOTS, dtype: str = "float32"
) -> dict[str, dict[str, float]]:
    from transact.distributed.process import process_group
    from transact.engine.engine import open_engine
    from transact.evaluation.tasks import SharedModel, load_tasks, run_tasks
    from transact.models.stock import load_tokenizer

    config = EngineConfig(zero_stage=zero_stage, device="cpu", micro_batch_sequences=2, dtype=dtype)
    with process_group("cpu", 5) as group, open_engine(model, config, group) as engine:
        shared = SharedModel(
            engine.module, load_tokenizer(model), group, batch_size=2, is_partitioned=engine.is_partitioned
        )
        return run_tasks(load_tasks(shots, [tasks]), shared, limit=None)


def prompts_as_chats(model: Path, tasks: Path) -> list[str]:
    """The prompts of a task with two examples, through a chat template."""
    from transact.distributed.process import process_group
    from transact.engine.engine import open_engine
    from transact.evaluation.tasks import SharedModel, load_tasks, run_tasks
    from transact.models.stock import load_tokenizer

    config, tokenizer = EngineConfig(device="cpu", micro_batch_sequences=2), load_tokenizer(model)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
    )
    with process_group("cpu", 5) as group, open_engine(model, config, group) as engine:
        shared = SharedModel(engine.module, tokenizer, group, batch_size=2, is_partitioned=engine.is_partitioned)
        loaded = load_tasks({"which_word": 2}, [tasks])
        run_tasks(loaded, shared, limit=None, chat_template=True)
    (task,) = loaded["which_word"]["tasks"].values()
    return [each.args[0] for each in task.instances]


def test_prompts_may_be_chats_with_each_example_as_turns(model: Path, tasks: Path) -> None:
    (prompts,) = run_on_ranks(1, prompts_as_chats, model, tasks)
    for prompt in prompts:
        assert (prompt.count("<user>"), prompt.count("<assistant>"), prompt.count("<bot>")) == (3, 2, 1)
        assert prompt.startswith("<user>def ") and prompt.endswith("<bot>")


@pytest.fixture(scope="module")
def alone(model: Path, tasks: Path) -> dict[str, dict[str, float]]:
    return run_on_ranks(1, metrics_of, model, tasks, 0)[0]


def test_every_kind_of_task_is_answered(alone: dict[str, dict[str, float]]) -> None:
    assert alone["which_word"]["documents"] == len(QUESTIONS)
    assert alone["which_word"]["shots"] == SHOTS["which_word"]
    assert 0 <= alone["which_word"]["acc"] <= 1
    assert 0 <= alone["what_next"]["exact_match"] <= 1
    assert alone["how_likely"]["byte_perplexity"] > 1


def prompts_of_two_models(model: Path, tasks: Path) -> list[list[str]]:
    """What a first and a second model are asked in one go, as parent and pruned model are."""
    from transact.distributed.process import process_group
    from transact.engine.engine import open_engine
    from transact.evaluation.tasks import SharedModel, load_tasks, run_tasks
    from transact.models.stock import load_tokenizer

    asked: list[list[str]] = []
    answer = SharedModel.loglikelihood

    def record(self: SharedModel, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        asked.append([request.args[0] for request in requests])
        return answer(self, requests, disable_tqdm)

    SharedModel.loglikelihood = record
    loaded = load_tasks({"which_word": 2}, [tasks])
    config = EngineConfig(zero_stage=0, device="cpu", micro_batch_sequences=2)
    with process_group("cpu", 5) as group:
        for _ in range(2):
            with open_engine(model, config, group) as engine:
                tokenizer = load_tokenizer(model)
                shared = SharedModel(engine.module, tokenizer, group, batch_size=2, is_partitioned=False)
                run_tasks(loaded, shared, limit=None)
    return asked


def test_parent_and_pruned_model_are_shown_the_same_examples(model: Path, tasks: Path) -> None:
    first, second = run_on_ranks(1, prompts_of_two_models, model, tasks)[0]
    assert first == second
    assert len(set(first)) > 1


@pytest.mark.parametrize(("ranks", "zero_stage"), [(2, 3), (3, 0)])
def test_ranks_that_share_the_work_find_the_same(
    model: Path, tasks: Path, alone: dict[str, dict[str, float]], ranks: int, zero_stage: int
) -> None:
    """With ZeRO-3 every forward needs every rank, and the ranks have different numbers of them."""
    for found in run_on_ranks(ranks, metrics_of, model, tasks, zero_stage):
        assert found.keys() == alone.keys()
        for task, metrics in found.items():
            assert metrics == pytest.approx(alone[task], rel=1e-5)


def loss_of(model: Path, folder: Path, text: str, dtype: str) -> tuple[float, int]:
    """Ours: of a text as one sequence."""
    from transact.distributed.process import process_group
    from transact.engine.engine import open_engine
    from transact.models.stock import load_tokenizer
    from transact.stages.evaluate import mean_loss

    tokenizer = load_tokenizer(model)
    count = len(tokenizer(text)["input_ids"])
    marks = document_marks(tokenizer, "begin")  # as lm-eval puts one before a text
    write_token_store(folder, [text], tokenizer, Packing(sequence_length=1 + count, max_sequences=1, marks=marks))
    config = EngineConfig(device="cpu", micro_batch_sequences=1, dtype=dtype)
    with process_group("cpu", 5) as group, open_engine(model, config, group) as engine:
        return mean_loss(engine, TokenStore(folder), torch.arange(1), 1, group), count


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_our_perplexity_is_that_of_lm_eval(
    model: Path, tasks: Path, workplace: Workplace, tmp_path: Path, dtype: str
) -> None:
    """Per token of the same text, each one predicted from all before it and from the mark at the beginning."""
    text = text_of(workplace)
    loss, count = run_on_ranks(1, loss_of, model, tmp_path / "store", text, dtype)[0]
    assert 40 < count < TINY["max_position_embeddings"]  # lm-eval cuts a longer text into windows
    found = run_on_ranks(1, metrics_of, model, tasks, 0, {"how_likely": 0}, dtype)[0]
    theirs = math.log(found["how_likely"]["byte_perplexity"]) * len(text.encode()) / count
    assert math.exp(loss) == pytest.approx(math.exp(theirs), rel=1e-3)


def test_an_unknown_task_and_missing_data_are_refused_by_name(tasks: Path, tmp_path: Path) -> None:
    from transact.evaluation.tasks import load_tasks

    folder = tmp_path / "broken"
    shutil.copytree(tasks, folder)
    broken = folder / "which_word.yaml"
    broken.write_text(broken.read_text().replace(str(tasks), "/nowhere"))
    with pytest.raises(ValueError, match="'which_word' cannot be loaded"):
        load_tasks({"which_word": 0}, [folder])


def test_the_logiqa_of_transact_reads_rows_as_the_hub_has_them(tmp_path: Path) -> None:
    """Its data is on the hub; here the same columns come from a file."""
    from transact.evaluation.tasks import load_tasks

    own = REPOSITORY / "transact" / "assets" / "tasks" / "transact_logiqa.yaml"
    row: dict[str, Any] = {
        "context": "All cats are grey.",
        "question": "What colour is this cat?",
        "options": ["Red.", "Grey.", "Blue.", "None."],
        "label": "b",
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    local = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}}}
    settings = yaml.safe_load(own.read_text()) | local
    del settings["validation_split"]
    (tmp_path / own.name).write_text(yaml.safe_dump(settings))
    task = load_tasks({"transact_logiqa": 0}, [tmp_path])["transact_logiqa"]["tasks"]["transact_logiqa"]
    (document,) = task.test_docs()
    assert task.doc_to_text(document) == (
        "Passage: All cats are grey.\nQuestion: What colour is this cat?\nChoices:\n"
        "A. Red.\nB. Grey.\nC. Blue.\nD. None.\nAnswer:"
    )
    assert task.doc_to_choice(document) == row["options"]
    assert task.doc_to_target(document) == 1


def test_the_papers_suite_names_its_shots() -> None:
    suite = yaml.safe_load((REPOSITORY / "conf" / "eval" / "paper.yaml").read_text())["tasks"]
    assert {name: shots for name, shots in suite.items() if shots} == {
        "arc_challenge": 25,
        "hellaswag": 10,
        "winogrande": 5,
    }
    assert len(suite) == 13


def mixed_answers(tasks: Path, cache: Path, seed: int) -> list[str]:
    """The answers of a task that mixes them as it is loaded, on a machine with a cache of its own."""
    import datasets

    from transact.evaluation.tasks import load_tasks

    datasets.config.HF_DATASETS_CACHE = cache
    random.seed(seed)
    numpy.random.seed(seed)
    (task,) = load_tasks({"mixed": 0}, [tasks])["mixed"]["tasks"].values()
    return [each["order"] for each in task.eval_docs]


def test_answers_that_are_mixed_while_loading_are_alike_on_all_machines(tasks: Path, tmp_path: Path) -> None:
    """Rank 0 scores what ranks of other machines answer."""
    folder = tmp_path / "mixed"
    shutil.copytree(tasks, folder)
    (folder / "mixing.py").write_text(
        "import random\n\n\ndef mixed(rows):\n    return rows.map(lambda row: {'order': str(random.random())})\n"
    )
    described = yaml.safe_load((folder / "which_word.yaml").read_text()) | {"task": "mixed"}
    (folder / "mixed.yaml").write_text(f"{yaml.safe_dump(described)}process_docs: !function mixing.mixed\n")
    first, second = (run_on_ranks(1, mixed_answers, folder, tmp_path / f"cache_{seed}", seed)[0] for seed in range(2))
    assert first == second and len(set(first)) == len(QUESTIONS)


def test_an_answer_that_leaves_no_room_for_its_prompt_is_refused(tasks: Path) -> None:
    from transact.evaluation.tasks import answer_tokens, load_tasks
    from transact.stages.tasks import check_answers

    answers = answer_tokens(load_tasks({"what_next": 0, "which_word": 0}, [tasks]))
    assert answers == {"what_next": 4, "which_word": 0}
    check_answers(answers, 5)
    with pytest.raises(ValueError, match="'what_next' have up to 4 tokens, which leaves no room for its prompts in 4 "):
        check_answers(answers, 4)


def penalty_of(model: Path) -> float:
    from transact.distributed.process import process_group
    from transact.engine.engine import open_engine

    config = EngineConfig(device="cpu", micro_batch_sequences=1)
    with process_group("cpu", 5) as group, open_engine(model, config, group) as engine:
        return float(engine.module.generation_config.repetition_penalty)


def test_answers_are_made_by_the_settings_of_the_folder(model: Path, tmp_path: Path) -> None:
    """A penalty of repetitions changes greedy answers too; lm-eval's own model reads it."""
    folder = tmp_path / "with_settings"
    shutil.copytree(model, folder)
    GenerationConfig(repetition_penalty=1.3).save_pretrained(folder)
    assert run_on_ranks(1, penalty_of, folder) == [1.3]
