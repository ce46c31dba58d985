"""The chunked loss against transformers, torch.nn.functional and finite memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from transact.models.loss_head import (
    IGNORED,
    LossHead,
    LossRequest,
    Teaching,
    cross_entropy_sum,
    distillation_sum,
    next_token_targets,
)

TOKENS, VOCAB, HIDDEN = 12, 17, 8


def test_targets_are_the_next_tokens() -> None:
    assert next_token_targets(torch.tensor([[5, 6, 7]])).tolist() == [[6, 7, IGNORED]]


def test_targets_that_do_not_count_are_ignored() -> None:
    """The first token of a sequence is never a target, whether it counts or not."""
    counted = torch.tensor([[True, False, True, True], [True, False, False, False]])
    targets = next_token_targets(torch.tensor([[5, 6, 7, 8], [1, 2, 3, 4]]), counted)
    assert targets.tolist() == [[IGNORED, 7, 8, IGNORED], [IGNORED] * 4]


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_distillation_is_kl_div(temperature: float) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(TOKENS, VOCAB), torch.randn(TOKENS, VOCAB)
    targets = torch.arange(TOKENS)
    targets[[2, 7]] = IGNORED
    counted = targets != IGNORED
    expected = functional.kl_div(
        functional.log_softmax(student[counted] / temperature, dim=-1),
        functional.softmax(teacher[counted] / temperature, dim=-1),
        reduction="sum",
    )
    found = distillation_sum(student, teacher, targets, temperature)
    torch.testing.assert_close(found, expected * temperature**2)
    assert distillation_sum(teacher, teacher, targets, temperature) == pytest.approx(0, abs=1e-5)


def test_ignored_tokens_count_for_nothing() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(TOKENS, VOCAB), torch.randint(0, VOCAB, (TOKENS,))
    targets[3] = IGNORED
    rest = [token for token in range(TOKENS) if token != 3]
    expected = functional.cross_entropy(logits[rest], targets[rest], reduction="sum")
    torch.testing.assert_close(cross_entropy_sum(logits, targets), expected)


def head_and_request(weight: float | None) -> tuple[LossHead, torch.Tensor, LossRequest]:
    torch.manual_seed(1)
    head = LossHead(HIDDEN, VOCAB)
    hidden = torch.randn(2, 6, HIDDEN, requires_grad=True)
    targets = next_token_targets(torch.randint(0, VOCAB, (2, 6)))
    teaching = None
    if weight is not None:
        teaching = Teaching(hidden=torch.randn(2, 6, 5), head=torch.randn(VOCAB, 5), weight=weight, temperature=2.0)
    return head, hidden, LossRequest(targets=targets, teaching=teaching)


def loss_and_gradients(chunk_elements: int, weight: float | None) -> list[torch.Tensor]:
    head, hidden, request = head_and_request(weight)
    head.chunk_elements = chunk_elements
    with head.computing(request):
        loss = head(hidden)
    loss.backward()
    gradients: Any = (hidden.grad, head.weight.grad)
    return [loss.detach(), *gradients]


@pytest.mark.parametrize("weight", [None, 1.0, 0.3])
def test_chunks_change_neither_loss_nor_gradients(weight: float | None) -> None:
    whole = loss_and_gradients(10**9, weight)
    for chunk_elements in (1, 3 * VOCAB, 5 * VOCAB):
        for found, expected in zip(loss_and_gradients(chunk_elements, weight), whole, strict=True):
            torch.testing.assert_close(found, expected)


def test_mean_and_mix_by_hand() -> None:
    head, hidden, request = head_and_request(0.3)
    assert request.teaching is not None
    logits = head(hidden).flatten(0, 1)
    teacher = (request.teaching.hidden @ request.teaching.head.T).flatten(0, 1)
    targets = request.targets.flatten()
    mixed = 0.3 * distillation_sum(logits, teacher, targets, 2.0) + 0.7 * cross_entropy_sum(logits, targets)
    with head.computing(request):
        torch.testing.assert_close(head(hidden), mixed / 10)


@pytest.mark.parametrize("chunk_elements", [VOCAB, 10**9], ids=["a token at a time", "at once"])
@pytest.mark.parametrize("weight", [None, 0.3], ids=["cross-entropy", "mixed"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0], ids=["none counts", "some count", "all count"])
def test_the_mean_over_tokens_that_count_is_that_of_pytorch(
    share: float, weight: float | None, chunk_elements: int
) -> None:
    """Value and gradients; where no token counts all are 0, and PyTorch's mean would be no number."""
    head, hidden, request = head_and_request(weight)
    head.chunk_elements = chunk_elements
    counted = torch.rand(2, 6, generator=torch.Generator().manual_seed(3)) < share
    targets = next_token_targets(torch.randint(0, VOCAB, (2, 6)), counted)
    with head.computing(LossRequest(targets=targets, teaching=request.teaching)):
        loss = head(hidden)
    loss.backward()
    found = [loss.detach(), hidden.grad, head.weight.grad]
    hidden.grad = head.weight.grad = None

    chosen, flat = (targets != IGNORED).flatten(), targets.flatten()
    logits = head(hidden).flatten(0, 1)
    if share == 0:
        expected = logits.sum() * 0
    else:
        expected = functional.cross_entropy(logits, flat, ignore_index=-100)
        if request.teaching is not None:
            teacher = (request.teaching.hidden @ request.teaching.head.T).flatten(0, 1)
            own, other = (functional.log_softmax(each[chosen] / 2.0, dim=-1) for each in (logits, teacher))
            divergence = functional.kl_div(own, other, reduction="batchmean", log_target=True) * 4.0
            expected = 0.3 * divergence + 0.7 * expected
    expected.backward()
    for one, other in zip(found, [expected.detach(), hidden.grad, head.weight.grad], strict=True):
        torch.testing.assert_close(one, other)


def test_without_a_request_it_is_a_linear_layer() -> None:
    head, hidden, _ = head_and_request(None)
    torch.testing.assert_close(head(hidden), hidden @ head.weight.T)
    with head.passing_hidden():
        assert head(hidden) is hidden


def test_logits_of_a_large_vocabulary_are_never_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """512 tokens of 128 k entries are 256 MiB; no product of the output layer may have more than the chunk."""
    largest = 0
    linear = functional.linear

    def watched(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        nonlocal largest
        result = linear(inputs, weight, bias)
        largest = max(largest, result.numel())
        return result

    monkeypatch.setattr(functional, "linear", watched)
    head = LossHead(4, 128_000)
    head.chunk_elements = 2**23
    tokens = torch.randint(0, 128_000, (1, 512))
    with head.computing(LossRequest(targets=next_token_targets(tokens))):
        head(torch.randn(1, 512, 4, requires_grad=True)).backward()
    assert 2**22 < largest <= 2**23
