"""Cut a model in memory, on one device: the mathematics of a job's stages without ranks and files."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import accumulate
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor
from torch.nn import functional

from transact.config.compose import method_preset
from transact.config.pruning import BudgetConfig, MethodConfig, MultipleConfig, PruneConfig
from transact.config.setting import check_values, require
from transact.dimensions import geometries
from transact.engine.free_memory import free_bytes
from transact.engine.gram_memory import gram_disk_bytes, gram_gib_of, gram_passes
from transact.engine.model_folder import layer_groups
from transact.geometry import Geometry
from transact.models.families import family_of
from transact.models.hooks import Collector, collect_grams, collect_statistics
from transact.models.identity import UnusableModel
from transact.models.llama import (
    check_supported,
    down_projection,
    expected_shapes,
    layer_of,
    layer_weights,
    read_geometry,
    slice_tensors,
    sliced_config,
)
from transact.models.loss_head import next_token_targets
from transact.models.rotary import stated_settings
from transact.models.stock import stock_class
from transact.pruning.criteria import Criteria, Evidence, Scores, magnitude_scores, stack_scores
from transact.pruning.refit import LayerGram, Ridge
from transact.pruning.selection import Selection
from transact.pruning.statistics import ActivationStatistics
from transact.stages.calibrate import broken_words
from transact.stages.preflight import check_criteria, check_length, check_method
from transact.stages.select import best_channels, decide
from transact.stages.sequential import EMBEDDING, Embedded, Streams

Weights = dict[str, Tensor]
OUTPUT = "lm_head.weight"


class CutSettings(TypedDict, total=False):
    """The settings of `prune` that a cut in memory takes, each as in a job."""

    remove_fraction: float | None
    head_dim: int | None
    intermediate_size: int | None
    budget: BudgetConfig
    rotary_pairs: str
    target: str
    multiple: MultipleConfig


def prune_model(
    model: Any,
    calibration: Iterable[Any],
    *,
    method: MethodConfig | str = "default",
    seed: int = 0,
    **settings: Unpack[CutSettings],
) -> Any:
    """Cut a transformers model in memory, as a job of one round without recovery cuts a model folder.

    The cut is shared equally by attention and MLP (`prune.split=equal`); only a job measures splits. The given model is
    not changed. Statistics are taken in its own dtype, on its device. Gram matrices of all layers are kept in the CPU's
    memory, in float32.

    Args:
        model: of a supported family, all of it on one device.
        calibration: batches of token ids, (sequences, length) each, or dictionaries with `input_ids`; no padding.
        method: a `MethodConfig`, or the name of a file of conf/prune/method.
        seed: of the method `random`.
        settings: `remove_fraction`, `head_dim`, `intermediate_size`, `budget` (a `BudgetConfig`), `rotary_pairs`,
            `target` and `multiple` (a `MultipleConfig`), as those of prune. Half of all parameters go where none says
            how much.

    Returns:
        A new model of stock transformers, with the dtype, the device and the mode of the old one.

    Raises:
        ValueError: one line: what of the model, the batches or the settings is not supported, and what is.
    """
    prune = _prune_settings(settings, method)
    config, weights = _described(model)
    source = read_geometry(config)
    check_criteria(prune.method)
    check_method(prune.method, config)
    goal = geometries(prune, source)[0][-1]
    batches = _batches(calibration, config)
    with _still(model), torch.no_grad():
        statistics, grams = _sums(model, batches, source, prune.method)
    with torch.no_grad():
        magnitude = _magnitudes(weights, source) if Criteria.of(prune.method).looks_at_weights else None
        evidence = Evidence(geometry=source, statistics=statistics, magnitude=magnitude, seed=seed)
        channels = None
        if prune.method.channels == "obs":
            channels = {
                goal.intermediate_size: [
                    best_channels(weights[down_projection(layer)], gram, [goal.intermediate_size], prune.method)[
                        goal.intermediate_size
                    ]
                    for layer, gram in enumerate(grams)
                ]
            }
        selection = decide(prune, evidence, goal, channels, parent=source)
        smaller = sliced_config(config, selection)
        cut = _cut(weights, config, smaller, selection, prune.method, batches, grams)
    return _made(model, smaller | stated_settings(smaller), cut)


def _prune_settings(given: CutSettings, method: MethodConfig | str) -> PruneConfig:
    """Return the settings of prune, checked as those of a job are.

    Raises:
        ValueError: a setting, or two together, are not allowed.
    """
    unknown = sorted(given.keys() - CutSettings.__annotations__.keys())
    require("settings", unknown, not unknown, f"they are {', '.join(CutSettings.__annotations__)}, method and seed")
    values: dict[str, Any] = {"split": "equal", "remove_fraction": None, **given}
    asked = given.get("budget", BudgetConfig()).asked()
    if not asked and all(given.get(name) is None for name in ("remove_fraction", "head_dim", "intermediate_size")):
        values["remove_fraction"] = 0.5
    values["method"] = method_preset(method) if isinstance(method, str) else method
    groups = (BudgetConfig, MultipleConfig, MethodConfig)
    plain = {name: asdict(value) if isinstance(value, groups) else value for name, value in values.items()}
    check_values(PruneConfig, plain, "prune.")
    scope = values["method"].pair_scope
    stock = "no stock class computes another choice; a job makes it"
    require("prune.method.pair_scope", scope, scope == "model", f"it must be model: {stock}")
    return PruneConfig(**values)


def _described(model: Any) -> tuple[dict[str, Any], Weights]:
    """Return config.json of a model, and its weights by the names of a model folder.

    Raises:
        ValueError: it is of no supported family, in parts, quantised or changed.
    """
    described: Any = getattr(model, "config", None)
    if not hasattr(described, "to_json_string"):
        raise ValueError(f"model is a {type(model).__name__}: it must be a model of transformers")
    config = json.loads(described.to_json_string(use_diff=False))
    try:
        check_supported(config)
    except ValueError as error:
        raise ValueError(f"model: {error}") from None
    expected = expected_shapes(read_geometry(config))
    stored = {name: tensor for name, tensor in model.state_dict().items() if name != OUTPUT or OUTPUT in expected}
    for name in sorted(expected.keys() ^ stored.keys()):
        what = "lacks" if name in expected else "has more than its family, such as"
        raise ValueError(f"model {what} {name}: it must be a {family_of(config).architecture} as transformers makes it")
    for name, tensor in stored.items():
        if tuple(tensor.shape) != expected[name] or not tensor.is_floating_point():
            raise ValueError(
                f"model: {name} is {tuple(tensor.shape)} {tensor.dtype}; it must be {expected[name]} in floating point"
            )
    devices = {str(tensor.device) for tensor in stored.values()}
    if len(devices) > 1 or "meta" in devices:
        raise ValueError(f"model is on {', '.join(sorted(devices))}: it must be whole on one device")
    return config, stored


def _batches(calibration: Iterable[Any], config: dict[str, Any]) -> list[Tensor]:
    """Return token ids on the CPU, (sequences, length) each.

    Raises:
        ValueError: there are none, or they are not whole sequences of the model's tokens.
    """
    batches = []
    for number, given in enumerate(calibration):
        tokens, mask = (
            (given.get("input_ids"), given.get("attention_mask")) if isinstance(given, Mapping) else (given, None)
        )
        name = f"calibration batch {number}"
        if not isinstance(tokens, Tensor) or tokens.dim() != 2 or tokens.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"{name} must be a tensor of token ids, (sequences, length), or hold one as input_ids")
        if mask is not None and not bool(torch.as_tensor(mask).all()):
            raise ValueError(f"{name} has padding, which would count as text: give sequences of one length")
        if tokens.numel() == 0 or tokens.shape[1] < 2:
            raise ValueError(f"{name} is {tuple(tokens.shape)}: it must hold a sequence of 2 tokens or more")
        check_length(name, tokens.shape[1], config)
        lowest, highest = int(tokens.min()), int(tokens.max())
        if lowest < 0 or highest >= config["vocab_size"]:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"{name} holds token {wrong}: the vocabulary has {config['vocab_size']}")
        batches.append(tokens.detach().cpu().long())
    if not batches:
        raise ValueError("calibration holds no batch: give token ids, (sequences, length)")
    return batches


@contextmanager
def _still(model: Any) -> Iterator[None]:
    """Keep the model in evaluation mode with frozen weights, then put every part back as it was."""
    modes = [(module, module.training) for module in model.modules()]
    differentiable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in differentiable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter in differentiable:
            parameter.requires_grad_(True)


def _run(model: Any, batches: list[Tensor], forward: Callable[[Tensor], object]) -> None:
    for tokens in batches:
        forward(tokens.to(model.device))


def _sums(
    model: Any, batches: list[Tensor], source: Geometry, method: MethodConfig
) -> tuple[ActivationStatistics, list[LayerGram]]:
    """Run the batches and return the statistics, and the Gram matrices of all layers; none where none are needed.

    Raises:
        UnusableModel: an activation is infinite or not a number; names the layer.
    """

    def hidden_forward(tokens: Tensor) -> None:
        model(input_ids=tokens, use_cache=False, logits_to_keep=1)

    def differentiate(tokens: Tensor) -> None:
        logits = model(input_ids=tokens, use_cache=False).logits.float()
        torch.autograd.backward(functional.cross_entropy(logits.flatten(0, 1), next_token_targets(tokens).flatten()))

    criteria, passes = Criteria.of(method), _gram_passes(model, source, method)
    needed = criteria.statistics(source)
    first = passes.pop(0) if passes and not criteria.needs_gradients else range(0)  # in the same forwards
    with (
        torch.set_grad_enabled(criteria.needs_gradients),
        collect_statistics(model, source, needed, are_whole=True) as collector,
        collect_grams(model, source, first, collector),
    ):
        _run(model, batches, differentiate if criteria.needs_gradients else hidden_forward)
    statistics = collector.statistics(sum(tokens.numel() for tokens in batches))
    broken = statistics.broken_layer(needed)
    if broken is not None:
        raise UnusableModel(f"model: {broken_words(*broken)}")
    grams = [_taken(collector, layer) for layer in first]
    for layers in passes:
        with collect_grams(model, source, layers) as collector:
            _run(model, batches, hidden_forward)
        grams += [_taken(collector, layer) for layer in layers]
    return statistics, grams


def _magnitudes(weights: Weights, source: Geometry) -> Scores:
    found = []
    for number in range(source.num_layers):
        layer = layer_weights({name: tensor for name, tensor in weights.items() if layer_of(name) == number})
        assert layer is not None
        found.append(magnitude_scores(layer, source))
    return stack_scores(found)


def _gram_passes(model: Any, source: Geometry, method: MethodConfig) -> list[range]:
    """Return the layers whose Gram matrices are summed at a time; none where the method needs none."""
    if not method.needs_gram():
        return []
    kept = gram_disk_bytes(source) if model.device.type == "cpu" else 0
    return gram_passes(source, method.gram_gib or gram_gib_of(free_bytes(model.device) - kept))


def _taken(collector: Collector, layer: int) -> LayerGram:
    """Return a layer's Gram matrices on the CPU, rounded to float32 as a job's files are."""
    tensors = collector.take_gram(layer).to_tensors()
    return LayerGram.from_tensors({name: tensor.to("cpu", torch.float32) for name, tensor in tensors.items()})


def _cut(
    weights: Weights,
    config: dict[str, Any],
    smaller: dict[str, Any],
    selection: Selection,
    method: MethodConfig,
    batches: list[Tensor],
    grams: list[LayerGram],
) -> Weights:
    """Return all weights after the cut, each rounded to the dtype that it had, on its device."""
    device = weights[EMBEDDING].device
    streams = None
    if method.refit == "sequential":
        embedding = weights[EMBEDDING].float().cpu()
        firsts = [0, *accumulate(map(len, batches))][:-1]
        streams = Streams(
            selection,
            [Embedded(first, embedding[tokens]) for first, tokens in zip(firsts, batches, strict=True)],
            device=device,
            ridge=Ridge.of(method),
            num_turns=len(batches),
        )
    ridge = None if method.refit == "none" else Ridge.of(method)
    result: Weights = {}
    names = sorted(weights, key=lambda name: -1 if layer_of(name) is None else layer_of(name))  # type: ignore[arg-type, return-value]
    for group in layer_groups(names):
        layer = layer_of(group[0])
        tensors = {name: weights[name].detach().float() for name in group}
        if layer is None:
            cut = tensors
        elif not grams:
            cut = slice_tensors(tensors, selection)
        elif streams is None:
            cut = slice_tensors(tensors, selection, _moved(grams[layer], device), ridge)
        else:
            cut = streams.cut_layer(layer, tensors, partial(_moved, grams[layer], device), config, smaller)
        # copy=True also where nothing was cut: the new model must share no weight with the old one.
        result |= {name: tensor.to(weights[name].dtype, copy=True).contiguous() for name, tensor in cut.items()}
    return result


def _moved(gram: LayerGram, device: torch.device) -> LayerGram:
    return LayerGram.from_tensors({name: tensor.to(device) for name, tensor in gram.to_tensors().items()})


def _made(model: Any, config: dict[str, Any], weights: Weights) -> Any:
    """Return a stock model of this config.json and these weights, otherwise as the given one."""
    from transformers.initialization import no_init_weights

    model_class, made = stock_class(config, model.config._attn_implementation or "sdpa")
    made.use_cache = model.config.use_cache
    made.dtype = model.dtype
    with no_init_weights():
        smaller = model_class(made)
    missing, unknown = smaller.load_state_dict(weights, strict=False, assign=True)
    assert not unknown and set(missing) <= {OUTPUT}, (missing, unknown)
    smaller.tie_weights()
    if getattr(model, "generation_config", None) is not None:
        smaller.generation_config = copy.deepcopy(model.generation_config)
    return smaller.to(model.device).train(model.training)
