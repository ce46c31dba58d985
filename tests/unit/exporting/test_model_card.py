"""The model card says what was removed, how, under which licence, and warns of the converter that breaks it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.cards import composed, summary
from transact.exporting.licence import copy_licence, read_licence
from transact.exporting.model_card import model_card

TYPES = ["f16", "q8_0"]
NO_LICENCE = read_licence(Path("/nonexistent"))


def metadata(card: str) -> dict[str, Any]:
    return dict(yaml.safe_load(card.split("---")[1]))


def test_says_what_was_removed_and_how() -> None:
    card = model_card(summary(), composed("owner/parent"), NO_LICENCE, has_factors=True, gguf_types=TYPES)
    assert "head_dim 32 -> 24, intermediate_size 640 -> 277" in card
    assert "30.0% of its parameters removed" in card and "in 2 rounds" in card
    assert "`logit_variance`" in card and "3,000 tokens" in card
    assert "| dense | 1,000 |" in card and "| pruned | 700 |" in card
    assert "arXiv" in card and "@article" in card and "AutoModelForCausalLM" in card
    assert metadata(card)["base_model"] == "owner/parent"


def test_a_local_parent_is_named_without_its_path(tmp_path: Path) -> None:
    card = model_card(summary(), composed(str(tmp_path)), NO_LICENCE, has_factors=True, gguf_types=TYPES)
    assert str(tmp_path.parent) not in card and f"`{tmp_path.name}`" in card
    assert "base_model" not in metadata(card)


@pytest.mark.parametrize(("has_factors", "how"), [(True, "`longrope` factors"), (False, "another `rope_theta`")])
def test_warns_of_the_stock_converter_where_it_breaks_the_model(has_factors: bool, how: str) -> None:
    card = model_card(summary(), composed("owner/parent"), NO_LICENCE, has_factors=has_factors, gguf_types=TYPES)
    assert ("GGUF only through transact" in card) == has_factors and how in card
    assert ("`export.gguf=f16` or `export.gguf=q8_0` writes" in card) == has_factors
    uncut = model_card(summary(head_dim=32), composed("owner/parent"), NO_LICENCE, has_factors=False, gguf_types=TYPES)
    assert "frequency" not in uncut and "GGUF only" not in uncut


def test_the_parents_licence_goes_along(tmp_path: Path) -> None:
    parent, target = tmp_path / "parent", tmp_path / "target"
    parent.mkdir()
    target.mkdir()
    (parent / "README.md").write_text("---\nlicense: other\nlicense_name: llama3\ntags: [x]\n---\n# Parent\n")
    (parent / "LICENSE").write_text("terms")
    licence = read_licence(parent)
    card = model_card(summary(), composed(str(parent)), licence, has_factors=True, gguf_types=TYPES)
    assert (metadata(card)["license"], metadata(card)["license_name"]) == ("other", "llama3")
    assert "applies: llama3 (`LICENSE`)" in card
    copy_licence(licence, parent, target)
    assert (target / "LICENSE").read_text() == "terms"


@pytest.mark.parametrize(
    "text", ["no metadata", "---\nnever closed", "---\n[: broken\n---\n", "---\njust words\n---\n"]
)
def test_a_card_that_says_nothing_is_no_obstacle(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    assert read_licence(tmp_path).name is None


def test_promises_no_file_that_export_refuses() -> None:
    """Qwen3 with free pairs: llama.cpp's class takes no factors."""
    card = model_card(summary(), composed("owner/parent"), NO_LICENCE, has_factors=True, gguf_types=[])
    assert "there is none for this model" in card
    assert "export.gguf=" not in card
