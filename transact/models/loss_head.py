"""The output layer that computes the loss itself, chunk by chunk: the logits of all tokens never exist at once.

With a vocabulary of 128 k entries the logits of 4,096 tokens take 2 GB in float32, and a loss needs several copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from transact.config.pruning import LOGIT_CHUNK_ELEMENTS

IGNORED = -100  # a target that adds nothing to the loss


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Teaching:
    """The teacher's outputs for a batch, and how much they count.

    Attributes:
        hidden: its final hidden states, (sequences, length, hidden_size of the teacher).
        head: its output layer's weight, (vocab_size, hidden_size of the teacher).
        weight: share of the distillation loss in the whole, in [0, 1]; the rest is cross-entropy.
        temperature: of both distributions.
    """

    hidden: Tensor
    head: Tensor
    weight: float
    temperature: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LossRequest:
    """What a forward needs to return its loss.

    Attributes:
        targets: (sequences, length) int64, `IGNORED` where nothing is predicted.
        teaching: None where there is no teacher.
    """

    targets: Tensor
    teaching: Teaching | None = None


def next_token_targets(tokens: Tensor, counted: Tensor | None = None) -> Tensor:
    """Return the token that follows each token: (sequences, length) -> (sequences, length).

    It is `IGNORED` at the end, and where the token that follows does not count.

    Args:
        counted: (sequences, length) bool, the tokens that count as targets. None: all.
    """
    targets = torch.full_like(tokens, IGNORED)
    targets[:, :-1] = tokens[:, 1:]
    return targets if counted is None else targets.masked_fill(~counted.roll(-1, dims=1), IGNORED)


class LossHead(nn.Linear):
    """A bias-free output layer that returns logits, or inside `computing` the mean loss in nats."""

    def __init__(self, hidden_size: int, vocab_size: int) -> None:
        super().__init__(hidden_size, vocab_size, bias=False)
        self.chunk_elements = LOGIT_CHUNK_ELEMENTS
        # (tokens, hidden_size), (vocab_size, hidden_size), (tokens,) -> mean loss; it computes its gradients at once.
        self.fused_cross_entropy: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
        self._request: LossRequest | None = None
        self._passes_hidden = False

    @contextmanager
    def computing(self, request: LossRequest) -> Iterator[None]:
        """Make forwards inside the block return the loss."""
        self._request = request
        try:
            yield
        finally:
            self._request = None

    @contextmanager
    def passing_hidden(self) -> Iterator[None]:
        """Make forwards inside the block return the final hidden states as they are."""
        self._passes_hidden = True
        try:
            yield
        finally:
            self._passes_hidden = False

    def forward(self, hidden: Tensor) -> Tensor:
        if self._passes_hidden:
            return hidden
        if self._request is None:
            return super().forward(hidden)
        return self._loss(hidden, self._request)

    def _loss(self, hidden: Tensor, request: LossRequest) -> Tensor:
        """Return the mean loss over the targets that are not `IGNORED`; 0 where all are, with gradients of 0."""
        rows = max(1, self.chunk_elements // self.out_features)
        targets = request.targets.flatten()
        teaching = request.teaching
        if self.fused_cross_entropy is not None and teaching is None and torch.is_grad_enabled():
            return self.fused_cross_entropy(hidden.flatten(0, 1), self.weight, targets)
        hidden_chunks = torch.split(hidden.flatten(0, 1), rows)
        teacher_chunks = torch.split(teaching.hidden.flatten(0, 1), rows) if teaching else [None] * len(hidden_chunks)
        total = hidden.new_zeros((), dtype=torch.float32)
        for chunk, target, teacher_hidden in zip(
            hidden_chunks, torch.split(targets, rows), teacher_chunks, strict=True
        ):
            arguments = (chunk, self.weight, target, teacher_hidden, teaching)
            if len(hidden_chunks) > 1 and torch.is_grad_enabled():
                # The backward recomputes the chunk's logits, so that they need not be kept.
                total = total + checkpoint(_chunk_loss, *arguments, use_reentrant=False)
            else:
                total = total + _chunk_loss(*arguments)
        return total / (targets != IGNORED).sum().clamp(min=1)


def _chunk_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, teacher_hidden: Tensor | None, teaching: Teaching | None
) -> Tensor:
    logits = functional.linear(hidden, weight).float()
    if teaching is None or teacher_hidden is None:
        return cross_entropy_sum(logits, targets)
    teacher_logits = functional.linear(teacher_hidden, teaching.head).float()
    distilled = distillation_sum(logits, teacher_logits, targets, teaching.temperature)
    if teaching.weight == 1:
        return distilled
    return teaching.weight * distilled + (1 - teaching.weight) * cross_entropy_sum(logits, targets)


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum the cross-entropy over the targets that are not `IGNORED`, in nats: (tokens, vocab_size), (tokens,) -> ()."""
    return functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")


def distillation_sum(logits: Tensor, teacher_logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Sum the forward divergence KL(teacher || student) over the targets that are not `IGNORED`, in nats.

    With a temperature T both logits are divided by T and the sum is multiplied by T^2, so that gradients
    keep their scale (Hinton et al., arXiv 1503.02531).
    """
    student = functional.log_softmax(logits / temperature, dim=-1)
    teacher = functional.log_softmax(teacher_logits / temperature, dim=-1)
    per_token = (teacher.exp() * (teacher - student)).sum(dim=-1)
    return per_token.masked_fill(targets == IGNORED, 0.0).sum() * temperature**2
