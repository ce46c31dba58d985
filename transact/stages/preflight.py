"""Checks before the work starts, of everything that can be known by then. They read little and write nothing."""

from __future__ import annotations

import errno
import os
import re
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

from transact.config.compose import differences, to_dictionary
from transact.config.pruning import MethodConfig
from transact.config.run import RunConfig
from transact.config.setting import require, require_choice
from transact.distributed.environment import environment_rank
from transact.engine.trained import check_adapters
from transact.export.executorch import check_executorch
from transact.export.gguf import check_gguf
from transact.export.k_quants import check_quantiser
from transact.files import DamagedFile, file_digest
from transact.models.families import family_of
from transact.models.folder import check_architecture, check_files, is_local, read_model_config
from transact.models.llama import check_supported, read_geometry
from transact.models.rotary import rope_settings
from transact.pruning.criteria import choices
from transact.pruning.schedule import batch_sequences
from transact.pruning.targets import check_layers
from transact.rounds import Outline, outline, tokens_per_batch
from transact.runs.run_record import WAY_OUT, check_metrics, check_run_folder, read_config, read_record
from transact.stages.hub import check_push_to_hub
from transact.stages.parent import judge_folder, pinned, recorded_parent
from transact.stages.tasks import check_evaluation
from transact.stages.text_checks import check_hub_texts, check_texts
from transact.stages.variant import changes_recovery_alone, find_cut, has_cut

LONGEST_FILE_NAME = 255  # bytes
REASONS = {
    errno.ENOTDIR: "it is below a file",
    errno.ELOOP: "its links lead in a circle",
    errno.ENAMETOOLONG: "a name in it is too long",
    errno.EACCES: "you may not look into it",
}


def check_places(config: RunConfig) -> None:
    """Check that the run can write to its folders.

    Raises:
        ValueError: one line: the setting, the path, why nothing can be written there.
    """
    check_folder("output_dir", config.output_dir)
    check_folder("data.token_store", config.data.token_store)
    if config.share_dir is not None:
        check_folder("share_dir", config.share_dir)
    _check_apart(config)
    if config.launch.kind != "inline" and "%" in os.path.abspath(config.output_dir):
        raise ValueError(
            f"output_dir={config.output_dir!r} is not allowed: submitit and SLURM read % in a path as a format"
        )


def _check_apart(config: RunConfig) -> None:
    """Raise ValueError if the token store lies in the folder of the run or of its sweep.

    The store is written first, and would be taken there for files that no run has made.
    """
    store = Path(os.path.realpath(config.data.token_store))
    run = config.output_dir if config.share_dir is None else os.path.dirname(config.share_dir)
    if store.is_relative_to(os.path.realpath(run)):
        raise ValueError(
            f"data.token_store={config.data.token_store!r} is not allowed: it lies in {run!r}, which holds what the "
            "run makes and nothing else; name a folder beside it"
        )


def check_folder(setting: str, path: str) -> None:
    """Raise ValueError unless the path is a folder that can be written, or one can be made there."""
    place = Path(os.path.abspath(path))
    if any(len(os.fsencode(part)) > LONGEST_FILE_NAME for part in place.parts):
        raise _refusal(setting, path, REASONS[errno.ENAMETOOLONG])
    for folder in (place, *place.parents):
        try:
            mode = os.stat(folder).st_mode
        except FileNotFoundError:
            if os.path.islink(folder):
                raise _refusal(setting, path, f"{str(folder)!r} is a link to nothing") from None
            continue
        except OSError as error:
            raise _refusal(setting, path, REASONS.get(error.errno or 0, error.strerror or str(error))) from None
        if not stat.S_ISDIR(mode):
            raise _refusal(setting, path, "it is a file" if folder == place else f"it is below a file, {str(folder)!r}")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise _refusal(setting, path, f"{str(folder)!r} is not writable")
        return


def make_folder(setting: str, path: str) -> None:
    """Make a folder, unless it exists.

    Raises:
        ValueError: the system refuses it, for a reason that could not be seen before.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refusal(setting, path, error.strerror or str(error)) from None


def _refusal(setting: str, path: str, reason: str) -> ValueError:
    return ValueError(f"{setting}={path!r} is not allowed: {reason}; name a folder that can be written")


MAX_SHOWN_DIFFERENCES = 6
LONGEST_BY_DEFAULT = 4096  # tokens of a sequence
LONGEST_MEASURED = 4096  # tokens, whatever the model was made for: rotary positions have no end


def check(config: RunConfig, world_size: int) -> tuple[RunConfig, Outline]:
    """Check a request as far as possible without loading weights.

    Returns:
        The request with data.sequence_length and the batch worked out, and what the run will do.

    Raises:
        ValueError: one line: the field, the value given, what is allowed.
    """
    check_places(config)
    check_run_folder(config.output_dir, config.share_dir)
    check_metrics(Path(config.output_dir))
    if read_record(Path(config.output_dir)) is None:  # a run of an earlier version may go on
        check_what_is_read(config)
    if config.mode != "pretrain":
        model_config = read_model_config(pinned(config.model, recorded_parent(Path(config.output_dir))))
        check_architecture(config.model, model_config)
        if is_local(config.model.path or ""):
            check_files(Path(config.model.path or ""))
            if environment_rank() == 0:  # it reads for the others, and refuses the request for them
                judge_folder(config, Path(config.model.path or ""))
    else:
        assert config.model.architecture is not None
        model_config = config.model.architecture.to_model_config()
        try:
            check_supported(model_config)
        except ValueError as error:
            raise ValueError(f"model.architecture: {str(error).removeprefix('config.json: ')}") from None
    if config.mode == "tokenize":
        world_size = 1  # of the processes here no rank of the run depends
    config = with_batch(with_sequence_length(config, model_config), world_size)
    if config.mode != "tokenize":
        check_same_run(config)
    found = check_settings(config, model_config, world_size)
    if config.recover.variant is not None and not has_cut(config):
        find_cut(config, found)
    check_texts(config)
    if config.mode != "tokenize" and config.recover.tokens:
        check_adapters(config.recover)
    check_evaluation(config.eval)
    check_hub_texts(config)
    check_push_to_hub(config)
    return config, found


def check_what_is_read(config: RunConfig) -> None:
    """Raise ValueError for what the run would not read: it would be another one than the one that was meant."""
    for name, text in {"data.train": config.data.train, **config.texts()}.items():
        unread = f'source "{text.source}" reads no files: data=local, or a source "files" or "tokens", does'
        require(f"{name}.files", text.files, text.source in ("files", "tokens") or not text.files, unread)
    if config.mode == "pretrain":
        random = "mode=pretrain begins at random weights, in the dimensions of model.architecture alone"
        require("model.path", config.model.path, config.model.path is None, random)
        for name, asked in (("eval.tasks", config.eval.tasks), ("eval.texts", config.eval.texts)):
            require(name, sorted(asked), not asked, "mode=pretrain compares no models: prune the result, with them")


def with_sequence_length(config: RunConfig, model_config: dict[str, Any]) -> RunConfig:
    """Return the request with data.sequence_length as a number of tokens, where it is left to the model."""
    if config.data.sequence_length:
        return config
    limits = (model_config.get("max_position_embeddings"), family_of(model_config).window(model_config))
    length = min([LONGEST_BY_DEFAULT, *(limit for limit in limits if limit is not None)])
    return replace(config, data=replace(config.data, sequence_length=length))


def with_batch(config: RunConfig, world_size: int) -> RunConfig:
    """Return the request with recover.batch_sequences as a number, where it is left to the tokens of recovery.

    The ranks divide it. Without recovery there is none. A run that exists, or whose cut is recovered once more, keeps
    its own. Where a rank's part of it is no multiple of engine.micro_batch_sequences, the largest micro-batch below
    that divides it is taken.

    Raises:
        ValueError: a round has fewer tokens than a step, or the ranks do not divide the batch that the run began with.
    """
    tokens, length = config.recover.tokens, config.data.sequence_length
    if config.recover.batch_sequences is not None or not tokens:
        return config
    found = _recorded_batch(config)
    if found is None:
        found = batch_sequences(tokens, length, world_size)
        few = f"a step of {world_size} rank(s) has {found} sequences of {length} tokens, more than a round"
        require("recover.tokens", tokens, found * length <= tokens / config.prune.rounds, few)
    elif found % world_size:
        raise ValueError(
            f"the run began with steps of {found} sequences, which followed from recover.tokens (its config.yaml); "
            f"{world_size} ranks do not divide that: start it on other ranks"
        )
    config = replace(config, recover=replace(config.recover, batch_sequences=found))
    most = config.engine.micro_batch_sequences
    if not isinstance(most, int):
        return config
    micro_batch = max(size for size in range(1, most + 1) if found // world_size % size == 0)
    return replace(config, engine=replace(config.engine, micro_batch_sequences=micro_batch))


def _recorded_batch(config: RunConfig) -> int | None:
    """Return recover.batch_sequences of a run with as many tokens, in the folder or with the cut; None without one."""
    for folder in (Path(config.output_dir), config.variant_of):
        recorded = (read_config(folder) or {}).get("recover") if folder is not None else None
        if recorded and recorded["tokens"] == config.recover.tokens:
            return recorded.get("batch_sequences")  # type: ignore[no-any-return]
    return None


def check_settings(config: RunConfig, model_config: dict[str, Any], world_size: int) -> Outline:
    """Solve what follows from the settings and the model's config.json alone; an estimate is refused for it as well.

    Raises:
        ValueError: the dimensions of a round do not exist, or one would recover a part of a batch, or the like.
    """
    check_sequence_length(config, model_config)
    check_ranks(config, world_size)
    check_criteria(config.prune.method)
    if config.mode != "pretrain":
        check_method(config.prune.method, model_config, config.prune.shapes)
        check_layers(config.prune.target, config.prune.shapes, config.prune.method.pair_scope)
    found = outline(config, read_geometry(model_config))
    check_gguf(config, model_config, found)
    check_quantiser(config.export.gguf)
    check_executorch(config.export, model_config)
    profiled, steps = config.track.profile_steps, found.tokens // tokens_per_batch(config)
    is_made = profiled is None or profiled[1] <= steps
    require("track.profile_steps", profiled, is_made, f"recovery has {steps:,} steps")
    return found


def check_length(name: str, length: int, model_config: dict[str, Any]) -> None:
    """Raise ValueError unless the model takes sequences of this many tokens."""
    longest = model_config.get("max_position_embeddings")
    require(name, length, longest is None or length <= longest, f"the model takes at most {longest} tokens")
    window = family_of(model_config).window(model_config)
    seen = f"the model attends to at most {window} tokens (sliding_window), and pruning works on whole sequences"
    require(name, length, window is None or length <= window, seen)


def check_sequence_length(config: RunConfig, model_config: dict[str, Any]) -> None:
    """Raise ValueError unless the model takes the lengths of data.sequence_length and of eval.efficiency."""
    check_length("data.sequence_length", config.data.sequence_length, model_config)
    longest = model_config.get("max_position_embeddings")
    measured = config.eval.efficiency
    tokens = max(measured.prompt_tokens) + max(measured.new_tokens)
    most = max(LONGEST_MEASURED, longest or 0)
    if measured.measured and tokens > most:
        raise ValueError(
            f"eval.efficiency.prompt_tokens={measured.prompt_tokens!r} and new_tokens={measured.new_tokens!r} are not "
            f"allowed: together they may have {most:,} tokens with this model"
        )


def check_criteria(method: MethodConfig) -> None:
    """Raise ValueError for a criterion that does not exist, with those that do."""
    for name, allowed in choices().items():
        require_choice(f"prune.method.{name}", getattr(method, name), allowed)


def check_method(method: MethodConfig, model_config: dict[str, Any], shapes: str = "uniform") -> None:
    """Raise ValueError unless the family can take the method's cut; name the setting and the family."""
    family = family_of(model_config)
    if shapes != "uniform":
        _check_layerwise(f"prune.shapes={shapes!r}", "uniform", model_config)
    if method.pair_scope != "model":
        _check_layerwise(f"prune.method.pair_scope={method.pair_scope!r}", "model", model_config)
    if method.pair_gains == "attention" and family.query_key_norm:
        raise ValueError(
            f"prune.method.pair_gains={method.pair_gains!r} is not allowed for model_type {family.model_type}: the "
            "heads share a norm of queries, which takes no gains of single heads; it must be auto or none"
        )
    if method.attention == "shared_dims" and family.query_key_norm:
        raise ValueError(
            f"prune.method.attention={method.attention!r} is not allowed for model_type {family.model_type}: the heads "
            "share a norm of queries and keys, so they must keep the same dims; it must be pairs or heads"
        )
    if method.attention == "shared_dims" and rope_settings(model_config)["rope_type"] == "longrope":
        raise ValueError(
            f"prune.method.attention={method.attention!r} is not allowed with rope_type longrope, which has a factor "
            "for each rotary pair: it must be pairs or heads"
        )


def _check_layerwise(setting: str, instead: str, model_config: dict[str, Any]) -> None:
    """Raise ValueError unless layers of the family may differ; name the setting and what is allowed instead of it."""
    family = family_of(model_config)
    if not family.is_layerwise_llama:
        raise ValueError(f"{setting} is not allowed for model_type {family.model_type}: it must be {instead}")
    hidden_size, heads = model_config.get("hidden_size", 0), model_config.get("num_attention_heads", 1)
    if hidden_size % heads:
        raise ValueError(
            f"{setting} is not allowed for a model whose {heads} heads do not divide its hidden_size ({hidden_size}): "
            f"what builds layers that differ insists on it; it must be {instead}"
        )
    window = family.window(model_config)
    if window is not None:
        raise ValueError(
            f"{setting} is not allowed for a model with a sliding window ({window}): layers that differ are built "
            f"without one; it must be {instead}"
        )


def check_ranks(config: RunConfig, world_size: int) -> None:
    """Raise ValueError unless the batch divides into the ranks' micro-batches and every rank gets a sequence."""
    batch, micro_batch = config.recover.batch_sequences, config.engine.micro_batch_sequences
    for field, count in (
        ("recover.batch_sequences", batch),
        ("recover.validation_sequences", config.recover.validation_sequences),
        ("prune.calibration_sequences", config.prune.calibration_sequences),
        ("data.evaluation_sequences", config.data.evaluation_sequences),
    ):
        if count is not None and count < world_size:
            raise ValueError(f"{field}={count} is not allowed: {world_size} ranks need at least one sequence each")
    if batch is None:  # nothing is recovered
        return
    if not isinstance(micro_batch, int):  # it is chosen among those that divide the batch
        ranks = f"it must be a multiple of the number of ranks ({world_size})"
        require("recover.batch_sequences", batch, batch % world_size == 0, ranks)
    elif batch % (micro_batch * world_size):
        raise ValueError(
            f"recover.batch_sequences={batch} is not allowed: it must be a multiple of engine.micro_batch_sequences "
            f"({micro_batch}) times the number of ranks ({world_size})"
        )


# Differences that say where something lies: the model, and the tokenizer of tokens, which is compared with the model's.
ELSEWHERE = re.compile(r"(model\.(path|revision)|(data|eval)\.\S*\.tokenizer): ")


def check_same_run(config: RunConfig) -> None:
    """Raise ValueError unless the folder is new, or holds a run of the same configuration."""
    folder = Path(config.output_dir)
    before = read_config(folder)
    if before is None:
        if (read_record(folder) or {}).get("stages"):
            raise DamagedFile(folder / "config.yaml", f"is missing, though stages of the run are finished; {WAY_OUT}")
        return
    changed = differences(before, to_dictionary(config))
    if not config.recover.tokens:  # earlier versions recorded a batch for runs that recover nothing
        changed = [each for each in changed if not each.startswith("recover.batch_sequences: ")]
    if recorded_parent(folder) is not None:  # the record identifies the model by its content, wherever it lies
        changed = [each for each in changed if not ELSEWHERE.match(each)]
    if changed:
        again = ""
        if config.recover.variant is None and config.mode == "prune" and all(map(changes_recovery_alone, changed)):
            again = "add recover.variant=A_NAME, which recovers the same cut in this way beside that result; or "
        shown = "; ".join(changed[:MAX_SHOWN_DIFFERENCES])
        more = f"; and {len(changed) - MAX_SHOWN_DIFFERENCES} more" if len(changed) > MAX_SHOWN_DIFFERENCES else ""
        raise ValueError(
            f"output_dir={config.output_dir!r} holds a run of another configuration by its config.yaml "
            f"({shown}{more}): "
            f"{again}choose another {'name=' if config.recover.variant is None else 'recover.variant='}, or remove the "
            "folder"
        )
    table = config.prune.budget.latency_table
    known = (read_record(folder) or {}).get("latency_table")
    if known is not None and table is not None and file_digest(Path(table)) != known:
        raise ValueError(
            f"prune.budget.latency_table={table!r} is another one than when this run began: put that back, or choose "
            "another name="
        )
