"""A pruned model as the draft of its parent: how many of its proposals the parent takes, and what that saves.

Speculative decoding (Leviathan et al., arXiv 2211.17192): the draft proposes a few tokens, the parent checks them in
one forward and keeps those that it would have said itself. Greedy, the text is the parent's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from transact.evaluation.efficiency.generation import Clock, Seconds
from transact.models.stock import load_tokenizer, quiet

PROMPTS = 8  # of held-out text


def measure_draft(
    parent: Any,
    draft: Any,
    prompts: torch.Tensor,
    new_tokens: int,
    turns: int,
    clock: Clock,
    progress: Callable[[int], object] = lambda tokens: None,
) -> dict[str, Any]:
    """Generate after each prompt with the parent alone and with the draft, in turn.

    Args:
        parent, draft: causal language models of transformers with the same vocabulary, on one device.
        prompts: (prompts, prompt_tokens).
        new_tokens: after each of them.
        progress: called with the number of tokens that were made.

    Returns:
        Counts of one turn: "proposed" by the draft and "accepted" by the parent, "acceptance_rate",
        "tokens_per_parent_forward"; "same_tokens", the share of the new ones that the parent alone makes too (less than
        1 where rounding decides between two); and medians over the turns of "speed_up" and "wall_speed_up".
    """
    ratios: list[tuple[float, float]] = []
    for turn in range(turns):
        order = [None, draft] if turn % 2 == 0 else [draft, None]
        found = {each is not None: _generate(parent, each, prompts, new_tokens, clock, progress) for each in order}
        (alone, before, _), (helped, after, counts) = found[False], found[True]
        ratios.append((getattr(before, clock.basis) / getattr(after, clock.basis), before.wall / after.wall))
    made = prompts.shape[0] * new_tokens
    accepted = made - counts["parent"]  # every forward of the parent adds one token of its own
    return {
        "prompts": prompts.shape[0],
        "prompt_tokens": prompts.shape[1],
        "new_tokens": new_tokens,
        "turns": turns,
        "proposed": counts["draft"],
        "accepted": accepted,
        "acceptance_rate": accepted / counts["draft"],
        "tokens_per_parent_forward": made / counts["parent"],
        "same_tokens": float((alone == helped).float().mean()),
        "speed_up": median(ratio for ratio, _ in ratios),
        "wall_speed_up": median(ratio for _, ratio in ratios),
    }


def prompts_of(text: Path, folder: Path, length: int) -> torch.Tensor:
    """Return the first prompts of a text file in a model's tokens, (prompts, length).

    Raises:
        ValueError: the file cannot be read, or is shorter than one prompt.
    """
    try:
        words = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--draft={str(text)!r} cannot be read as text: {error}") from None
    with quiet("transformers"):  # it warns of a text that is longer than the model's context
        tokens = torch.tensor(load_tokenizer(folder, "--draft")(words).input_ids)
    count = min(PROMPTS, len(tokens) // length)
    if count == 0:
        raise ValueError(f"--draft={str(text)!r} has {len(tokens)} tokens: a prompt has {length} (--prompt-tokens)")
    return tokens[: count * length].view(count, length)


@torch.inference_mode()
def _generate(
    parent: Any,
    draft: Any,
    prompts: torch.Tensor,
    new_tokens: int,
    clock: Clock,
    progress: Callable[[int], object],
) -> tuple[torch.Tensor, Seconds, dict[str, int]]:
    """Return the new tokens (prompts, new_tokens), the time for all of them, and the forwards of each model."""
    settings: dict[str, Any] = {
        "do_sample": False,
        "max_new_tokens": new_tokens,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    settings |= {} if draft is None else {"assistant_model": draft}
    made = []
    models = {"parent": parent} | ({} if draft is None else {"draft": draft})
    with _counted(models) as counts, quiet("transformers"):  # it warns of settings that it gives the draft itself
        start = clock.read()
        for prompt in torch.split(prompts, 1):
            made.append(parent.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)[:, -new_tokens:])
            progress(new_tokens)
        seconds = Seconds.between(start, clock.read())
    return torch.cat(made), seconds, counts


@contextmanager
def _counted(models: dict[str, Any]) -> Iterator[dict[str, int]]:
    """Count the forwards of models, by name."""
    counts = dict.fromkeys(models, 0)

    def count(name: str) -> Callable[..., None]:
        def called(*_: Any) -> None:
            counts[name] += 1

        return called

    handles = [model.register_forward_pre_hook(count(name)) for name, model in models.items()]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()
