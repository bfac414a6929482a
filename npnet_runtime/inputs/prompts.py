"""Prompt embeddings of another number of tokens than the network reads.

CLIP reads 77 tokens. Tools for long or weighted prompts encode such a prompt as several chunks of 77 and
hand over all their embeddings in a row; tools that leave out the padding hand over fewer. The network
reads the embeddings once, in a linear layer (`NPNet.text_affine`), so both policies say plainly what the
network gets to see:

* `"truncate"`: the first chunk, that is, how the prompt begins;
* `"average"`: the mean of the chunks, which gives the mean of the scales and shifts that the chunks would
  give one by one.

Fewer tokens than a chunk are followed by zeros: in a linear layer a token that is not there adds nothing.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from npnet_runtime.errors import InputError

TokenPolicy = Literal["error", "truncate", "average"]


def check_token_policy(policy: str) -> None:
    """Check the name of a policy.

    Raises:
        InputError: there is none of that name.
    """
    if policy not in get_args(TokenPolicy):
        raise InputError(f"tokens: expected one of {', '.join(get_args(TokenPolicy))}, given {policy!r}")


def check_tokens(given: int, tokens: int, policy: TokenPolicy) -> None:
    """Check that a policy has an answer to a number of tokens.

    Args:
        given: tokens of the prompt embeddings.
        tokens: what the network reads.
        policy: "truncate" or "average".

    Raises:
        InputError: the policy has no answer to that number.
    """
    if given == 0 or (policy == "average" and given > tokens and given % tokens):
        raise InputError(
            f"prompt_embeds: expected chunks of {tokens} tokens for tokens={policy!r}, given {given} tokens; "
            "let the prompt's encoder pad the last chunk"
        )


def fit_tokens(prompt_embeds: Tensor, tokens: int, policy: TokenPolicy) -> Tensor:
    """Prompt embeddings of the number of tokens that the network reads.

    Args:
        prompt_embeds: (P, T, width), checked.
        tokens: what the network reads.
        policy: see the module.

    Returns:
        (P, tokens, width).
    """
    given = prompt_embeds.shape[1]
    if given == tokens:
        return prompt_embeds
    if given < tokens:
        return F.pad(prompt_embeds, (0, 0, 0, tokens - given))
    if policy == "average":
        # float32: the sum of many chunks in half precision rounds
        return prompt_embeds.float().unflatten(1, (-1, tokens)).mean(1)
    return prompt_embeds[:, :tokens]


def one_for_each(prompts: Tensor, batch: int) -> Tensor:
    """(P, ...) -> (batch, ...), each prompt for batch / P noises in a row."""
    if len(prompts) == 1:
        return prompts.expand(batch, *prompts.shape[1:])
    if len(prompts) == batch:
        return prompts
    return prompts.repeat_interleave(batch // len(prompts), dim=0)
