"""When CUDA graphs are used, and what is said where they are not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from npnet_runtime.errors import BackendError
from npnet_runtime.hot_path import choose_graphs, passes
from npnet_runtime.hot_path.passes import capture_obstacle
from support.networks import SHAPES, SMALL, SMALL_ATTENTION


@pytest.mark.parametrize(
    ("asked", "device", "obstacles", "captured", "said"),
    [
        (None, "cuda", (None, None), True, "on: every part"),
        (True, "cuda", (None, None), True, "on: every part"),
        (False, "cuda", (None, None), False, "off: cuda_graphs=False was asked for"),
        (None, "cuda", ("it waits", None), False, "off: it waits"),
        (None, "cuda", (None, "svd: no"), False, "off: svd: no"),
        (False, "cuda", ("it waits", None), False, "asked for"),
        (None, "cpu", (None, None), False, "off: the engine runs on the cpu"),
        (None, "xpu", (None, None), False, "off: the engine runs on the xpu"),
    ],
)
def test_choice(asked, device: str, obstacles: tuple, captured: bool, said: str) -> None:
    choice = choose_graphs(asked, device, obstacles, "2.13.0+cu130")
    assert choice.captured is captured
    assert said in str(choice)


@pytest.mark.parametrize(("device", "obstacle"), [("cuda", "it waits"), ("cpu", None)])
def test_asked_for_in_vain(device: str, obstacle: str | None) -> None:
    with pytest.raises(BackendError, match=r"given one that they cannot: .*pass cuda_graphs=False"):
        choose_graphs(True, device, (obstacle, None))


@pytest.mark.parametrize(("asked", "captured"), [(None, False), (True, True), (False, False)])
def test_torch_whose_captures_disturb_others(asked: bool | None, captured: bool) -> None:
    """Graphs have to be asked for, and whoever leaves it open hears why there are none."""
    choice = choose_graphs(asked, "cuda", (None,), "2.11.0+cu130")
    assert choice.captured is captured
    if asked is None:
        assert "torch>=2.13, or cuda_graphs=True and warm_up()" in str(choice)


def test_what_the_svd_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "has_triton", lambda: True)
    assert capture_obstacle(replace(SMALL, latent_height=64, latent_width=64)) is None
    assert "square matrices" in str(capture_obstacle(SHAPES["landscape"]))
    assert capture_obstacle(SMALL_ATTENTION) is None  # it has no SVD
    monkeypatch.setattr(passes, "has_triton", lambda: False)
    assert "Triton 3.6 or newer is not installed" in str(capture_obstacle(SMALL))
