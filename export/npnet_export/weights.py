"""The weights an export starts from: a file, the hub, or a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from npnet_export.records import training_of
from npnet_runtime.bundles.made_for import KINDS, LatentSpace
from npnet_runtime.errors import BundleError, CheckpointError, ConfigError
from npnet_runtime.integrations.diffusers.lora_file import find_lora
from npnet_runtime.networks.random_weights import random_state
from npnet_runtime.networks.registry import Network, NetworkConfig, network_from_state
from npnet_runtime.weights import checkpoint
from npnet_runtime.weights.hub import download, download_first, looks_like_hub_id, split_hub_id
from npnet_runtime.weights.models import MODELS, ModelSpec
from npnet_runtime.weights.packaged import PACKAGED, PackagedModel

DEFAULT_FILE = "model.safetensors"


def all_models() -> dict[str, ModelSpec | PackagedModel]:
    """Every model that there are weights of by its name: released ones on the hub, and bundled ones."""
    return {**MODELS, **PACKAGED}


def get_model(name: str) -> ModelSpec | PackagedModel:
    """One of them.

    Raises:
        ConfigError: no such model.
    """
    models = all_models()
    if name not in models:
        raise ConfigError(f"unknown model {name!r}: expected one of {', '.join(models)}")
    return models[name]


@dataclass(frozen=True)
class WeightsRequest:
    """Where weights are to come from.

    Args:
        model: the registered model, or None when a checkpoint of the project's own form says its shapes.
        source: a path or `owner/repository[:file]`; None for the model's own repository or bundled file.
        random_seed: make weights from this seed instead.
        offline: use the hub's cache only.
        shapes: of a network with random weights that is no registered model's.
        reads: what it reads of a pipeline's prompt; see `Manifest.reads`.
        latent_space: of that pipeline.
        made_for: the pipeline that `--for` named, and the size; for the manifest.
    """

    model: ModelSpec | PackagedModel | None
    source: str | None = None
    random_seed: int | None = None
    offline: bool = False
    shapes: NetworkConfig | None = None
    reads: dict[str, str] | None = None
    latent_space: LatentSpace | None = None
    made_for: dict[str, str] = field(default_factory=dict)

    @property
    def description(self) -> str:
        """Where from, in words."""
        if self.random_seed is not None:
            return f"random weights, seed {self.random_seed}"
        if self.source is None and self.model is not None:
            return self.model.description
        if self._is_path():
            return f"the file {self.source}"
        return f"{self.source} on the Hugging Face hub"

    @property
    def downloads(self) -> bool:
        """Whether they come from the hub, or its cache."""
        if self.random_seed is not None or self._is_path():
            return False
        return self.source is not None or isinstance(self.model, ModelSpec)

    def load(self) -> tuple[Network, dict[str, Any], dict[str, Any]]:
        """The float32 network, and what the manifest says of its weights and of what it was made for.

        Raises:
            CheckpointError: the checkpoint is missing or does not fit.
            DownloadError: the hub does not have it, or cannot be reached.
            PackagedError: the bundled file is missing or altered.
            ExportError: the record of the training run beside it is damaged.
        """
        config = self.config()
        if self.random_seed is not None and config is not None:
            network = network_from_state(config, random_state(config, self.random_seed))
            random = {"source": "random", "random_seed": self.random_seed, **self.made_for}
            return network, random, {} if self.latent_space is None else {"latent_space": self.latent_space}
        path, named = self._fetch()
        if find_lora(path) is not None:
            raise CheckpointError(
                f"{path}: a LoRA of golden noise is served as it is, by the pipeline's own denoiser, and has "
                f"no engine: npnet_runtime.GoldenLora({str(path)!r}).attach(pipe)"
            )
        read = checkpoint.read(path, config)
        trained = training_of(path) if self._is_path() else {}
        named |= {"form": read.form, "sha256": read.sha256, **trained}
        return read.network(), named, made_for_from(path, read.made_for)

    def check(self) -> None:
        """Find out what can be known without loading them.

        Raises:
            CheckpointError: a file that does not exist.
            PackagedError: the bundled file is missing or altered.
        """
        self._packaged()
        if self._is_path() and not Path(str(self.source)).expanduser().is_file():
            raise CheckpointError(f"{self.source}: expected a checkpoint file, found no such file")

    def config(self) -> NetworkConfig | None:
        """Shapes of the network, where they are known before the weights are fetched.

        Raises:
            CheckpointError: a checkpoint of the project's own form that is damaged.
            PackagedError: the bundled file is missing or altered.
        """
        if self.shapes is not None:
            return self.shapes
        if isinstance(self.model, ModelSpec):
            return self.model.config
        path = Path(str(self.source)).expanduser() if self._is_path() else self._packaged()
        return None if path is None else checkpoint.own_config(path)

    def _is_path(self) -> bool:
        return self.source is not None and (Path(self.source).exists() or not looks_like_hub_id(self.source))

    def _packaged(self) -> Path | None:
        return self.model.path() if self.source is None and isinstance(self.model, PackagedModel) else None

    def _fetch(self) -> tuple[Path, dict[str, str | None]]:
        """The file, and how the manifest names it: by no path of this machine where none was given."""
        if self._is_path():
            return Path(str(self.source)).expanduser(), {"source": self.source}
        if self.source is not None:
            default = self.model.sources[0].filename if isinstance(self.model, ModelSpec) else DEFAULT_FILE
            repository, filename = split_hub_id(self.source, default)
            return download(repository, filename, offline=self.offline), {"source": self.source}
        if isinstance(self.model, PackagedModel):
            file = f"{self.model.folder}/{self.model.filename}"
            return self.model.path(), {"package": self.model.package, "file": file}
        if self.model is None:
            raise CheckpointError("no weights named: give --model, --weights or --random-weights")
        path, source = download_first(self.model.sources, offline=self.offline)
        return path, {"source": str(source)}


def made_for_from(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says it was trained in front of, as fields of the manifest.

    Raises:
        CheckpointError: it is malformed.
    """
    try:
        return {name: KINDS[name].from_dict(value) for name, value in values.items()}
    except (KeyError, BundleError) as error:
        raise CheckpointError(f"{path}: unreadable metadata ({error})") from error
