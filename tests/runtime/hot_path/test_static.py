"""Buffers that never move: sizes, padding, what a caller may pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from npnet_runtime.hot_path.static import Buffer, Recording, StaticCall, bucket_for, buckets
from support.networks import SMALL, noise_and_prompts

ROUNDING = 2e-5  # batches of other sizes are multiplied in another order


@pytest.mark.parametrize(
    ("batch", "largest", "bucket"),
    [
        (1, 64, 1),
        (2, 64, 2),
        (3, 64, 4),
        (5, 8, 8),
        (33, 64, 64),
        (64, 64, 64),
        (5, 6, 6),
        (1, 1, 1),
        (3, 3, 3),
    ],
)
def test_bucket(batch: int, largest: int, bucket: int) -> None:
    assert bucket_for(batch, largest) == bucket


@pytest.mark.parametrize("largest", [1, 2, 3, 7, 8, 20])
def test_every_batch_has_room_and_buckets_are_few(largest: int) -> None:
    chosen = {batch: bucket_for(batch, largest) for batch in range(1, largest + 1)}
    assert all(batch <= bucket <= largest for batch, bucket in chosen.items())
    assert all(bucket < 2 * batch for batch, bucket in chosen.items())
    assert len(set(chosen.values())) <= largest.bit_length() + 1
    assert buckets(largest) == sorted(set(chosen.values()))


@pytest.fixture
def call(plain_steps) -> Callable[..., Tensor]:
    """Golden noise on buffers for four; the output's place is fixed as in a graph."""

    def record(compute: Callable[[], Tensor]) -> Recording:
        output = compute()
        return Recording(lambda: output.copy_(compute()), output)

    def golden(noise: Tensor, prompts: Tensor) -> Tensor:
        early = plain_steps.before_prompt(noise)
        return plain_steps.finish(early, noise, *plain_steps.with_prompt(noise, prompts))[0]

    static = StaticCall(golden, [Buffer(tensor) for tensor in noise_and_prompts(SMALL, 4, seed=99)], record)
    return lambda *inputs: static(*inputs)[: len(inputs[0])]


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_pads_and_slices(call: Callable[..., Tensor], expected, batch: int) -> None:
    noise, prompts = noise_and_prompts(SMALL, batch)
    torch.testing.assert_close(call(noise, prompts), expected(noise, prompts), atol=ROUNDING, rtol=0)


def test_nothing_is_left_of_an_earlier_call(call: Callable[..., Tensor]) -> None:
    """The same bits whatever stands in the rows that are not used, NaN included."""
    noise, prompts = noise_and_prompts(SMALL, 2)
    first = call(noise, prompts).clone()
    call(*noise_and_prompts(SMALL, 4, seed=7))
    assert torch.equal(call(noise, prompts), first)
    other, broken = noise_and_prompts(SMALL, 4, seed=8)
    broken[2:] = torch.nan
    assert call(other, broken)[2:].isnan().all()
    assert torch.equal(call(noise, prompts), first)


def test_takes_what_callers_have(call: Callable[..., Tensor]) -> None:
    """Half precision, and one prompt expanded over the batch without memory of its own."""
    noise, prompts = noise_and_prompts(SMALL, 3)
    half, one = noise.half(), prompts[:1].bfloat16().expand(3, -1, -1)
    given = call(half.transpose(2, 3).contiguous().transpose(2, 3), one).clone()
    assert torch.equal(given, call(half.float(), one.float().contiguous()))


def test_the_result_stays_in_place(call: Callable[..., Tensor]) -> None:
    first, second = (call(*noise_and_prompts(SMALL, 1, seed)) for seed in (1, 2))
    assert first.data_ptr() == second.data_ptr()


def test_rows_on_another_axis() -> None:
    """Two halves one behind the other, in one buffer: the rows that are not used stay between them."""

    def record(compute: Callable[[], Tensor]) -> Recording[Tensor]:
        output = compute().clone()
        return Recording(lambda: output.copy_(compute()), output)

    static = StaticCall(lambda pair: pair[0] - pair[1], [Buffer(torch.zeros(2, 4, 3), axis=1)], record)
    for rows in (4, 1, 3):
        pair = torch.randn(2, rows, 3)
        assert torch.equal(static(pair)[:rows], pair[0] - pair[1])
