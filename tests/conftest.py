"""Fixtures of the whole suite."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from torch import Tensor

from npnet_export import ExportSettings, export
from npnet_export.weights import WeightsRequest
from npnet_runtime import EngineBundle, NPNet, NPNetConfig
from npnet_runtime.networks.random_weights import random_state
from npnet_runtime.networks.registry import network_from_state
from npnet_runtime.threads import available_cores
from npnet_runtime.weights import checkpoint
from npnet_runtime.weights.models import MODELS
from support.missing_packages import SkipMissingPackages
from support.networks import DATA, SMALL, parity_draw, parity_state
from support.published_files import write_pth

WORKERS = 4


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process for each core, up to `WORKERS`; one for tests on the GPU, which share it."""
    on_gpu = "gpu" in config.option.markexpr.replace("not gpu", "")
    return 0 if on_gpu else min(available_cores(), WORKERS)


def pytest_configure(config: pytest.Config) -> None:
    """Share the cores between the processes: threads that wait for one another's core are slower than one."""
    config.pluginmanager.register(SkipMissingPackages())
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # by a shell, for what it runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    if count > 1:
        threads = max(1, available_cores() // count)
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of the commands that tests start


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh buffers hold NaN, so that a value nobody wrote cannot pass for a result."""
    for owner, name in ((torch, "empty_like"), (torch.Tensor, "new_empty")):
        original = getattr(owner, name)

        def poisoned(*args: object, _original: object = original, **kwargs: object) -> Tensor:
            fresh = _original(*args, **kwargs)
            return fresh.fill_(torch.nan) if fresh.is_floating_point() and not fresh.is_meta else fresh

        monkeypatch.setattr(owner, name, poisoned)


@pytest.fixture(scope="session")
def fixture() -> dict[str, Tensor]:
    """What the original implementation gave, and the inputs it was given."""
    tensors = load_file(DATA / "npnet_sdxl_parity.safetensors")
    tensors["noise"] = torch.from_numpy(parity_draw("sdxl.noise", (2, 4, 128, 128)))
    tensors["prompt_embeds"] = torch.from_numpy(parity_draw("sdxl.prompt_embeds", (2, 77, 2048)))
    return tensors


@pytest.fixture(scope="session")
def sdxl_network() -> NPNet:
    """The SDXL network with the fixture's weights."""
    config = MODELS["sdxl"].config
    return network_from_state(config, parity_state(config))


@pytest.fixture(scope="session")
def sdxl_checkpoint(sdxl_network: NPNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture's weights as the authors would release them."""
    return write_pth(tmp_path_factory.mktemp("weights") / "sdxl.pth", sdxl_network.state_dict())


class OnDemand(dict[str, EngineBundle]):
    """Engines by name, each built when it is first asked for, once for all processes of a run.

    Args:
        folder: common to these processes.
        settings: of an engine, from its name and the folder it is to be written to.
    """

    def __init__(self, folder: Path, settings: Callable[[str, Path], ExportSettings]) -> None:
        super().__init__()
        self._folder, self._settings = folder, settings

    def __missing__(self, name: str) -> EngineBundle:
        path = self._folder / name
        with FileLock(self._folder / f"{name}.lock"):
            # a bundle is there whole or not at all
            made = EngineBundle.open(path) if path.exists() else export(self._settings(name, path))
        self[name] = made
        return made


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of a run share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "common"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def sdxl_bundles(sdxl_checkpoint: Path, common: Path) -> dict[str, EngineBundle]:
    """Full-size engines with the fixture's weights, and with the signs as the routine gives them."""
    weights = WeightsRequest(MODELS["sdxl"], str(sdxl_checkpoint))
    folder = common / "sdxl"
    folder.mkdir(exist_ok=True)

    def settings(name: str, path: Path) -> ExportSettings:
        engine, _, precision = name.rpartition("-")
        # one batch size in place of any: AOTInductor takes half the time
        batch = 1 if engine == "aoti" else 8
        return ExportSettings(weights, path, "sdxl", engine, precision, "as-is", batch, device="cpu")

    return OnDemand(folder, settings)


@pytest.fixture(scope="session")
def full_size_checkpoints(sdxl_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The fixture's weights of SDXL, and weights by the same rule of Hunyuan-DiT's shapes, as released."""
    state = parity_state(MODELS["hunyuan-dit"].config)
    hunyuan = write_pth(tmp_path_factory.mktemp("weights") / "hunyuan-dit.pth", state)
    return {"sdxl": sdxl_checkpoint, "hunyuan-dit": hunyuan}


@pytest.fixture(scope="session")
def small_state() -> dict[str, Tensor]:
    """Weights of the small network."""
    return random_state(SMALL, 0)


@pytest.fixture(scope="session")
def small_network(small_state: dict[str, Tensor]) -> NPNet:
    """The small network."""
    return network_from_state(SMALL, small_state)


@pytest.fixture(scope="session")
def small_checkpoint(small_state: dict[str, Tensor], common: Path) -> Path:
    """The small network's weights in the project's own form."""
    path = common / "small.safetensors"
    with FileLock(common / "small.lock"):
        if not path.exists():
            checkpoint.write(path, small_state, SMALL)
    return path


def small_settings(checkpoint_path: Path, output: Path, **changes: object) -> ExportSettings:
    """Settings to export the small network."""
    weights = WeightsRequest(None, str(checkpoint_path))
    options = {"name": "small", "engine": "torch", "max_batch": 3, "device": "cpu"} | changes
    return ExportSettings(weights=weights, output=output, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def small_bundles(small_checkpoint: Path, common: Path) -> dict[str, EngineBundle]:
    """Small engines of every kind, for batches up to 3."""
    folder = common / "small"
    folder.mkdir(exist_ok=True)
    return OnDemand(folder, lambda engine, path: small_settings(small_checkpoint, path, engine=engine))


@pytest.fixture(scope="session")
def small_torch_bundle(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineBundle:
    """A small engine of the kind that takes no time to make."""
    return export(small_settings(small_checkpoint, tmp_path_factory.mktemp("engines") / "torch"))


@pytest.fixture(params=["torch", "onnxruntime", "openvino", "aoti"])
def small_bundle(request: pytest.FixtureRequest, small_bundles: dict[str, EngineBundle]) -> EngineBundle:
    """A small engine of each kind. Not to be written to: `copied_bundle` is."""
    return small_bundles[request.param]


@pytest.fixture
def export_small(small_checkpoint: Path):
    """`small_settings` with the checkpoint filled in."""

    def settings(output: Path, **changes: object) -> ExportSettings:
        return small_settings(small_checkpoint, output, **changes)

    return settings


@pytest.fixture
def config() -> NPNetConfig:
    """The small network's shapes."""
    return SMALL
