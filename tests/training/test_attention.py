"""Which kernel attends, and that a gradient by recomputation is the same."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from npnet_training.attention import FEW, attention_of_few


def fused() -> bool:
    return torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize(("tokens", "plain"), [(32, True), (FEW, True), (FEW + 1, False)])
def test_plain_products_for_few_tokens(tokens: int, plain: bool) -> None:
    with attention_of_few(tokens, torch.device("cpu")):
        assert fused() != plain
    assert fused()


def test_nothing_changes_where_blocks_are_computed_again() -> None:
    query = torch.randn(2, 2, 32, 8, requires_grad=True)
    with attention_of_few(32, torch.device("cpu"), recomputed=True):
        assert fused()
        out = checkpoint(lambda q: F.scaled_dot_product_attention(q, q, q), query, use_reentrant=False)
    out.sum().backward()
    assert query.grad is not None


def test_a_gpu_keeps_its_kernel() -> None:
    with attention_of_few(32, torch.device("cuda")):
        assert fused()
