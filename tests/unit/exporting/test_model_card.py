"""The model card says what was removed, how, under which licence, and warns of the converter that breaks it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from tests.support.cards import composed, summary
from transact.config.run import RunConfig
from transact.export.model_card import (
    Exported,
    Licence,
    card_on_hub,
    copy_licence,
    evaluation_table,
    has_chat_template,
    model_card,
    read_licence,
)

TYPES = ["f16", "q8_0"]
NO_LICENCE = read_licence(Path("/nonexistent"))


def card_of(
    said: dict[str, Any], config: RunConfig, licence: Licence, *, model_type: str = "llama", **exported: Any
) -> str:
    facts = {"has_chat_template": False, **exported}
    return model_card(said, config, licence, Exported(model_type=model_type, **facts))


def metadata(card: str) -> dict[str, Any]:
    """As the hub's own client reads it."""
    return ModelCard(card).data.to_dict()


def results(card: str) -> dict[tuple[str, str | None, str], float]:
    """Every figure of the model-index, by dataset, its configuration and metric."""
    found = ModelCard(card).data.eval_results or []
    return {(each.dataset_type, each.dataset_config, each.metric_name or ""): each.metric_value for each in found}


def test_the_figures_of_the_record_are_the_model_index(tmp_path: Path) -> None:
    """Texts of the hub under their ids, others under a name alone; what was trained on in part is no result."""
    said = summary()
    said["pruned"] |= {
        "texts": {
            "ours": {"perplexity": 11.25, "tokens": 9},
            "of_the_hub": {"perplexity": 12.5, "tokens": 9},
            "seen": {"perplexity": 2.0, "tokens": 9, "documents_trained_on": 3},
        },
        "tasks": {"which": {"acc": 0.5, "acc_norm": 0.75, "shots": 5, "documents": 4}, "odd": {"ppl": None}},
    }
    files = f"{{source: files, files: ['{tmp_path}/private.txt']}}"
    config = composed(
        "owner/parent",
        "data.train={source: hub, hub_id: team/text, split: train}",
        f"+eval.texts.ours={files}",
        f"+eval.texts.seen={files}",
        "+eval.texts.of_the_hub={source: hub, hub_id: team/held, hub_config: small, split: test}",
    )
    card = card_of(said, config, NO_LICENCE, has_factors=False, gguf_types=TYPES)
    assert results(card) == {
        ("text", "held-out text", "perplexity per token"): said["pruned"]["perplexity"],
        ("text", "ours", "perplexity per token"): 11.25,
        ("team/held", "small", "perplexity per token"): 12.5,
        ("which", None, "acc (5-shot)"): 0.5,
        ("which", None, "acc_norm (5-shot)"): 0.75,
    }
    assert metadata(card)["datasets"] == ["team/text"]
    assert str(tmp_path) not in card and "private.txt" not in card


def test_what_a_figure_is_of_stands_beside_the_texts_name() -> None:
    texts = {"ours": {"perplexity": 11.25, "tokens": 9}}
    texts["apart"] = texts["ours"] | {"loss_of": "answers", "packing": "documents"}
    texts["seen"] = texts["ours"] | {"documents_trained_on": 3}
    told = evaluation_table({"dense": {"texts": texts}, "pruned": {"texts": texts}}).splitlines()[2:]
    assert told == [
        "| ours | perplexity | 11.25 | 11.25 |",
        "| apart of the answers of documents apart | perplexity | 11.25 | 11.25 |",
        "| seen (documents trained on too: 3) | perplexity | 11.25 | 11.25 |",
    ]


def test_the_hubs_client_reads_back_what_it_wrote(tmp_path: Path) -> None:
    card = card_of(summary(), composed("owner/parent"), NO_LICENCE, has_factors=True, gguf_types=TYPES)
    (tmp_path / "README.md").write_text(card)
    read = ModelCard.load(tmp_path / "README.md")
    assert read.content == card
    assert read.data.to_dict() == {
        "base_model": "owner/parent",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llama", "pruned", "transact"],
        "model-index": [{"name": "half", "results": [{
            "task": {"type": "text-generation"},
            "dataset": {"name": "held-out text", "type": "text", "config": "held-out text"},
            "metrics": [{"type": "perplexity", "value": 8.5, "name": "perplexity per token"}],
        }]}],
    }  # fmt: skip


def test_on_the_hub_the_card_names_the_repository_and_the_file_for_llama_cpp() -> None:
    card = card_of(summary(), composed("owner/parent"), NO_LICENCE, has_factors=True, gguf_types=TYPES)
    there = card_on_hub(card, "me/half", ["half-q8_0.gguf"])
    assert 'from_pretrained("me/half", dtype="auto")' in there and "FOLDER" not in there
    assert "`half-q8_0.gguf`" in there and metadata(there) == metadata(card)
    assert "llama.cpp\n\n" not in card_on_hub(card, "me/half", [])


def test_says_what_was_removed_and_how() -> None:
    card = card_of(summary(), composed("owner/parent"), NO_LICENCE, has_factors=True, gguf_types=TYPES)
    assert "head_dim 32 -> 24, intermediate_size 640 -> 277" in card
    assert "30.0% of its parameters removed" in card and "in 2 rounds" in card
    assert "`logit_variance`" in card and "3,000 tokens" in card
    assert "| dense | 1,000 |" in card and "| pruned | 700 |" in card
    assert "arXiv" in card and "@article" in card and "AutoModelForCausalLM" in card
    assert metadata(card)["base_model"] == "owner/parent"


def test_a_local_parent_is_not_named(tmp_path: Path) -> None:
    """A folder's name is no model's name; that of a folder in the hub's cache says which model it is."""
    (folder := tmp_path / "my_private_folder").mkdir()
    card = card_of(summary(), composed(str(folder)), NO_LICENCE, has_factors=True, gguf_types=TYPES)
    assert folder.name not in card and "base_model" not in metadata(card)
    assert "The parent, with 30.0% of its parameters removed" in card

    (cached := tmp_path / "models--owner--parent-1B" / "snapshots" / "c0ffee").mkdir(parents=True)
    card = card_of(summary(), composed(str(cached)), NO_LICENCE, has_factors=True, gguf_types=TYPES)
    assert metadata(card)["base_model"] == "owner/parent-1B" and "the parent `owner/parent-1B`" in card
    assert str(tmp_path) not in card


def test_a_chat_model_says_how_to_talk_to_it() -> None:
    card = card_of(
        summary(), composed("a/b"), NO_LICENCE,
        model_type="qwen2", has_chat_template=True, has_factors=False, gguf_types=TYPES,
    )  # fmt: skip
    assert "apply_chat_template" in card
    assert metadata(card)["tags"] == ["qwen2", "conversational", "pruned", "transact"]
    assert metadata(card)["library_name"] == "transformers"
    base = card_of(summary(), composed("a/b"), NO_LICENCE, has_factors=False, gguf_types=TYPES)
    assert "apply_chat_template" not in base and "conversational" not in metadata(base)["tags"]


@pytest.mark.parametrize(
    ("where", "template", "knows"),
    [
        ("chat_template.jinja", "{{ messages }}", True),
        ("tokenizer_config.json", '{"chat_template": "{{ messages }}"}', True),
        ("tokenizer_config.json", '{"chat_template": null}', False),
        ("LICENSE", "", False),
    ],
)
def test_who_can_chat(tmp_path: Path, where: str, template: str, knows: bool) -> None:
    (tmp_path / where).write_text(template)
    assert has_chat_template(tmp_path) == knows


@pytest.mark.parametrize(
    "licence", ["mit", "a: b\n---\nmodel-index: [x]", "`code`\n\n# Title", "- [", "'\"", "&a *a", "no", "1.0", "日本語"]
)
def test_a_licence_is_a_value_whatever_it_holds(tmp_path: Path, licence: str) -> None:
    """It adds no key, no heading and no code to the card."""
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump({'license': licence})}---\n")
    card = card_of(summary(), composed("a/b"), read_licence(tmp_path), has_factors=False, gguf_types=TYPES)
    assert metadata(card)["license"] == " ".join(licence.split())
    assert metadata(card)["model-index"][0]["name"] == "half" and "\n# Title" not in card
    (said,) = [line for line in card.splitlines() if line.startswith("That of the parent")]
    assert said.count("`") == 4


@pytest.mark.parametrize(("has_factors", "how"), [(True, "`longrope` factors"), (False, "another `rope_theta`")])
def test_warns_of_the_stock_converter_where_it_breaks_the_model(has_factors: bool, how: str) -> None:
    card = card_of(summary(), composed("owner/parent"), NO_LICENCE, has_factors=has_factors, gguf_types=TYPES)
    assert ("GGUF only through transact" in card) == has_factors and how in card
    assert ("`export.gguf=f16` or `export.gguf=q8_0` writes" in card) == has_factors
    uncut = card_of(summary(head_dim=32), composed("owner/parent"), NO_LICENCE, has_factors=False, gguf_types=TYPES)
    assert "frequency" not in uncut and "GGUF only" not in uncut


@pytest.mark.parametrize(
    ("in_vllm", "types", "served", "file"),
    [
        (True, TYPES, "as its own `DeciLMForCausalLM`", "`export.gguf=f16` or `export.gguf=q8_0` writes a file"),
        (False, TYPES, "by that code (`--trust-remote-code`", "`export.gguf=f16` or `export.gguf=q8_0` writes a file"),
        (False, [], "by that code (`--trust-remote-code`", "There is no file for llama.cpp"),
    ],
    ids=["widths", "fewer_heads", "own_pairs"],
)
def test_says_what_loads_layers_that_differ(in_vllm: bool, types: list[str], served: str, file: str) -> None:
    facts = {"code": ["layers.py"], "in_vllm": in_vllm, "gguf_types": types, "has_factors": False}
    card = card_of(summary(head_dim=32), composed("owner/parent"), NO_LICENCE, **facts)
    assert "trust_remote_code=True" in card and "`layers.py` in this folder does" in card
    assert f"vLLM serves it {served}" in card and file in card
    factors = card_of(summary(), composed("owner/parent"), NO_LICENCE, **(facts | {"has_factors": True}))
    assert "GGUF only through transact" in factors and "computes such layers" not in factors


def test_the_parents_licence_goes_along(tmp_path: Path) -> None:
    parent, target = tmp_path / "parent", tmp_path / "target"
    parent.mkdir()
    target.mkdir()
    (parent / "README.md").write_text("---\nlicense: other\nlicense_name: llama3\ntags: [x]\n---\n# Parent\n")
    (parent / "LICENSE").write_text("terms")
    licence = read_licence(parent)
    card = card_of(summary(), composed(str(parent)), licence, has_factors=True, gguf_types=TYPES)
    assert (metadata(card)["license"], metadata(card)["license_name"]) == ("other", "llama3")
    assert "applies: `llama3` (`LICENSE`)" in card
    copy_licence(licence, parent, target)
    assert (target / "LICENSE").read_text() == "terms"


@pytest.mark.parametrize(("said", "found"), [("en", ["en"]), (["en", "de"], ["en", "de"]), ("no", ["no"]), (1, None)])
def test_languages_are_the_parents(tmp_path: Path, said: Any, found: list[str] | None) -> None:
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump({'language': said})}---\n")
    card = card_of(summary(), composed("a/b"), read_licence(tmp_path), has_factors=False, gguf_types=TYPES)
    assert metadata(card).get("language") == found


@pytest.mark.parametrize(
    "text", ["no metadata", "---\nnever closed", "---\n[: broken\n---\n", "---\njust words\n---\n"]
)
def test_a_card_that_says_nothing_is_no_obstacle(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    assert read_licence(tmp_path).name is None


def test_promises_no_file_that_export_refuses() -> None:
    """Qwen3 with free pairs: llama.cpp's class takes no factors."""
    card = card_of(summary(), composed("owner/parent"), NO_LICENCE, has_factors=True, gguf_types=[])
    assert "there is none for this model" in card
    assert "export.gguf=" not in card
