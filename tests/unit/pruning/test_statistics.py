from __future__ import annotations

import torch

from transact.geometry import Geometry
from transact.pruning.statistics import ActivationStatistics, channel_energy, rotary_pair_energy

GEOMETRY = Geometry(
    hidden_size=8,
    num_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    intermediate_size=3,
    vocab_size=5,
    tied_embeddings=True,
)


def test_channel_energy_by_hand() -> None:
    activation = torch.tensor([[[1.0, 2.0], [3.0, 0.0]], [[0.0, -1.0], [0.0, 0.5]]])
    energy = channel_energy(activation)
    assert energy.dtype == torch.float64
    assert energy.tolist() == [10.0, 5.25]


def test_channel_energy_keeps_counting_in_16_bits() -> None:
    # A bf16 running sum of ones stands still at 256.
    assert channel_energy(torch.ones(3000, 2, dtype=torch.bfloat16)).tolist() == [3000.0, 3000.0]


def test_rotary_pair_energy_pairs_the_halves_of_each_head() -> None:
    heads = torch.tensor([[1.0, 2.0, 3.0, 4.0, 0.0, 1.0, 2.0, 0.0]])  # two heads of four dims
    assert rotary_pair_energy(heads, 2, 4).tolist() == [[10.0, 20.0], [4.0, 1.0]]


def test_rotation_does_not_change_pair_energy() -> None:
    x = torch.randn(5, 4, dtype=torch.float64)
    angles = torch.arange(5).unsqueeze(1) * torch.tensor([1.0, 0.1], dtype=torch.float64)  # (positions, pairs)
    first, second = x[:, :2], x[:, 2:]
    rotated = torch.cat(
        [
            first * angles.cos() - second * angles.sin(),
            second * angles.cos() + first * angles.sin(),
        ],
        dim=1,
    )
    torch.testing.assert_close(rotary_pair_energy(rotated, 1, 4), rotary_pair_energy(x, 1, 4))


def test_zeros_have_the_documented_shapes() -> None:
    zeros = ActivationStatistics.zeros(GEOMETRY)
    assert {name: tuple(sums.shape) for name, sums in zeros.sums.items()} == {
        "query": (1, 2, 2),
        "key": (1, 1, 2),
        "attention_output": (1, 2, 4),
        "intermediate": (1, 3),
    }
    assert zeros.num_tokens == 0


def test_addition_and_tensor_round_trip() -> None:
    tensors = {
        name: torch.ones_like(tensor) for name, tensor in ActivationStatistics.zeros(GEOMETRY).to_tensors().items()
    }
    one = ActivationStatistics.from_tensors(tensors)
    both = (one + one + ActivationStatistics.zeros(GEOMETRY)).to_tensors()
    assert both.keys() == {"query", "key", "attention_output", "intermediate", "num_tokens"}
    assert both["num_tokens"].dtype == torch.int64
    assert all((tensor == 2).all() for tensor in both.values())
