"""What a dataset of noise pairs says of itself: `npnet-pairs.json`, and the card in README.md."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from typing import Any, Self

from npnet_training.errors import DatasetError
from npnet_training.storage import Location, read_bytes, write_bytes

FILE, FORMAT_VERSION = "npnet-pairs.json", 1


@dataclass(frozen=True)
class PairInfo:
    """Model, shapes and settings of a dataset.

    Args:
        model: name of the text-to-image model, for `npnet_training.models.load_pipeline`.
        revision: its commit or digest, as `ModelInfo.revision`.
        latent_shape: (C, H, W) of the noise, of the first size where there are several.
        text_shape: (tokens, width) of the prompt embeddings.
        settings: everything the pairs depend on, as plain values.
        digest: hexadecimal, of the content; "" until the dataset is opened.
        texts: shapes of what the model encodes of a prompt, by field of `npnet_runtime.inputs.texts.Prompt`;
            the prompt embeddings alone if left out, as in datasets of old.
        latent_space: of the model, as `LatentSpace.to_dict`; None in datasets of old.
    """

    model: str
    revision: str | None
    latent_shape: tuple[int, int, int]
    text_shape: tuple[int, int]
    settings: dict[str, Any]
    digest: str = ""
    texts: dict[str, tuple[int, ...]] = field(default_factory=dict)
    latent_space: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.texts:
            object.__setattr__(self, "texts", {"embeds": self.text_shape})

    @property
    def has_targets(self) -> bool:
        """Whether the targets are golden noise, not the noise itself."""
        return bool(self.settings.get("targets", True))

    @property
    def identity(self) -> str:
        """Hexadecimal sha256 of all but the content: every shard of the dataset has it in its metadata."""
        return sha256(json.dumps(self._values(), sort_keys=True).encode()).hexdigest()

    def write(self, folder: Location) -> None:
        """Write the file and the card.

        Raises:
            OSError: the folder cannot be written.
        """
        values = {"format_version": FORMAT_VERSION, **self._values()}
        for name, text in ((FILE, json.dumps(values, indent=1) + "\n"), ("README.md", self._card())):
            write_bytes(folder / name, text.encode())

    @classmethod
    def read(cls, folder: Location) -> Self:
        """Read what `write` wrote.

        Raises:
            DatasetError: missing, damaged, or of another version.
        """
        path = folder / FILE
        try:
            values = json.loads(read_bytes(path))
        except OSError as error:
            raise DatasetError(
                f"{folder}: expected a dataset of noise pairs, but {FILE} cannot be read ({error}); "
                "make one with npnet-collect"
            ) from error
        except ValueError as error:
            raise DatasetError(f"{path}: damaged ({error})") from error
        known = {item.name for item in fields(cls)} - {"digest"}
        version = values.pop("format_version", None) if isinstance(values, dict) else None
        if version != FORMAT_VERSION or set(values) | {"texts", "latent_space"} != known:
            raise DatasetError(f"{path}: expected format version {FORMAT_VERSION}, given {version}")
        values["latent_shape"] = tuple(values["latent_shape"])
        values["text_shape"] = tuple(values["text_shape"])
        values["texts"] = {name: tuple(shape) for name, shape in values.get("texts", {}).items()}
        return cls(**values)

    def _values(self) -> dict[str, Any]:
        values = asdict(self)
        del values["digest"]
        if [*self.texts] == ["embeds"]:
            del values["texts"]  # as in datasets of old, whose identity stays the same
        if self.latent_space is None:
            del values["latent_space"]
        return values

    def _what(self) -> str:
        if not self.has_targets:
            return "Source noise without golden noise (`target` is the noise itself), to train by reward"
        weight = {"embedded": "guidance that the denoiser reads", "text-mix": "the weight of the prompt"}
        turned = weight.get(self.settings.get("redenoise", {}).get("weight"), "classifier-free guidance")
        return (
            "Source noise and the golden noise that re-denoise sampling makes of it (arXiv 2411.09502,\n"
            f"section 3.1), by turning {turned} up and down"
        )

    def _card(self) -> str:
        return f"""---
configs:
- config_name: default
  data_files: data/*.parquet
---
# Noise pairs of {self.model}

{self._what()}, made by `npnet-collect`.

- model: `{self.model}`, revision `{self.revision}`
- noise: {self.latent_shape}; `target` is float16, flattened; `source` is null where it is
  `npnet_training.sampling.draw_noise([seed], {self.latent_shape})`
- `kept` rows are trained on; `decision` says why or why not; `plain/NAME` and `redenoised/NAME` are the
  scores of the images from both noises

```json
{json.dumps(self.settings, indent=1)}
```
"""
