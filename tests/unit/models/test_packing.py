"""A sequence of several documents against stock transformers, given each document alone."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

from tests.support.exported import random_selection, slice_folder
from tests.support.tiny import write_model
from tests.support.tiny_families import FAMILIES, write_family_model
from transact.models.folder import geometry_of
from transact.models.hooks import collect_grams, collect_statistics
from transact.models.layer_by_layer import layer_by_layer
from transact.models.packing import packing_arguments
from transact.models.stock import load_model, unpacked
from transact.pruning.pair_scores import LOGIT_VARIANCE, TOKEN_PRODUCT
from transact.pruning.statistics import SQUARES

LENGTHS = ((7, 1, 16), (24,), (1, 1, 20, 2), (12, 12))  # of the documents in each sequence
TOKENS = torch.randint(0, 512, (len(LENGTHS), 24), generator=torch.Generator().manual_seed(0))
POSITIONS = torch.stack([torch.cat([torch.arange(length) for length in lengths]) for lengths in LENGTHS])
DOCUMENTS = [part for row, lengths in zip(TOKENS, LENGTHS, strict=True) for part in row.split(lengths)]


def loaded(folder: Path, attention: str) -> Any:
    model = load_model(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    model.set_attn_implementation(attention)
    return model


def packed_logits(model: Any) -> list[torch.Tensor]:
    """(length, vocab_size) of each document."""
    arguments = packing_arguments(POSITIONS, model.config._attn_implementation, torch.float32)
    with torch.no_grad(), unpacked():
        logits = model(input_ids=TOKENS, use_cache=False, **arguments).logits
    return [part for row, lengths in zip(logits, LENGTHS, strict=True) for part in row.split(lengths)]


def check(model: Any, stock: Any) -> None:
    for found, document in zip(packed_logits(model), DOCUMENTS, strict=True):
        with torch.no_grad():
            expected = stock(input_ids=document.unsqueeze(0)).logits[0]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_document_has_the_logits_that_it_has_alone(tmp_path: Path, family: str, attention: str) -> None:
    folder = write_family_model(tmp_path, family)
    check(loaded(folder, attention), loaded(folder, "sdpa"))


def test_so_it_is_where_layers_rotate_by_frequencies_of_their_own(tmp_path: Path) -> None:
    parent = write_model(tmp_path / "parent")
    selection = random_selection(parent, head_dim=8, intermediate_size=96, pair_scope="head")
    model = loaded(slice_folder(parent, tmp_path / "sliced", selection), "sdpa")
    check(model, model)


def varying(_module: Any, query: Any, key: Any, value: Any, _mask: Any, **given: Any) -> tuple[torch.Tensor, None]:
    """Attention of the documents of all sequences, one by one: what a kernel of flash attention makes of these ends."""
    ends, groups = given["cu_seq_lens_q"].tolist(), query.shape[1] // key.shape[1]
    assert ends == given["cu_seq_lens_k"].tolist()
    longest = max(stop - start for start, stop in itertools.pairwise(ends))
    assert longest == given["max_length_q"] == given["max_length_k"]
    flat = [each.transpose(0, 1).flatten(1, 2) for each in (query, key, value)]  # (heads, all tokens, head_dim)
    flat = [flat[0], *(each.repeat_interleave(groups, dim=0) for each in flat[1:])]
    parts = [
        functional.scaled_dot_product_attention(*(each[:, start:stop] for each in flat), is_causal=True)
        for start, stop in itertools.pairwise(ends)
    ]
    return torch.cat(parts, dim=1).transpose(0, 1).view(len(query), query.shape[2], -1, query.shape[3]), None


def test_flash_attention_is_given_where_documents_end(tmp_path: Path) -> None:
    """By a stand-in for its kernel, which no CPU runs; in micro-batches that go through layers together too."""
    AttentionInterface.register("varying", varying)
    AttentionMaskInterface.register("varying", flash_attention_mask)
    folder = write_family_model(tmp_path, "llama")
    model = loaded(folder, "varying")
    check(model, loaded(folder, "sdpa"))
    alone = packed_logits(model)
    with layer_by_layer(model, 2, lambda: None):
        together = packed_logits(model)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_micro_batches_that_go_through_layers_together_keep_their_documents(tmp_path: Path, attention: str) -> None:
    model = loaded(write_family_model(tmp_path, "llama"), attention)
    alone = packed_logits(model)
    with layer_by_layer(model, 2, lambda: None):
        together = packed_logits(model)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_sums_of_calibration_are_those_over_the_documents_alone(tmp_path: Path) -> None:
    """Statistics, those of attention's logits among them, and Gram matrices."""
    folder = write_family_model(tmp_path, "llama")
    model, geometry = loaded(folder, "sdpa"), geometry_of(folder)
    kinds = (*SQUARES, TOKEN_PRODUCT, LOGIT_VARIANCE)
    found = []
    for is_packed in (True, False):
        with collect_statistics(model, geometry, kinds) as sums, collect_grams(model, geometry, range(2)) as grams:
            if is_packed:
                packed_logits(model)
            else:
                for document in DOCUMENTS:
                    model(input_ids=document.unsqueeze(0))
        tensors = sums.statistics(TOKENS.numel()).to_tensors()
        for layer in range(2):
            tensors |= {f"{layer}.{name}": each for name, each in grams.take_gram(layer).to_tensors().items()}
        found.append(tensors)
    for name, expected in found[1].items():
        assert expected.abs().max() > 0
        torch.testing.assert_close(found[0][name], expected, rtol=1e-4, atol=1e-5, msg=name)
