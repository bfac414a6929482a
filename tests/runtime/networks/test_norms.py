"""A group norm in an exported graph is the same norm, in operators that every engine has."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npnet_runtime.networks.norms import GroupNorm, group_norm


class Whole(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return group_norm(x, 1, eps=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
@pytest.mark.parametrize("affine", [False, True])
def test_exported_is_the_same(scale: float, affine: bool) -> None:
    torch.manual_seed(0)
    module: nn.Module = GroupNorm(3, 6) if affine else Whole()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = scale * torch.randn(2, 6, 5, 7) + 3 * scale
    program = torch.export.export(module, (x,))
    names = {str(node.target) for node in program.graph.nodes}
    assert not any("group_norm" in name for name in names)
    # two orders of summation over at most 210 values, of a mean three times the deviation
    torch.testing.assert_close(program.module()(x), module(x), atol=2e-5, rtol=1e-5)


def test_eager_is_torchs_own() -> None:
    x = torch.randn(2, 6, 5, 7)
    assert torch.equal(group_norm(x, 2), F.group_norm(x, 2))
    norm = GroupNorm(2, 6)
    assert torch.equal(norm(x), F.group_norm(x, 2, norm.weight, norm.bias, norm.eps))
