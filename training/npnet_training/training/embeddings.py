"""Encoded prompts, computed once for every distinct prompt and kept on disk.

The published loop runs the text encoders in every step, on the prompt of the batch's first sample; here every
sample has its own prompt, and after the first epoch of the first run no text encoder is needed at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from npnet_runtime.files import atomic_file
from npnet_runtime.inputs.texts import Prompt
from npnet_training.errors import DatasetError, TrainError
from npnet_training.sampling.conditioning import filled_up
from npnet_training.training.shards import gather, open_shard, write_shard

PROMPTS_PER_SHARD = 512
OF_TOKENS = ("embeds", "mask", "second_embeds", "second_mask")
Encode = Callable[[Sequence[str]], Prompt]
"""Prompts -> what the pipeline encodes of them, (B, ...) float16 or float32, on any device."""


def model_key(
    model: str, revision: str | None, dtype: torch.dtype, texts: Iterable[str] = ("embeds",)
) -> str:
    """Name of what determines an encoded prompt: the model and its files, the dtype, what is kept.

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
    parts += [text for text in texts if text != "embeds"]
    return sha256("\n".join(parts).encode()).hexdigest()[:32]


def prompt_key(prompt: str) -> str:
    """sha256 of a prompt's UTF-8."""
    return sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()


class EmbeddingCache:
    """Encoded prompts of one model.

    Args:
        root: the cache folder.
        key: `model_key` of the model.
        texts: shape of each field of `Prompt` that is kept, of one prompt; of tokens, where there is a mask,
            as many as there may be at most.
        dtype: float16 or float32, as the model computes them.
    """

    def __init__(
        self, root: Path, key: str, texts: Mapping[str, tuple[int, ...]], dtype: torch.dtype
    ) -> None:
        self.folder = root / "embeddings" / key
        self.texts = dict(texts)
        self.dtype = dtype
        self._places: dict[str, tuple[int, int]] = {}
        self._files: list[tuple[Path, int]] = []
        self._shards: dict[str, list[np.ndarray]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Find the shards that any process has written.

        Raises:
            TrainError: an index is damaged.
        """
        self._places, self._files, self._shards = {}, [], {}
        for index in sorted(self.folder.glob("*.json")):
            try:
                keys = json.loads(index.read_text(encoding="utf-8"))
                self._places |= {key: (len(self._files), row) for row, key in enumerate(keys)}
            except (OSError, ValueError, TypeError) as error:
                raise TrainError(f"{index}: damaged cache file ({error}); delete it") from error
            self._files.append((index.with_suffix(".npy"), len(keys)))

    def missing(self, prompts: Iterable[str]) -> list[str]:
        """The distinct prompts that are not kept yet, in a fixed order."""
        absent = {key: prompt for prompt in set(prompts) if (key := prompt_key(prompt)) not in self._places}
        return [absent[key] for key in sorted(absent)]

    def fill(
        self, prompts: Sequence[str], encode: Encode, batch: int, *, process: int = 0, processes: int = 1
    ) -> None:
        """Encode this process's share of distinct `prompts`; other processes encode theirs meanwhile.

        Call `refresh` once all have.

        Raises:
            DatasetError: what the model encodes is not of the dataset's shapes.
            TrainError: the cache cannot be written.
        """
        own = prompts[process::processes]
        for start in range(0, len(own), PROMPTS_PER_SHARD):
            chunk = own[start : start + PROMPTS_PER_SHARD]
            parts = [encode(chunk[i : i + batch]).padded() for i in range(0, len(chunk), batch)]
            keys = [prompt_key(prompt) for prompt in chunk]
            path = self.folder / f"{sha256(''.join(keys).encode()).hexdigest()[:32]}.npy"
            for text in self.texts:
                values = self._joined(text, parts)
                if not values.isfinite().all():
                    bad = int((~values.flatten(1).isfinite().all(1)).nonzero()[0])
                    raise DatasetError(
                        f"the text encoders give no finite embedding for the prompt {chunk[bad]!r}"
                    )
                write_shard(_file_of(path, text), values.numpy())
            # The index comes last: a shard without one does not exist.
            with atomic_file(path.with_suffix(".json")) as temporary:
                temporary.write_text(json.dumps(keys), encoding="utf-8")

    def get(self, prompts: Sequence[str]) -> Prompt:
        """Prompts that have been encoded, on the CPU, in as many tokens as the longest of them has."""
        if not self._shards:
            for text, (first, *others) in self.texts.items():
                shape = (None if text in OF_TOKENS else first, *others)
                self._shards[text] = [
                    open_shard(_file_of(path, text), rows, shape) for path, rows in self._files
                ]
        places = [self._places[prompt_key(prompt)] for prompt in prompts]
        found = {text: torch.from_numpy(gather(shards, places)) for text, shards in self._shards.items()}
        for mask, embeds in (("mask", "embeds"), ("second_mask", "second_embeds")):
            if mask in found:
                read = found[mask].any(0).nonzero()
                longest = int(read.max()) + 1 if len(read) else 1
                found[mask], found[embeds] = found[mask][:, :longest], found[embeds][:, :longest]
        return Prompt(**found)

    def _joined(self, text: str, parts: Sequence[Prompt]) -> Tensor:
        """A field of all prompts of a shard, (rows, ...), filled up to its longest."""
        of_mask = text.endswith("mask")
        values: list[Tensor] = []
        for part in parts:
            value = getattr(part, text)
            if value is None and of_mask:  # all are tokens
                embeds: Tensor = getattr(part, text.replace("mask", "embeds"))
                value = embeds.new_ones(embeds.shape[:2])
            if value is None:
                raise DatasetError(
                    f"the pairs are for prompts with {text}, which their model does not encode"
                )
            values.append((value != 0).cpu() if of_mask else value.to(self.dtype).cpu())
        expected = self.texts[text]
        filled = f"{text.removesuffix('embeds')}mask" in self.texts or of_mask
        for value in values:
            given = tuple(value.shape[1:])
            shorter = filled and text in OF_TOKENS and given[0] <= expected[0]
            if given[1:] != expected[1:] or not (given == expected or shorter):
                raise DatasetError(
                    f"the pairs are for prompt embeddings of shape {expected}, but their model gives "
                    f"{given}: it is not the model they were collected with"
                )
        if text not in OF_TOKENS:
            return torch.cat(values)
        longest = max(value.shape[1] for value in values)
        return torch.cat([filled_up(value, longest) for value in values])

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_shards": {}}


def _file_of(path: Path, text: str) -> Path:
    return path if text == "embeds" else path.with_suffix(f".{text}.npy")
