"""The baseline is the published computation: checked against what the original implementation gave."""

from __future__ import annotations

import torch
from torch import Tensor

from baseline import PublishedNPNet
from npnet_kernels import SVD
from npnet_runtime import NPNet


def test_fixture(sdxl_network: NPNet, fixture: dict[str, Tensor]) -> None:
    baseline = PublishedNPNet(sdxl_network.config, sdxl_network.state_dict())
    noise, prompts = fixture["noise"], fixture["prompt_embeds"]
    with torch.inference_mode():
        given = SVD(fixture["U"], fixture["s"], fixture["Vh"])
        torch.testing.assert_close(baseline.unet_svd(noise, given), fixture["spectral"], atol=5e-5, rtol=0)
        torch.testing.assert_close(baseline(noise, prompts, given), fixture["golden"], atol=5e-5, rtol=0)
        # its own float32 SVD may differ in a few signs
        torch.testing.assert_close(baseline(noise, prompts), fixture["golden"], atol=1e-3, rtol=0)
