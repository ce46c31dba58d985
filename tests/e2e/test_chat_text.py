"""A run on chats with a loss of the answers alone, and tasks whose prompts are chats."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from torch.nn import functional
from transformers import AutoTokenizer

from tests.support.commands import Workplace, transact
from tests.support.tasks import write_tasks
from transact.config.compose import typed_config
from transact.data.order import SequenceOrder
from transact.data.token_store import TokenStore
from transact.files import read_json
from transact.models.stock import load_model
from transact.quantize.finished_run import read_finished_run
from transact.rounds import reserved_sequences
from transact.runs.metrics import read_metrics
from transact.runs.run_record import read_config

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}:{{ '\\n' }}{{ m.content }}<eos>{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{{ '\\n' }}{% endif %}"
)


def conversations(source: Path) -> list[dict[str, Any]]:
    """Each function of a file, asked for and told, two in a conversation."""
    parts = []
    for line in source.read_text().split(" def ")[1:]:
        name, _, body = line.partition("(")
        parts.append([{"from": "human", "value": f"show {name}"}, {"from": "gpt", "value": f"({body[:300]}"}])
    return [{"turns": first + second} for first, second in zip(parts[::2], parts[1::2], strict=False)]


def chat_model(workplace: Workplace, folder: Path, template: str | None = TEMPLATE) -> Path:
    shutil.copytree(workplace.model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def asked(workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("chats")
    train, heldout = folder / "train.jsonl", folder / "heldout.parquet"
    train.write_text("".join(json.dumps(each) + "\n" for each in conversations(workplace.train)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(conversations(workplace.heldout)), heldout)
    write_tasks(folder / "tasks", workplace.heldout.read_text()[:150])
    return [
        *workplace.overrides("chats"),
        f"output_dir={folder}/run",
        f"data.token_store={folder}/tokens",
        f"model.path={chat_model(workplace, folder / 'model')}",
        f"data.train.files=[{train}]",
        "+data.train.messages_field=turns",
        "data.train.loss=answers",
        f"data.evaluation.files=[{heldout}]",
        "+data.evaluation.messages_field=turns",
        "data.evaluation.loss=answers",
        "data.sequence_length=32",
        "data.evaluation_sequences=9",
        "prune.rounds=1",
        "recover.objective=cross_entropy",
        "recover.tokens=1024",
        "engine.micro_batch_sequences=2",
        "eval.efficiency.measured=false",
    ]


@pytest.fixture(scope="module")
def run(asked: list[str]) -> Any:
    """Recovered by two ranks, on answers alone."""
    ended = transact(asked, ranks=2)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return Path(next(each for each in asked[::-1] if each.startswith("output_dir="))[11:]), ended.stdout


def store_of(folder: Path, name: str) -> TokenStore:
    return TokenStore(folder.parent / "tokens" / read_json(folder / "run.json")["texts"][name]["store"])


def stock_loss(model: Path, store: TokenStore, positions: torch.Tensor) -> float:
    """The mean over all answers of these sequences, by transformers and PyTorch."""
    tokens, counted = store.sequences(positions), store.counted(positions)
    assert counted is not None
    with torch.no_grad():
        logits = load_model(model, dtype=torch.float32)(input_ids=tokens).logits
    targets = tokens.masked_fill(~counted, -100)[:, 1:]
    return float(functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=-100))


def test_what_counts_is_what_the_assistant_says(run: tuple[Path, str]) -> None:
    """Read as text: from behind "assistant:" to the token that ends the turn, without the line break behind it."""
    folder, said = run
    store, tokenizer = store_of(folder, "data.train"), AutoTokenizer.from_pretrained(folder / "export")
    positions = torch.arange(store.num_sequences)
    tokens, counted = store.sequences(positions).flatten(), store.counted(positions)
    assert counted is not None
    pieces, before = [], False
    for token, counts in zip(tokens.tolist(), counted.flatten().tolist(), strict=True):
        if counts and not before:
            pieces.append([])
        if counts:
            pieces[-1].append(token)
        before = counts
    answers = [each["value"] for row in conversations_of(folder) for each in row["turns"] if each["from"] == "gpt"]
    found = [tokenizer.decode(each) for each in pieces[1:-1]]  # the first and the last may be cut
    assert len(found) > 20 and set(found) <= {f"{each}<eos>" for each in answers}
    assert "are of answers and have a loss" in said and "dense perplexity of the answers" in said


def conversations_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder.parent / "train.jsonl").read_text().splitlines()]


def test_figures_are_means_over_answers_on_any_number_of_ranks(run: tuple[Path, str]) -> None:
    """Of evaluation, and of the first step of training, whose micro-batches of two ranks differ in their answers."""
    folder, _ = run
    evaluation, train = store_of(folder, "data.evaluation"), store_of(folder, "data.train")
    config = typed_config(read_config(folder) or {})
    everything = torch.arange(evaluation.num_sequences)
    sliced = next(folder.glob("round_*/sliced"))
    measured = read_json(sliced.parent / "evaluation.json")["sliced"]
    assert measured["loss"] == pytest.approx(stock_loss(sliced, evaluation, everything), rel=1e-4)
    assert measured["tokens"] == evaluation.num_targets(everything) < evaluation.num_sequences * 31
    assert measured["loss_of"] == "answers"
    assert set(read_json(folder / "run.json")["texts_trained_on"]) == {"data.evaluation"}
    order = SequenceOrder(num_sequences=train.num_sequences, num_reserved=reserved_sequences(config), seed=config.seed)
    first = next(row["recover/loss"] for row in read_metrics(folder / "metrics.jsonl") if "recover/loss" in row)
    assert first == pytest.approx(stock_loss(sliced, train, order.trainable(0, config.recover.batch)), rel=1e-4)


def test_the_export_still_chats(run: tuple[Path, str]) -> None:
    assert AutoTokenizer.from_pretrained(run[0] / "export").chat_template == TEMPLATE
    assert "Perplexity per token of the answers on held-out text" in (run[0] / "export" / "README.md").read_text()


def test_quantised_variants_would_be_measured_on_all_tokens_and_are_refused(run: tuple[Path, str]) -> None:
    with pytest.raises(
        ValueError, match=r"has data\.evaluation\.loss='answers': its perplexities are of answers alone"
    ):
        read_finished_run(run[0])


def test_tasks_as_chats_of_the_finished_run(run: tuple[Path, str], asked: list[str]) -> None:
    pytest.importorskip("lm_eval", reason="the tasks need transact[eval]")
    folder, _ = run
    tasks = ["+eval.tasks={which_word: 2}", f"eval.task_folders=[{folder.parent}/tasks]", "eval.chat_template=true"]
    ended = transact([*asked, *tasks])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = read_json(folder / "comparison.json")
    assert found["dense"]["tasks"]["which_word"]["shots"] == found["pruned"]["tasks"]["which_word"]["shots"] == 2


def test_without_a_template_it_is_one_line(asked: list[str], workplace: Workplace, tmp_path: Path) -> None:
    model = chat_model(workplace, tmp_path / "model", None)
    plain = [*workplace.overrides("plain"), "eval.chat_template=true"]
    for request, told in ((asked, "data.train.messages_field='turns'"), (plain, "eval.chat_template=true")):
        ended = transact([*request, f"output_dir={tmp_path}/run", f"model.path={model}"])
        assert ended.returncode == 2
        assert ended.stdout == "" and ended.stderr.count("\n") == 1, ended.stderr
        assert f"{told} is not allowed: the model's tokenizer has no chat template" in ended.stderr
        assert not (tmp_path / "run").exists()
