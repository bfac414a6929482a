"""The real steps of a small network, which note when and on which stream they ran."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from npnet_kernels import latent_to_matrix, svd
from npnet_runtime import NPNet
from npnet_runtime.networks.npnet import NPNet as Network
from support.networks import SMALL
from support.streams import Clock, Cuda

TEXT_WEIGHT, RESIDUAL_WEIGHT = 0.4, 0.3


class Steps:
    """The passes of a network; `ran` holds the name of each step and the clock of its stream."""

    def __init__(self, network: Network, cuda: Cuda | None = None) -> None:
        self._network, self._cuda = network, cuda
        self.ran: list[tuple[str, Clock]] = []
        self.solvers: list[str] = []

    def note(self, step: str) -> None:
        clock = self._cuda.current_stream().work() if self._cuda else Clock()
        self.ran.append((step, clock))

    def before_prompt(self, noise: Tensor, solver: str = "auto") -> Tensor:
        self.note("before")
        self.solvers.append(solver)
        return self._network.spectral_half(noise, svd(latent_to_matrix(noise), signs="canonical"))

    def with_prompt(self, noise: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, ...]:
        self.note("with")
        return self._network.prompt_half(noise, prompt_embeds)

    def finish(self, early: Tensor | None, noise: Tensor, *prompted: Tensor) -> tuple[Tensor, Tensor]:
        self.note("finish")
        scale_shift, residual = prompted
        from npnet_kernels.reconstruction.reference import combine_with_peak_reference

        return combine_with_peak_reference(early, noise, scale_shift, residual, TEXT_WEIGHT, RESIDUAL_WEIGHT)

    def describe(self, device: torch.device) -> list[str]:
        return []


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """A `torch.cuda` that keeps account of order; `recorded` holds what `record_stream` was told."""
    svd(torch.ones(1, 2, 2))  # imports what looks at the real one
    stand_in = Cuda()
    for name in ("Stream", "Event", *(name for name in vars(Cuda) if name.islower() and name[0] != "_")):
        monkeypatch.setattr(torch.cuda, name, getattr(stand_in, name))
    monkeypatch.setattr(
        Tensor, "record_stream", lambda tensor, stream: stand_in.recorded.append((tensor.data_ptr(), stream))
    )
    return stand_in


@pytest.fixture
def steps(small_network: NPNet, cuda: Cuda) -> Steps:
    return Steps(small_network, cuda)


@pytest.fixture
def plain_steps(small_network: NPNet) -> Steps:
    return Steps(small_network)


@pytest.fixture
def expected(small_network: NPNet):
    """What the steps give for noise and prompts, without any path."""

    def compute(noise: Tensor, prompts: Tensor) -> Tensor:
        steps = Steps(small_network)
        return steps.finish(steps.before_prompt(noise), noise, *steps.with_prompt(noise, prompts))[0]

    assert small_network.config == SMALL
    return compute
