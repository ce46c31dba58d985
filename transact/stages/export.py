"""Export: a stock model folder, published only if stock code loads it to the same logits, and files for others."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from transact.engine.engine import open_engine
from transact.engine.free_memory import free_bytes
from transact.engine.gram_memory import FLOAT32_BYTES, GIB
from transact.errors import Failure
from transact.evaluation.other_python import ask
from transact.export import in_llama_cpp
from transact.export.executorch import cached_tokens, executorch_logits, write_executorch
from transact.export.folder import write_export
from transact.export.gguf import possible_gguf_types, write_gguf
from transact.export.k_quants import K_QUANTS, write_k_quants
from transact.export.model_card import Exported, copy_licence, has_chat_template, model_card, read_licence
from transact.files import fresh_temporary_folder, publish, read_json, temporary_name
from transact.models.families import VLLM_LAYERWISE, architectures_of
from transact.models.folder import dtype_of, geometry_of
from transact.models.llama import code_files, is_stock
from transact.models.rotary import rope_settings
from transact.pruning.targets import K_QUANT_BLOCK, Q4_BLOCK, float16_rows
from transact.stages.job import Job
from transact.stages.stock_logits import stock_logits
from transact.stages.texts import Texts
from transact.stages.workload import CHECKED_TOKENS

CHECKED_SEQUENCES = 2
CHECKED_LENGTH = CHECKED_TOKENS // CHECKED_SEQUENCES
LOWERED_COPIES = 7  # of the weights in float32, while a file for ExecuTorch is written and checked; as measured
CHECKED_STEPS = 64  # tokens that llama.cpp and ExecuTorch compute, the latter half of them one by one
LOSS_TOLERANCE = 1e-3  # nats per token, of float32 weights in llama.cpp: rounding is a tenth of it at most
TOLERANCE = 1e-3  # of the logits' root mean square, in float32: rounding is a hundredth of it, TF32 some times as much


def export(job: Job, texts: Texts, model_folder: Path, parent: Path, summary: dict[str, Any], output: Path) -> None:
    """Write `export/`, and publish it once its logits are compared with the pruner's (collective).

    Raises:
        RuntimeError: transformers gives other logits than the model in the pruner; nothing is published.
    """
    dtype = export_dtype(job.config.model.export_dtype, parent)
    temporary = temporary_name(output)

    def write() -> None:
        fresh_temporary_folder(output)
        licence = read_licence(parent)
        described = read_json(model_folder / "config.json")
        exported = Exported(
            model_type=described["model_type"],
            has_factors=rope_settings(described)["rope_type"] == "longrope",
            has_chat_template=has_chat_template(parent),
            gguf_types=possible_gguf_types(described, parent),
            in_float16=float16_rows(geometry_of(model_folder)),
            code=[file.name for file in code_files(described)],
            in_vllm=VLLM_LAYERWISE in architectures_of(described),
        )
        write_export(model_folder, temporary, dtype, model_card(summary, job.config, licence, exported))
        copy_licence(licence, parent, temporary)

    with job.progress("export", 3, unit="steps") as bar:
        job.group.on_main(write, may_be_left=True)  # half an hour and more for a large model on slow storage
        bar.advance(1, next="logits of the pruner")
        tokens = texts.evaluation.sequences(torch.arange(CHECKED_SEQUENCES) % texts.evaluation.num_sequences)
        tokens = tokens[:, :CHECKED_LENGTH]
        ours = _pruner_logits(job, model_folder, tokens, dtype)
        bar.advance(1, next="logits of transformers")

        def compare() -> tuple[float, str]:
            theirs, checked = stock_logits(temporary, tokens, job.group.device, job.group.watchdog.progress)
            return logit_difference(theirs, ours), checked

        difference, checked = job.group.on_main(compare, may_be_left=True)
        bar.advance(1, next="publish")
    check_difference(difference, "transformers")
    job.say(f"export: {checked}; largest difference of logits {difference:.1e} of their root mean square")
    if not is_stock(read_json(model_folder / "config.json")):
        job.say("export: layers differ: transformers builds them by the code in the folder (trust_remote_code=True)")
    job.tracker.summary({"export/logit_difference": difference})
    if job.group.is_main:
        publish(temporary, output)


def logit_difference(theirs: torch.Tensor, ours: torch.Tensor) -> float:
    """Return the largest difference, as a multiple of the root mean square of `ours`; both of the same shape.

    Not of the largest logit, which in some models is twenty times as large, and would hide a difference in the others.
    """
    assert theirs.shape == ours.shape
    squares, largest = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for one, other in zip(theirs.unbind(), ours.unbind(), strict=True):  # in float64 a part at a time
        squares += other.double().square().sum()
        largest = torch.maximum(largest, (one.double() - other.double()).abs().max())  # not a number if either is none
    scale = (squares / ours.numel()).sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    return float(largest / scale)


def check_difference(difference: float, loader: str) -> None:
    """Raise RuntimeError if the difference, as `logit_difference` gives it, is above the tolerance or not a number."""
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f"export: the logits of {loader} differ by {difference:.2g} of their root mean square "
            f"(allowed: {TOLERANCE:.0e})"
        )


def export_dtype(asked: str, parent: Path) -> str:
    """Return the dtype of the exported weights; `parent` stands for the dtype that the parent's weights count as."""
    return dtype_of(parent) if asked == "parent" else asked


@torch.no_grad()
def _pruner_logits(job: Job, model_folder: Path, tokens: torch.Tensor, dtype: str) -> torch.Tensor:
    """Return logits of the sharded model in float32, its weights rounded as the export rounds them (collective)."""
    with open_engine(
        model_folder, job.config.engine.plain(), job.group, round_weights_to=getattr(torch, dtype)
    ) as engine:
        return engine.logits(tokens)


def export_gguf(job: Job, texts: Texts, folder: Path, output: Path) -> None:
    """Write the GGUF file, a tensor at a time, published once llama.cpp has computed it; rank 0 alone (collective).

    Raises:
        Failure: llama.cpp cannot compute it; nothing is published.
        RuntimeError: llama.cpp gives other losses than transformers; nothing is published.
    """
    kind, geometry = job.config.export.gguf, geometry_of(folder)
    write_file = write_k_quants if kind in K_QUANTS else write_gguf

    def write() -> tuple[list[str], str]:
        temporary = temporary_name(output)
        with job.progress("gguf", geometry.parameters(), unit="weights") as bar:
            others = write_file(folder, temporary, kind, job.config.name, bar.advance)
        with job.progress("losses of the gguf file", 2, unit="steps") as bar:
            tokens = texts.evaluation.sequences(torch.arange(1))[:, :CHECKED_STEPS]

            def logits() -> torch.Tensor:
                bar.advance(1, next="transformers")
                return stock_logits(folder, tokens, torch.device("cpu"), job.group.watchdog.progress)[0][0]

            checked = compared_in_llama_cpp(temporary, kind, tokens[0], logits)
            bar.advance(1, next="publish")
        publish(temporary, output)
        return others, checked

    others, checked = job.group.on_main(write, may_be_left=True)  # hours for a large model
    job.say(f"gguf: {output}; {checked}")
    if others and kind in K_QUANTS:
        job.say(
            f"gguf: {len(others)} weights are not in K-quants, such as {others[0]}: their rows do not divide into "
            f"blocks of {K_QUANT_BLOCK}, those in F16 not into blocks of {Q4_BLOCK} either; prune.target=llama_cpp, in "
            "a new run, cuts to dimensions that do"
        )
    elif others:
        job.say(
            f"gguf: {len(others)} weights are f16 instead of {kind}, such as {others[0]}: their rows do not "
            f"divide into blocks of {Q4_BLOCK}; prune.target=llama_cpp, in a new run, cuts to dimensions that do"
        )


def compared_in_llama_cpp(file: Path, kind: str, tokens: torch.Tensor, logits: Callable[[], torch.Tensor]) -> str:
    """Return in words what llama.cpp makes of a file's text, beside what transformers makes of the folder's.

    Weights of fewer bits than float32 may compute anything that is a number: how much they lose is told.

    Args:
        logits: returns those of transformers after each token, (tokens, vocab_size); not asked without llama.cpp.

    Raises:
        Failure: llama.cpp is there, and cannot compute the file.
        RuntimeError: a loss is no number, or float32 weights give other losses.
    """
    question = {"file": str(file.absolute()), "tokens": tokens.tolist(), "threads": torch.get_num_threads()}
    try:
        answer = ask(Path(sys.executable), Path(in_llama_cpp.__file__), question)
    except Failure as error:
        raise Failure(
            f"gguf: llama.cpp cannot compute the file ({error}); without the package cyllama it is written unchecked"
        ) from None
    if "unavailable" in answer:
        return f"not computed in llama.cpp, which is not here (pip install cyllama): {answer['unavailable']}"
    theirs = torch.tensor(answer["losses"], dtype=torch.float64)
    ours = cross_entropy(logits()[:-1].double(), tokens[1:], reduction="none")
    difference = float((theirs - ours).abs().mean())
    if not math.isfinite(difference) or (kind == "f32" and difference > LOSS_TOLERANCE):
        raise RuntimeError(
            f"gguf: the losses of llama.cpp differ from those of transformers by {difference:.2g} nats per token "
            f"(allowed: {LOSS_TOLERANCE:g})"
        )
    return (
        f"llama.cpp loads it: {float(theirs.mean()):.4f} nats per token, where transformers has "
        f"{float(ours.mean()):.4f}; a token differs by {difference:.4f} (mean of {len(ours)})"
    )


def check_memory(folder: Path) -> None:
    """Raise Failure unless the machine has the memory to write a model's file for ExecuTorch."""
    needed, free = LOWERED_COPIES * FLOAT32_BYTES * geometry_of(folder).parameters(), free_bytes(torch.device("cpu"))
    if needed > free:
        raise Failure(
            f"export.executorch needs about {needed / GIB:.1f} GiB of memory, and {free / GIB:.1f} are free; the "
            f"export is complete in {str(folder)!r}, and the same command goes on where there is more"
        )


def export_executorch(job: Job, texts: Texts, folder: Path, output: Path) -> None:
    """Write the file for ExecuTorch, published once its logits are those of the folder; rank 0 alone (collective).

    Raises:
        Failure: the machine has not the memory.
        RuntimeError: ExecuTorch gives other logits than transformers; nothing is published.
    """
    backend, context = job.config.export.executorch, cached_tokens(job.config.export, read_json(folder / "config.json"))
    temporary, length = temporary_name(output), min(CHECKED_STEPS, context, texts.evaluation.sequence_length)
    prompt = length // 2

    def write() -> float:
        check_memory(folder)
        with job.progress("executorch", 2, unit="steps") as bar:
            tokens = texts.evaluation.sequences(torch.arange(1))[:, :length]
            ours, _ = stock_logits(folder, tokens, torch.device("cpu"), job.group.watchdog.progress)
            write_executorch(folder, temporary, backend, context)
            bar.advance(1, next="logits of ExecuTorch")
            difference = logit_difference(executorch_logits(temporary, tokens, prompt), ours[:, prompt - 1 :])
            bar.advance(1, next="publish")
        check_difference(difference, "ExecuTorch")
        publish(temporary, output)
        return difference

    difference = job.group.on_main(write, may_be_left=True)  # an hour for a large model
    job.say(f"executorch: {output} holds {context:,} tokens; largest difference of logits {difference:.1e}")
    job.tracker.summary({"export/executorch_logit_difference": difference})
