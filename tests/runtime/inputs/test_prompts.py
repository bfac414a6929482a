"""Prompts of other lengths than the network reads."""

from __future__ import annotations

import pytest
import torch

from npnet_runtime import EngineBundle, GoldenNoise
from npnet_runtime.errors import InputError
from npnet_runtime.inputs.prompts import fit_tokens, one_for_each
from support.networks import SMALL, noise_and_prompts

NOISE, CHUNKS = noise_and_prompts(SMALL, 2)
# one prompt of two chunks
LONG = CHUNKS.reshape(1, 2 * SMALL.text_tokens, SMALL.text_dim)


@pytest.mark.parametrize("policy", ["truncate", "average"])
def test_network_length_is_left_alone(policy: str, small_bundle: EngineBundle) -> None:
    expected = GoldenNoise(small_bundle, device="cpu")(NOISE, CHUNKS)
    given = GoldenNoise(small_bundle, device="cpu", tokens=policy)(NOISE, CHUNKS)  # type: ignore[arg-type]
    assert torch.equal(given, expected)


def test_truncate(small_bundle: EngineBundle) -> None:
    golden = GoldenNoise(small_bundle, device="cpu", tokens="truncate")
    assert torch.equal(golden(NOISE, LONG), golden(NOISE, CHUNKS[:1]))
    assert torch.equal(golden(NOISE, LONG[:, :-2]), golden(NOISE, CHUNKS[:1]))


def test_average(small_bundle: EngineBundle) -> None:
    """The text affine is linear, and all else leaves the prompt alone: the mean of its outputs."""
    golden = GoldenNoise(small_bundle, device="cpu", tokens="average")
    assert torch.equal(golden(NOISE, LONG), golden(NOISE, CHUNKS.mean(0, keepdim=True)))
    assert not torch.equal(golden(NOISE, LONG), golden(NOISE, CHUNKS[:1]))


@pytest.mark.parametrize("policy", ["truncate", "average"])
def test_short(policy: str, small_bundle: EngineBundle) -> None:
    golden = GoldenNoise(small_bundle, device="cpu", tokens=policy)  # type: ignore[arg-type]
    padded = CHUNKS.clone()
    padded[:, 3:] = 0
    assert torch.equal(golden(NOISE, CHUNKS[:, :3]), golden(NOISE, padded))


def test_half_precision_averages_in_float32() -> None:
    chunks = torch.full((1, 4 * 5, 12), 60000.0, dtype=torch.float16)
    assert fit_tokens(chunks, 5, "average").isfinite().all()


@pytest.mark.parametrize(
    ("policy", "tokens", "said"),
    [
        ("error", 10, r"\(batch, 5, 12\).*given \(1, 10, 12\); GoldenNoise\(..., tokens=\"truncate\"\)"),
        ("error", 3, r"given \(1, 3, 12\); GoldenNoise\(..., tokens=\"truncate\"\)"),
        ("average", 7, "expected chunks of 5 tokens for tokens='average', given 7 tokens"),
        ("average", 0, "given 0 tokens"),
        ("truncate", 0, "given 0 tokens"),
    ],
)
def test_refused(small_bundle: EngineBundle, policy: str, tokens: int, said: str) -> None:
    golden = GoldenNoise(small_bundle, device="cpu", tokens=policy)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=said):
        golden(NOISE, torch.randn(1, tokens, 12))
    with pytest.raises(InputError, match=said):
        golden.check_shapes(tuple(NOISE.shape), torch.empty(1, tokens, 12))


def test_width_is_never_fitted(small_bundle: EngineBundle) -> None:
    golden = GoldenNoise(small_bundle, device="cpu", tokens="truncate")
    with pytest.raises(InputError, match=r"given \(1, 10, 24\); this engine was built for that shape only"):
        golden(NOISE, torch.randn(1, 10, 24))


def test_unknown_policy(small_bundle: EngineBundle) -> None:
    with pytest.raises(InputError, match="tokens: expected one of error, truncate, average, given 'pad'"):
        GoldenNoise(small_bundle, device="cpu", tokens="pad")  # type: ignore[arg-type]


@pytest.mark.parametrize("prompts", [1, 2, 3, 6])
def test_each_prompt_serves_noises_in_a_row(prompts: int) -> None:
    embeds = torch.randn(prompts, 5, 7)
    given = one_for_each(embeds, 6)
    assert given.shape == (6, 5, 7)
    for row in range(6):
        assert torch.equal(given[row], embeds[row // (6 // prompts)])
