"""Prompt embeddings, computed once for every distinct prompt and kept on disk.

The published loop runs the text encoders in every step, on the prompt of the batch's first sample; here every
sample has its own prompt, and after the first epoch of the first run no text encoder is needed at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from npnet_runtime.files import atomic_file
from npnet_training.errors import DatasetError, TrainError
from npnet_training.training.shards import gather, open_shard, write_shard

PROMPTS_PER_SHARD = 512
Encode = Callable[[Sequence[str]], Tensor]
"""Prompts -> (B, tokens, width) float16 or float32, on any device."""


def model_key(model: str, revision: str | None, dtype: torch.dtype) -> str:
    """Name of what determines a prompt's embedding: the model's name, revision, files and dtype.

    The revision of a local folder is of its configuration only, so the sizes and times of its weights count
    as well.
    """
    parts = [model, str(revision), str(dtype)]
    folder = Path(model)
    if folder.is_dir():
        parts[0] = str(folder.resolve())
        for file in sorted(folder.rglob("*.safetensors")):
            stat = file.stat()
            parts.append(f"{file.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}")
    return sha256("\n".join(parts).encode()).hexdigest()[:32]


def prompt_key(prompt: str) -> str:
    """sha256 of a prompt's UTF-8."""
    return sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()


class EmbeddingCache:
    """Embeddings of one model's prompts.

    Args:
        root: the cache folder.
        key: `model_key` of the model.
        text_shape: (tokens, width) of an embedding.
        dtype: float16 or float32, as the model computes them.
    """

    def __init__(self, root: Path, key: str, text_shape: tuple[int, int], dtype: torch.dtype) -> None:
        self.folder = root / "embeddings" / key
        self.text_shape = text_shape
        self.dtype = dtype
        self._places: dict[str, tuple[int, int]] = {}
        self._files: list[tuple[Path, int]] = []
        self._shards: list[np.ndarray] = []
        self.refresh()

    @property
    def bytes_per_prompt(self) -> int:
        """Size of one embedding in the cache."""
        return self.text_shape[0] * self.text_shape[1] * self.dtype.itemsize

    def refresh(self) -> None:
        """Find the shards that any process has written.

        Raises:
            TrainError: an index is damaged.
        """
        self._places, self._files, self._shards = {}, [], []
        for index in sorted(self.folder.glob("*.json")):
            try:
                keys = json.loads(index.read_text(encoding="utf-8"))
                self._places |= {key: (len(self._files), row) for row, key in enumerate(keys)}
            except (OSError, ValueError, TypeError) as error:
                raise TrainError(f"{index}: damaged cache file ({error}); delete it") from error
            self._files.append((index.with_suffix(".npy"), len(keys)))

    def missing(self, prompts: Iterable[str]) -> list[str]:
        """The distinct prompts that have no embedding yet, in a fixed order."""
        absent = {key: prompt for prompt in set(prompts) if (key := prompt_key(prompt)) not in self._places}
        return [absent[key] for key in sorted(absent)]

    def fill(
        self, prompts: Sequence[str], encode: Encode, batch: int, *, process: int = 0, processes: int = 1
    ) -> None:
        """Encode this process's share of distinct `prompts`; other processes encode theirs meanwhile.

        Call `refresh` once all have.

        Raises:
            DatasetError: the model's embeddings are not of the dataset's shape.
            TrainError: the cache cannot be written.
        """
        own = prompts[process::processes]
        for start in range(0, len(own), PROMPTS_PER_SHARD):
            chunk = own[start : start + PROMPTS_PER_SHARD]
            rows = [encode(chunk[i : i + batch]).to(self.dtype).cpu() for i in range(0, len(chunk), batch)]
            embeds = torch.cat(rows)
            if embeds.shape[1:] != self.text_shape:
                raise DatasetError(
                    f"the pairs are for prompt embeddings of shape {tuple(self.text_shape)}, but their model "
                    f"gives {tuple(embeds.shape[1:])}: it is not the model they were collected with"
                )
            if not embeds.isfinite().all():
                bad = int((~embeds.flatten(1).isfinite().all(1)).nonzero()[0])
                raise DatasetError(
                    f"the text encoders give no finite embedding for the prompt {chunk[bad]!r}"
                )
            keys = [prompt_key(prompt) for prompt in chunk]
            path = self.folder / f"{sha256(''.join(keys).encode()).hexdigest()[:32]}.npy"
            write_shard(path, embeds.numpy())
            # The index comes last: a shard without one does not exist.
            with atomic_file(path.with_suffix(".json")) as temporary:
                temporary.write_text(json.dumps(keys), encoding="utf-8")

    def get(self, prompts: Sequence[str]) -> Tensor:
        """(B, tokens, width) of prompts that have been encoded, on the CPU."""
        if not self._shards:
            self._shards = [open_shard(path, rows, self.text_shape) for path, rows in self._files]
        return torch.from_numpy(gather(self._shards, [self._places[prompt_key(p)] for p in prompts]))

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_shards": []}
