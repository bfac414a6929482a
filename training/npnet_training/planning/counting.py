"""Operations and memory of a call of a network, counted on the device `meta`: no tensor has memory there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

OUTSIDE = ""


@dataclass
class Counted:
    """What a call of a network takes.

    Args:
        flops: operations of its products, forward.
        saved: bytes kept for the gradient, by the name of the block they are made in.
        inputs: bytes that go into each block.
    """

    flops: float = 0
    saved: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, int] = field(default_factory=dict)

    @property
    def whole(self) -> int:
        """Bytes kept for a gradient without checkpointing."""
        return sum(self.saved.values())

    @property
    def checkpointed(self) -> int:
        """Bytes kept, at most, where each block is computed again for its gradient."""
        blocks = [size for name, size in self.saved.items() if name != OUTSIDE]
        return self.saved.get(OUTSIDE, 0) + sum(self.inputs.values()) + max(blocks, default=0)


def count(network: nn.Module, call: Callable[[], Any], blocks: tuple[str, ...] = ()) -> Counted:
    """Count a call.

    Args:
        network: on `meta`, frozen; what is asked for is the gradient in its input.
        call: of the network, with inputs on `meta` that have a gradient.
        blocks: names of the classes of its blocks that checkpointing computes again.
    """
    found = Counted()
    scope = [OUTSIDE]
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    seen: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage._cdata not in seen:
            seen[storage._cdata] = tensor  # as long as it is kept, its storage has that address to itself
            found.saved[scope[-1]] = found.saved.get(scope[-1], 0) + storage.nbytes()
        return tensor

    with (
        _scopes(network, blocks, scope, found),
        _Attention() as attention,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        FlopCounterMode(display=False) as flops,
    ):
        call()
    found.flops = flops.get_total_flops() + attention.flops
    return found


@contextmanager
def _scopes(network: nn.Module, blocks: tuple[str, ...], scope: list[str], found: Counted) -> Iterator[None]:
    hooks = []

    def begin(name: str, arguments: Any, keywords: Any) -> None:
        if scope[-1] == OUTSIDE:
            tensors = [v for v in (*arguments, *keywords.values()) if isinstance(v, Tensor)]
            found.inputs[name] = max((t.untyped_storage().nbytes() for t in tensors), default=0)
        scope.append(name if scope[-1] == OUTSIDE else scope[-1])

    for name, module in network.named_modules():
        if type(module).__name__ in blocks:
            hooks.append(
                module.register_forward_pre_hook(
                    lambda _, arguments, keywords, name=name: begin(name, arguments, keywords),
                    with_kwargs=True,
                )
            )
            hooks.append(module.register_forward_hook(lambda *_: scope.pop() and None))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Attention(TorchFunctionMode):
    """Attention as fused kernels do it, which keep no matrix of queries by keys; `flops` of all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.scaled_dot_product_attention:
            query, key, value = (
                args[:3] if len(args) > 2 else (kwargs["query"], kwargs["key"], kwargs["value"])
            )
            pairs = math.prod(query.shape[:-1]) * key.shape[-2]
            self.flops += 2 * pairs * (query.shape[-1] + value.shape[-1])
            return _Fused.apply(query, key, value)
        return function(*args, **(kwargs or {}))


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty((*query.shape[:-1], value.shape[-1]))
        context.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError("counted forward only")


def parameters_of(network: nn.Module) -> int:
    """How many weights it has."""
    return sum(parameter.numel() for parameter in network.parameters())
