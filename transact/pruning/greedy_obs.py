"""Choose the channels to drop, knowing that the rest will be refitted: greedy optimal brain surgeon.

Dropping input j of a projection W and refitting the others costs ``|w_j|^2 / [G^-1]_jj``, with G the
(damped) Gram matrix of the inputs (Hassibi & Stork 1993, for whole columns as in arXiv 2203.07259).
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from transact.pruning.refit import Ridge, cholesky_factor, damped

BLOCK = 64  # channels dropped between two updates of the large matrices
CANDIDATES_PER_DROP = 4


def greedy_obs(weight: Tensor, gram: Tensor, num_kept: int, ridge: Ridge, block: int = BLOCK) -> Tensor:
    """Return ascending int64 indices of the inputs to keep, (num_kept,): `elimination_path` for a single width."""
    return elimination_path(weight, gram, [num_kept], ridge, block)[num_kept]


def elimination_path(
    weight: Tensor, gram: Tensor, widths: Collection[int], ridge: Ridge, block: int = BLOCK
) -> dict[int, Tensor]:
    """Return ascending int64 indices of the inputs to keep, (min(width, inputs),), for each width of `widths`.

    The cheapest channel goes first, all costs are updated, and so on: whatever the width, the same channels go in the
    same order, so one elimination down to the least width serves all. With `block` above 1, a block is chosen exactly,
    one by one, among the `CANDIDATES_PER_DROP` * block channels that were cheapest when it began, and the large
    matrices are updated once per block: matrix products instead of rank-one updates. A width between two blocks gets a
    last block of its own size.

    Args:
        weight: (outputs, inputs).
        gram: (inputs, inputs), not damped yet.
        widths: numbers of inputs that stay, each at least 1; from `inputs` on all stay.
        ridge: as in `refit`, whose error this minimises.
        block: 1 is the plain greedy algorithm.
    """
    alive = torch.arange(weight.shape[1], device=weight.device)
    kept = {width: alive for width in widths if width >= len(alive)}
    open_widths = sorted(set(widths) - kept.keys())
    if not open_widths:
        return kept
    inverse = torch.cholesky_inverse(cholesky_factor(damped(gram, ridge)))
    weight = weight.to(inverse.dtype)
    while True:
        order = (weight.square().sum(dim=0) / inverse.diagonal()).sort(stable=True).indices
        while open_widths and open_widths[-1] >= len(alive) - block:
            width = open_widths.pop()
            dropped = _cheapest(weight, inverse, order, len(alive) - width)
            kept[width] = alive[_others(len(alive), dropped)]
        if not open_widths:
            return kept
        dropped = _cheapest(weight, inverse, order, block)
        weight, inverse = _eliminated(weight, inverse, dropped)
        alive = alive[_others(len(alive), dropped)]


def block_order(weight: Tensor, gram: Tensor, size: int, ridge: Ridge) -> list[int]:
    """Return blocks of inputs, such as heads, in the order in which they go: each time the one that costs least.

    Dropping the inputs of a block S together costs ``tr(W_S ([G^-1]_SS)^-1 W_S^T)``; the others are refitted.

    Args:
        weight: (outputs, inputs).
        gram: (inputs, inputs), not damped yet.
        size: inputs of a block, side by side; they divide all inputs.
        ridge: as in `refit`.
    """
    blocks, order = list(range(weight.shape[1] // size)), []
    inverse = torch.cholesky_inverse(cholesky_factor(damped(gram, ridge, torch.float64)))
    weight = weight.double()
    while blocks:
        parts = [slice(place * size, (place + 1) * size) for place in range(len(blocks))]
        costs = [_block_cost(weight[:, part], inverse[part, part]) for part in parts]
        place = min(range(len(costs)), key=costs.__getitem__)
        dropped = torch.arange(place * size, (place + 1) * size, device=inverse.device)
        weight, inverse = _eliminated(weight, inverse, dropped)
        order.append(blocks.pop(place))
    return order


def _block_cost(weight: Tensor, inverse: Tensor) -> float:
    return float((weight * torch.linalg.solve(inverse, weight.T).T).sum())


def _cheapest(weight: Tensor, inverse: Tensor, order: Tensor, count: int) -> Tensor:
    """Return the positions of the next `count` channels to drop, from an order that has the cheapest first."""
    pool = order[: CANDIDATES_PER_DROP * count]
    return pool[_choose(weight[:, pool], inverse[pool][:, pool], count)]


def _eliminated(weight: Tensor, inverse: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights and inverse without these positions: what a rank-one update for each would have given."""
    stays = _others(len(inverse), dropped)
    rows = torch.linalg.solve(inverse[dropped][:, dropped], inverse[dropped][:, stays])
    return weight[:, stays] - weight[:, dropped] @ rows, inverse[stays][:, stays] - inverse[stays][:, dropped] @ rows


def _others(size: int, dropped: Tensor) -> Tensor:
    """Return the mask of the positions that stay, (size,)."""
    stays = torch.ones(size, dtype=torch.bool, device=dropped.device)
    stays[dropped] = False
    return stays


def _choose(weight: Tensor, inverse: Tensor, count: int) -> Tensor:
    """Pick `count` channels one by one, with exact updates among these columns, and return their positions."""
    energy = (weight.T @ weight).double()
    inverse = inverse.double()
    gone = torch.zeros(len(inverse), dtype=torch.bool, device=inverse.device)
    chosen = []
    for _ in range(count):
        cost = (energy.diagonal() / inverse.diagonal()).masked_fill(gone, torch.inf)
        pick = int(cost.argmin())
        chosen.append(pick)
        gone[pick] = True
        row = inverse[pick] / inverse[pick, pick]
        energy_row = energy[pick]
        energy = energy - row.outer(energy_row) - energy_row.outer(row) + energy[pick, pick] * row.outer(row)
        inverse = inverse - inverse[pick].outer(row)
        inverse[pick, pick] = 1.0  # the channel is gone, this only avoids a division by zero
    return torch.tensor(chosen, device=inverse.device)
