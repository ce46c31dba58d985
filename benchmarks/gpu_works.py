"""Does it work on a GPU: versions, ranks, every ZeRO stage, and the same figures as on a CPU or with plain PyTorch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from benchmarks.channel_agreement import channel_agreement
from benchmarks.gpu_place import (
    DTYPES,
    GIB,
    Figures,
    Place,
    Section,
    relative_difference,
    require,
    training,
)
from benchmarks.random_models import ARCHITECTURES, load_stock_model
from benchmarks.workload import machine
from transact.engine.engine import Engine, open_engine
from transact.engine.sharded_state import optimizer_groups
from transact.engine.training_checkpoints import load_training, save_training
from transact.pruning.greedy_obs import greedy_obs
from transact.pruning.refit import Ridge, add_gram, complete_gram, refit
from transact.stages.export import TOLERANCE, logit_difference
from transact.stages.recover.teacher import Teacher

LEARNING_RATE = 1e-4
RIDGE = Ridge(share=0.01)
TOKENS = 4096  # of the sums that are compared
LENGTH = 128  # tokens of the sequences that are compared
STEPS = 3
# What is allowed between a device and a CPU, or a library and us. In float32 only the order of sums differs.
SAME_LOSS = {"float32": 1e-4, "bfloat16": 2e-2}  # relative, between ZeRO stages
AS_PYTORCH = 1e-4  # relative, of a loss after steps
SAME_SUM = 1e-5  # of the largest element
SAME_CHANNELS = 0.999  # of what is kept: two near-equal channels may swap
HOST_BYTES = GIB  # that a save may need beside what was there
LEFT_BYTES = 16 * 2**20  # of device memory, after an engine is closed: a fraction of the model


def versions(place: Place) -> Figures:
    found: Figures = machine(place.device)
    if place.is_cuda:
        about = torch.cuda.get_device_properties(place.device)
        found |= {
            "memory_gib": about.total_memory / GIB,
            "capability": f"{about.major}.{about.minor}",
            "cuda": torch.version.cuda,
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),  # type: ignore[no-untyped-call]
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        }
    torch_version = found["versions"].get("torch", torch.__version__)
    return found | {"said": f"{place.group.world_size} x {found['device']}, torch {torch_version}"}


def rooflines(place: Place) -> Figures:
    """Measure the fastest that any program may be here: matrix products, memory, and the way to the host."""
    rows, size = place.size.matrix, place.size.copied_mib * 2**20
    found: Figures = {}
    for dtype in DTYPES:
        left, right = (torch.randn(rows, rows, device=place.device, dtype=getattr(torch, dtype)) for _ in range(2))
        found[f"{dtype}_tflops"] = 2e-12 * rows**3 / place.seconds(lambda a=left, b=right: a @ b, 10)  # type: ignore[misc]
    here = torch.empty(size, dtype=torch.uint8, device=place.device)
    there = torch.empty_like(here)
    host = torch.empty(size, dtype=torch.uint8, pin_memory=place.is_cuda)
    found["memory_gb_per_s"] = 2e-9 * size / place.seconds(lambda: there.copy_(here), 10)
    found["to_device_gb_per_s"] = 1e-9 * size / place.seconds(lambda: there.copy_(host))
    found["to_host_gb_per_s"] = 1e-9 * size / place.seconds(lambda: host.copy_(there))
    known = place.accelerator
    share = "" if known is None else f" ({1e12 * found['bfloat16_tflops'] / known.peak_flops:.0%} of its data sheet)"
    said = f"{found['bfloat16_tflops']:.1f} TFLOP/s bf16{share}, {found['float32_tflops']:.1f} fp32, "
    return found | {"said": said + f"memory {found['memory_gb_per_s']:.0f} GB/s"}


def process_groups(place: Place) -> Figures:
    """Sum and gather over the ranks, on the CPU and on the device."""
    group, world = place.group, place.group.world_size
    for device in {"cpu", place.device.type}:
        own = torch.full((world,), float(group.rank + 1), device=device)
        require(group.sum(own.clone()).eq(world * (world + 1) / 2).all().item() is True, f"a sum on {device} is wrong")
        every = [torch.empty(world, device=device) for _ in range(world)]
        distributed.all_gather(every, own)
        ranks = [sorted(set(each.tolist())) for each in every]
        require(ranks == [[rank + 1.0] for rank in range(world)], f"a gather on {device} is wrong: {ranks}")
    moved = torch.zeros(place.size.copied_mib * 2**18, device=place.device)
    rate = 4e-9 * moved.numel() / place.seconds(lambda: group.sum(moved))
    return {"all_reduce_gb_per_s": rate, "said": f"{world} rank(s), all-reduce {rate:.1f} GB/s"}


def every_stage(place: Place) -> Figures:
    """Load, step and close at every ZeRO stage and dtype: the same losses, and no memory left."""
    folder, geometry = place.model(place.size.compared)
    tokens = place.tokens(geometry, 2, LENGTH)
    found: Figures = {}
    for dtype in DTYPES:
        for stage in range(4):
            before = place.allocated()
            config = place.engine(zero_stage=stage, dtype=dtype, micro_batch_sequences=2)
            with open_engine(folder, config, place.group, training=training()) as engine:
                losses = [_step(engine, tokens) for _ in range(STEPS)]
            left = place.allocated() - before
            case, first = f"{dtype} stage {stage}", found.get(f"{dtype} stage 0", losses)
            found[case] = losses
            require(losses[-1] < losses[0], f"{case}: the loss does not fall: {losses}")
            worst = max(abs(a / b - 1) for a, b in zip(losses, first, strict=True))
            require(worst <= SAME_LOSS[dtype], f"{case}: losses differ from stage 0 by {worst:.1e}")
            require(left <= LEFT_BYTES, f"{case}: {left:,} bytes are left on the device")
    return found | {"said": f"{len(found)} kinds of engine step and close"}


def _step(engine: Engine, tokens: torch.Tensor, teacher: Teacher | None = None) -> float:
    loss = engine.loss(tokens, None if teacher is None else next(teacher.teach([tokens])))
    engine.backward(loss)
    engine.step(LEARNING_RATE)
    return float(loss.detach())


def against_pytorch(place: Place) -> Figures:
    """Compare the losses of distillation with those of a loop of plain PyTorch and stock transformers."""
    student, geometry = place.model("14m")
    parent, parent_geometry = place.model("25m")
    tokens = place.tokens(geometry, 2, LENGTH)
    config = place.engine(dtype="float32", micro_batch_sequences=2)
    with (
        open_engine(parent, config, place.group) as dense,
        open_engine(student, config, place.group, training=training()) as engine,
    ):
        teacher = Teacher(dense, parent_geometry, weight=1.0, temperature=1.0)
        ours = [_step(engine, tokens, teacher) for _ in range(STEPS)]
    theirs = _plain_distillation(student, parent, tokens, place)
    worst = max(abs(a / b - 1) for a, b in zip(ours, theirs, strict=True))
    require(worst <= AS_PYTORCH, f"losses of distillation {ours} differ from plain PyTorch's {theirs}")
    require(ours[-1] < ours[0], f"the loss does not fall: {ours}")
    return {"ours": ours, "plain_pytorch": theirs, "said": f"losses differ by {worst:.1e}"}


def _plain_distillation(student: Path, parent: Path, tokens: torch.Tensor, place: Place) -> list[float]:
    teacher = load_stock_model(parent, "float32").to(place.device).eval()
    model: Any = load_stock_model(student, "float32").to(place.device).train()
    settings, losses = training(), []
    optimizer = torch.optim.AdamW(
        optimizer_groups(model, settings.weight_decay), lr=LEARNING_RATE, betas=settings.betas
    )
    for _ in range(STEPS):
        with torch.no_grad():
            target = teacher(input_ids=tokens).logits[:, :-1].log_softmax(-1)
        found = model(input_ids=tokens).logits[:, :-1].log_softmax(-1)
        loss = (target.exp() * (target - found)).sum(-1).mean()
        torch.autograd.backward(loss)
        for parameter in model.parameters():
            place.group.sum(parameter.grad.div_(place.group.world_size))
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def correlated(channels: int, seed: int = 0) -> torch.Tensor:
    """Return activations whose neighbours are alike, on the CPU: (tokens, channels)."""
    activations = torch.randn(TOKENS, channels, generator=torch.Generator().manual_seed(seed))
    return activations + activations.roll(1, dims=1)


def gram_sums(place: Place) -> Figures:
    activations = correlated(place.size.square)
    sums = []
    for device in ("cpu", place.device):
        total = torch.zeros(place.size.square, place.size.square, dtype=torch.float64, device=device)
        for batch in torch.split(activations.to(device), TOKENS // 4):
            add_gram(total, batch)
        sums.append(complete_gram(total))
    difference = relative_difference(sums[1], sums[0])
    require(difference <= SAME_SUM, f"Gram sums of CPU and device differ by {difference:.1e}")
    return {"difference": difference, "said": f"CPU and device differ by {difference:.1e}"}


def least_squares(place: Place) -> Figures:
    """Compare what greedy OBS keeps, and the refit of what is kept."""
    channels = place.size.square
    activations = correlated(channels)
    gram, weight = activations.T @ activations, torch.randn(channels // 2, channels)
    kept = [
        greedy_obs(weight.to(device), gram.to(device), channels // 2, RIDGE).cpu() for device in ("cpu", place.device)
    ]
    share = len(set(kept[0].tolist()) & set(kept[1].tolist())) / len(kept[0])
    require(share >= SAME_CHANNELS, f"greedy OBS on CPU and device keeps {share:.1%} of the same channels")
    fits = [refit(weight.to(device), gram.to(device), kept[0].to(device), RIDGE) for device in ("cpu", place.device)]
    difference = relative_difference(fits[1], fits[0])
    require(difference <= SAME_SUM, f"the refits of CPU and device differ by {difference:.1e}")
    said = f"{share:.1%} of the channels of OBS, refits differ by {difference:.1e}"
    return {"same_channels": share, "refit_difference": difference, "said": said}


def same_units(place: Place) -> Figures:
    """Compare which units the norms of activations keep, of the engine here and stock transformers on the CPU."""
    length = min(place.size.sequence_length, 2 * LENGTH)
    engine = place.engine(micro_batch_sequences=place.size.micro_batch_sequences)
    architecture = ARCHITECTURES[place.size.compared]()
    found = channel_agreement(place.folder / "agreement", architecture, engine, place.group, sequence_length=length)
    share = found["float32"]
    require(share >= SAME_CHANNELS, f"CPU and device keep {share:.1%} of the same units in float32")
    return found | {"said": ", ".join(f"{each:.2%} in {dtype}" for dtype, each in found.items())}


def export_check(place: Place) -> Figures:
    """Compare logits as the check of an export does, with float32 products as they are set, and in TF32."""
    folder, geometry = place.model(place.size.compared)
    tokens = torch.randint(geometry.vocab_size, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = load_stock_model(folder, "float32")(input_ids=tokens, use_cache=False).logits
    found: Figures = {}
    with open_engine(folder, place.engine(dtype="float32"), place.group) as engine, torch.no_grad():
        usual = torch.get_float32_matmul_precision()
        try:
            for name, precision in (("float32", usual), ("tf32", "high")):
                torch.set_float32_matmul_precision(precision)
                found[name] = logit_difference(engine.logits(tokens), expected)
        finally:
            torch.set_float32_matmul_precision(usual)
    require(found["float32"] <= TOLERANCE, f"the logits differ by {found['float32']:.1e} of their root mean square")
    said = f"logits differ by {found['float32']:.1e}, in TF32 by {found['tf32']:.1e} (allowed: {TOLERANCE:.0e})"
    return found | {"said": said}


def saving(place: Place) -> Figures:
    """Save and load a training checkpoint: the same loss after it, and little host memory for it."""
    folder, geometry = place.model(place.size.model)
    tokens = place.tokens(geometry, 1, min(place.size.sequence_length, 512))
    config, checkpoint = place.engine(micro_batch_sequences=1), place.folder / "checkpoints" / "step_0001"
    with open_engine(folder, config, place.group, training=training()) as engine:
        _step(engine, tokens)
        before = _memory_of_this_process("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        begin = time.perf_counter()
        save_training(engine, checkpoint, place.group, best=None, position={})
        place.group.barrier()
        save_seconds = time.perf_counter() - begin
        host = _memory_of_this_process("VmHWM") - before
        size = place.group.on_main(lambda: sum(file.stat().st_size for file in checkpoint.iterdir()))
        expected = _step(engine, tokens)
    with open_engine(folder, config, place.group, training=training()) as engine:
        begin = time.perf_counter()
        load_training(engine, checkpoint, place.group)
        place.group.barrier()
        load_seconds = time.perf_counter() - begin
        found = _step(engine, tokens)
    require(abs(found / expected - 1) <= SAME_LOSS["float32"], f"the loss is {found}, it was {expected}")
    require(host <= HOST_BYTES, f"a save takes {host / GIB:.2f} GiB of host memory, {HOST_BYTES / GIB:g} are allowed")
    said = f"{size / 1e9:.2f} GB saved in {save_seconds:.1f} s, loaded in {load_seconds:.1f} s; "
    said += f"{host / GIB:.2f} GiB of host memory for it"
    return {
        "bytes": size,
        "save_seconds": save_seconds,
        "load_seconds": load_seconds,
        "host_bytes": host,
        "said": said,
    }


def _memory_of_this_process(name: str) -> int:
    """Return VmRSS or VmHWM of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


WORKS = (
    Section(name="versions", seconds=1, run=versions),
    Section(name="rooflines", seconds=15, run=rooflines),
    Section(name="process_groups", seconds=10, run=process_groups),
    Section(name="every_stage", seconds=90, run=every_stage),
    Section(name="against_pytorch", seconds=30, run=against_pytorch),
    Section(name="gram_sums", seconds=10, run=gram_sums),
    Section(name="least_squares", seconds=30, run=least_squares),
    Section(name="same_units", seconds=40, run=same_units),
    Section(name="export_check", seconds=20, run=export_check),
    Section(name="saving", seconds=150, run=saving),
)
