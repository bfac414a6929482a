"""The cache of encoded prompts: what a model encodes comes back as it was, of any length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from npnet_runtime.inputs.texts import Prompt
from npnet_training.errors import DatasetError
from npnet_training.training import embeddings
from npnet_training.training.embeddings import EmbeddingCache, model_key

TEXTS = {"embeds": (9, 4), "mask": (9,), "pooled": (3,)}


def encode(prompts: Sequence[str]) -> Prompt:
    """A token for each letter; the mask is left out where it says nothing, as some pipelines do."""
    longest = max(map(len, prompts))
    embeds, mask = torch.full((len(prompts), longest, 4), 7.0), torch.zeros(len(prompts), longest)
    for row, prompt in enumerate(prompts):
        embeds[row, : len(prompt)] = torch.tensor([float(ord(letter)) for letter in prompt])[:, None]
        mask[row, : len(prompt)] = 1
    pooled = torch.tensor([[float(len(prompt))] * 3 for prompt in prompts])
    return Prompt(embeds, None if mask.all() else mask.long(), pooled)


def test_prompts_of_every_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "PROMPTS_PER_SHARD", 2)
    prompts = ["ab", "c", "defgh", "ijk", "lmn"]
    cache = EmbeddingCache(tmp_path, "key", TEXTS, torch.float32)
    cache.fill(cache.missing(prompts), encode, 2)
    cache.refresh()
    assert cache.missing(prompts) == []
    for asked in (["defgh", "c"], ["c"], ["ab", "lmn", "ab"], prompts):
        found, expected = cache.get(asked), encode(asked)
        longest = max(map(len, asked))
        assert found.embeds.shape == (len(asked), longest, 4)
        for row, prompt in enumerate(asked):
            assert torch.equal(found.embeds[row, : len(prompt)], expected.embeds[row, : len(prompt)])
            assert found.mask[row].tolist() == [True] * len(prompt) + [False] * (longest - len(prompt))
        assert torch.equal(found.pooled, expected.pooled)


def test_what_does_not_fit(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, "key", {**TEXTS, "embeds": (2, 4), "mask": (2,)}, torch.float32)
    with pytest.raises(DatasetError, match=r"of shape \(2, 4\), but their model gives \(3, 4\)"):
        cache.fill(["abc"], encode, 1)
    cache = EmbeddingCache(tmp_path, "key", {"embeds": (2, 4)}, torch.float32)
    with pytest.raises(DatasetError, match=r"of shape \(2, 4\), but their model gives \(1, 4\)"):
        cache.fill(["a"], encode, 1)  # without a mask nothing would tell what was filled up
    cache = EmbeddingCache(tmp_path, "key", {**TEXTS, "second_embeds": (2, 4)}, torch.float32)
    with pytest.raises(
        DatasetError, match="for prompts with second_embeds, which their model does not encode"
    ):
        cache.fill(["abc"], encode, 1)


def test_what_is_kept_is_in_the_key() -> None:
    plain = model_key("m", None, torch.float32)
    assert plain == model_key("m", None, torch.float32, {"embeds": (1, 1)})
    assert plain != model_key("m", None, torch.float32, TEXTS)
