"""Cut a LLaMA's MLP channels with torch-pruning, to the same number of parameters, and measure it on the same tokens.

    python benchmarks/peers/with_torch_pruning.py --model FOLDER --tokens FILE --output FILE

It needs torch, transformers and torch-pruning, and nothing of transact: README.md here has the commands.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

MULTIPLE = 8  # that intermediate_size is a multiple of


def loss_of(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return the mean next-token cross-entropy of one batch, in nats. tokens: (sequences, length)."""
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def perplexity(model: Any, tokens: torch.Tensor) -> float:
    losses = [float(loss_of(model, sequence.unsqueeze(0))) for sequence in tokens]  # all predict equally many tokens
    return float(torch.tensor(losses).double().mean().exp())


def width_for(config: Any, transitional: int, fraction: float) -> int:
    """Return the intermediate size with which a fraction of the transitional parameters is gone from the MLPs."""
    per_channel = 3 * config.num_hidden_layers * config.hidden_size
    width = config.intermediate_size - fraction * transitional / per_channel
    return max(MULTIPLE, round(width / MULTIPLE) * MULTIPLE)


def transitional_parameters(model: Any) -> int:
    """Count the weights of attention and MLP: all that can be cut."""
    return sum(weight.numel() for name, weight in model.named_parameters() if name.endswith("_proj.weight"))


def cut(model: Any, kept: int, importance: Any) -> None:
    """Let torch-pruning choose and remove MLP channels, the same number in each layer."""
    import torch_pruning  # type: ignore[import-not-found]  # in an environment of its own

    layers = model.model.layers
    others = [getattr(layer.self_attn, f"{name}_proj") for layer in layers for name in "qkvo"]
    ratio = 1 - (kept + 0.5) / model.config.intermediate_size  # what is left of it is rounded down
    pruner = torch_pruning.pruner.BasePruner(
        model,
        example_inputs=torch.arange(8).unsqueeze(0),
        importance=importance,
        pruning_ratio=ratio,
        ignored_layers=[model.lm_head, *others, *(layer.mlp.down_proj for layer in layers)],
        round_to=MULTIPLE,
        forward_fn=lambda traced, tokens: traced(input_ids=tokens, use_cache=False).logits,
    )
    pruner.step()
    assert {layer.mlp.gate_proj.out_features for layer in layers} == {kept}


def loaded(model_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()


def gradients(model_folder: Path, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the gradient of the loss summed over the sequences, by weight; once for all cuts."""
    model = loaded(model_folder)
    for sequence in tokens:
        torch.autograd.backward(loss_of(model, sequence.unsqueeze(0)))
    return {name: weight.grad for name, weight in model.named_parameters()}


def measured_row(
    model_folder: Path, fraction: float, tokens: dict[str, torch.Tensor], slopes: dict[str, torch.Tensor] | None
) -> dict[str, Any]:
    """Cut and measure once, and return a row as those of benchmarks/real_model.py are.

    slopes: what `gradients` returns, for Taylor scores; None: magnitudes.
    """
    import torch_pruning  # type: ignore[import-not-found]  # in an environment of its own

    model = loaded(model_folder)
    config, begun = model.config, time.monotonic()
    whole, transitional = model.num_parameters(), transitional_parameters(model)
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    if slopes is not None:
        importance = torch_pruning.importance.GroupTaylorImportance()
        for name, weight in model.named_parameters():
            weight.grad = slopes[name].clone()  # the cut is made in it too
    cut(model, width_for(config, transitional, fraction), importance)
    model.zero_grad(set_to_none=True)
    seconds = time.monotonic() - begun
    key_value = config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return {
        "method": f"torch-pruning, {'magnitude' if slopes is None else 'taylor'}",
        "fraction": fraction,
        "recovery_tokens": 0,
        "refit": "none",
        "removed_transitional": 1 - transitional_parameters(model) / transitional,
        "removed_of_all": 1 - model.num_parameters() / whole,
        "parameters": model.num_parameters(),
        "kv_bytes_per_token": 2 * 2 * key_value,
        "seconds": {"round_01/slice": seconds},
        "perplexity": {text: perplexity(model, each) for text, each in tokens.items() if text != "calibration"},
        "version": version("torch-pruning"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokens", type=Path, required=True, help="tokens.safetensors of benchmarks.real_model")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    parser.add_argument("--importance", nargs="+", default=["taylor", "magnitude"], choices=["taylor", "magnitude"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokens = {name: each.long() for name, each in load_file(arguments.tokens).items()}
    rows = []
    for name in arguments.importance:
        slopes = gradients(arguments.model, tokens["calibration"]) if name == "taylor" else None
        for fraction in arguments.fractions:
            rows.append(measured_row(arguments.model, fraction, tokens, slopes))
            print(f"{rows[-1]['method']}, {fraction:.0%}: {rows[-1]['perplexity']}", flush=True)
            arguments.output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
