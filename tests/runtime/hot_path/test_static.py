"""Buffers that never move: sizes, padding, what a caller may pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from npnet_runtime.hot_path.static import Recording, StaticCall, bucket_for
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
    buckets = {batch: bucket_for(batch, largest) for batch in range(1, largest + 1)}
    assert all(batch <= bucket <= largest for batch, bucket in buckets.items())
    assert all(bucket < 2 * batch for batch, bucket in buckets.items())
    assert len(set(buckets.values())) <= largest.bit_length() + 1


@pytest.fixture
def call(plain_steps) -> StaticCall:
    """Golden noise on buffers for four; the output's place is fixed as in a graph."""

    def record(compute: Callable[[], Tensor]) -> Recording:
        output = compute()
        return Recording(lambda: output.copy_(compute()), output)

    def golden(noise: Tensor, prompts: Tensor) -> Tensor:
        early = plain_steps.before_prompt(noise)
        return plain_steps.finish(early, noise, *plain_steps.with_prompt(noise, prompts))

    return StaticCall(golden, noise_and_prompts(SMALL, 4, seed=99), record)


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_pads_and_slices(call: StaticCall, expected, batch: int) -> None:
    noise, prompts = noise_and_prompts(SMALL, batch)
    torch.testing.assert_close(call(noise, prompts), expected(noise, prompts), atol=ROUNDING, rtol=0)


def test_nothing_is_left_of_an_earlier_call(call: StaticCall) -> None:
    """The same bits whatever stands in the rows that are not used, NaN included."""
    noise, prompts = noise_and_prompts(SMALL, 2)
    first = call(noise, prompts).clone()
    call(*noise_and_prompts(SMALL, 4, seed=7))
    assert torch.equal(call(noise, prompts), first)
    other, broken = noise_and_prompts(SMALL, 4, seed=8)
    broken[2:] = torch.nan
    assert call(other, broken)[2:].isnan().all()
    assert torch.equal(call(noise, prompts), first)


def test_takes_what_callers_have(call: StaticCall) -> None:
    """Half precision, and one prompt expanded over the batch without memory of its own."""
    noise, prompts = noise_and_prompts(SMALL, 3)
    half, one = noise.half(), prompts[:1].bfloat16().expand(3, -1, -1)
    given = call(half.transpose(2, 3).contiguous().transpose(2, 3), one).clone()
    assert torch.equal(given, call(half.float(), one.float().contiguous()))


def test_the_result_stays_in_place(call: StaticCall) -> None:
    first, second = (call(*noise_and_prompts(SMALL, 1, seed)) for seed in (1, 2))
    assert first.data_ptr() == second.data_ptr()
