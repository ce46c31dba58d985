"""Which channels to drop, knowing that the rest will be refitted: greedy optimal brain surgeon.

Dropping input j of a projection W and refitting the others costs ``|w_j|^2 / [G^-1]_jj``, with G the
(damped) Gram matrix of the inputs (Hassibi & Stork 1993, for whole columns as in arXiv 2203.07259).
"""

from __future__ import annotations

import torch
from torch import Tensor

from transact.prune.gram import damped

BLOCK = 64  # channels dropped between two updates of the large matrices
CANDIDATES_PER_DROP = 4


def greedy_obs(weight: Tensor, gram: Tensor, num_kept: int, ridge: float, block: int = BLOCK) -> Tensor:
    """Ascending int64 indices of the inputs to keep: (num_kept,).

    The cheapest channel goes first, all costs are updated, and so on. With `block` above 1, a block is
    chosen exactly, one by one, among the `CANDIDATES_PER_DROP` * block channels that were cheapest when it
    began, and the large matrices are updated once per block: matrix products instead of rank-one updates.

    Args:
        weight: (outputs, inputs).
        gram: (inputs, inputs), not damped yet.
        num_kept: inputs that stay.
        ridge: as in `refit`, whose error this minimises.
        block: 1 is the plain greedy algorithm.
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(gram, ridge)))
    weight = weight.to(inverse.dtype)
    alive = torch.arange(weight.shape[1], device=weight.device)
    while len(alive) > num_kept:
        count = min(block, len(alive) - num_kept)
        cost = weight.square().sum(dim=0) / inverse.diagonal()
        pool = cost.sort(stable=True).indices[: CANDIDATES_PER_DROP * count]
        dropped = pool[_choose(weight[:, pool], inverse[pool][:, pool], count)]
        stays = torch.ones(len(alive), dtype=torch.bool, device=alive.device)
        stays[dropped] = False
        # One elimination of the whole block: what `count` rank-one updates would have given.
        rows = torch.linalg.solve(inverse[dropped][:, dropped], inverse[dropped][:, stays])
        weight = weight[:, stays] - weight[:, dropped] @ rows
        inverse = inverse[stays][:, stays] - inverse[stays][:, dropped] @ rows
        alive = alive[stays]
    return alive


def _choose(weight: Tensor, inverse: Tensor, count: int) -> Tensor:
    """Positions of `count` channels, picked one by one with exact updates among these columns."""
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
        inverse[pick, pick] = 1.0  # gone: only kept from dividing by zero
    return torch.tensor(chosen, device=inverse.device)
