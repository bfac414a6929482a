"""The weights an export starts from: a file, the hub, or a seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npnet_runtime import checkpoint
from npnet_runtime.errors import CheckpointError
from npnet_runtime.hub import download, looks_like_hub_id, split_hub_id
from npnet_runtime.models import ModelSpec
from npnet_runtime.networks import Network, NetworkConfig, network_from_state
from npnet_runtime.random_weights import random_state


@dataclass(frozen=True)
class WeightsRequest:
    """Where weights are to come from.

    Args:
        model: the registered model, or None when a checkpoint of the project's own form says its shapes.
        source: a path or `owner/repository[:file]`; None for the model's own repository.
        random_seed: make weights from this seed instead.
        offline: use the hub's cache only.
    """

    model: ModelSpec | None
    source: str | None = None
    random_seed: int | None = None
    offline: bool = False

    @property
    def description(self) -> str:
        """Where from, in words."""
        if self.random_seed is not None:
            return f"random weights, seed {self.random_seed}"
        if self.source is None and self.model is not None:
            return f"{self.model.repository}:{self.model.filename} on the Hugging Face hub"
        if self._is_path():
            return f"the file {self.source}"
        return f"{self.source} on the Hugging Face hub"

    def load(self) -> tuple[Network, dict[str, Any]]:
        """The float32 network, and what the manifest says of its weights.

        Raises:
            CheckpointError: the checkpoint is missing or does not fit.
            DownloadError: the hub does not have it, or cannot be reached.
        """
        config = self.config()
        if self.random_seed is not None and config is not None:
            network = network_from_state(config, random_state(config, self.random_seed))
            return network, {"source": "random", "random_seed": self.random_seed}
        read = checkpoint.read(self._fetch(), config)
        source = self.source
        if source is None and self.model is not None:
            source = f"{self.model.repository}:{self.model.filename}"
        return read.network(), {"source": source, "form": read.form, "sha256": read.sha256}

    def check(self) -> None:
        """Find out what can be known without loading them.

        Raises:
            CheckpointError: a file that does not exist.
        """
        if self._is_path() and not Path(str(self.source)).expanduser().is_file():
            raise CheckpointError(f"{self.source}: expected a checkpoint file, found no such file")

    def config(self) -> NetworkConfig | None:
        """Shapes of the network, where they are known before the weights are fetched.

        Raises:
            CheckpointError: a checkpoint of the project's own form that is damaged.
        """
        if self.model is not None:
            return self.model.config
        return checkpoint.own_config(Path(str(self.source)).expanduser()) if self._is_path() else None

    def _is_path(self) -> bool:
        return self.source is not None and (Path(self.source).exists() or not looks_like_hub_id(self.source))

    def _fetch(self) -> Path:
        if self._is_path():
            return Path(str(self.source)).expanduser()
        if self.source is None:
            if self.model is None:
                raise CheckpointError("no weights named: give --model, --weights or --random-weights")
            return download(self.model.repository, self.model.filename, offline=self.offline)
        default = self.model.filename if self.model else "model.safetensors"
        return download(*split_hub_id(self.source, default), offline=self.offline)
