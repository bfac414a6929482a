"""A text encoder of the network's own: with one, a bundle serves every model of a latent space.

FLUX.1, Chroma and Z-Image share an autoencoder and read different texts. A network that is given the prompt
by an encoder of its own is the same in front of all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from npnet_runtime.bundles.made_for import TextEncoderId
from npnet_runtime.errors import DownloadError, InputError, PackagedError
from npnet_runtime.files import sha256 as file_sha256
from npnet_runtime.inputs.texts import Prompt
from npnet_runtime.weights.hub import looks_like_hub_id
from npnet_runtime.weights.packaged import PACKAGED

REGISTERED = {
    "clip-l": "stabilityai/stable-diffusion-xl-base-1.0",
    "t5-xxl": "black-forest-labs/FLUX.1-schnell",
}
"""Short names: repositories of pipelines, of which the first text encoder of that kind is taken."""
_PARTS = {"t5-xxl": ("text_encoder_2", "tokenizer_2")}
_DEFAULT_PARTS = ("text_encoder", "tokenizer")
_MOST_TOKENS = 256  # of encoders whose tokenizer knows no end
_CLASSES = {
    "clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel",
    "t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel",
}  # fmt: skip


@dataclass(frozen=True)
class TextEncoder:
    """A loaded text encoder.

    Args:
        id: what names it in a bundle.
        model: of transformers.
        tokenizer: likewise.
    """

    id: TextEncoderId
    model: Any
    tokenizer: Any

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Prompt:
        """Embeddings (P, tokens, width) of prompts, and their mask; longer ones are cut.

        Raises:
            InputError: what is given is no text.
        """
        if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
            raise InputError(f"prompts: expected a list of texts, given {prompts!r}")
        read = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.id.tokens, truncation=True,
            return_tensors="pt", return_attention_mask=True,
        ).to(self.model.device)  # fmt: skip
        # CLIP was trained without a mask: what follows the end says as much as the end.
        masked = {} if "CLIP" in type(self.model).__name__ else {"attention_mask": read.attention_mask}
        states: Tensor = self.model(input_ids=read.input_ids, **masked).last_hidden_state
        return Prompt(states, read.attention_mask)


def load_text_encoder(
    name: str,
    *,
    device: torch.device | str = "cpu",
    revision: str | None = None,
    offline: bool = False,
) -> TextEncoder:
    """Load a text encoder in float32.

    Args:
        name: of `REGISTERED`, of the bundled model, `owner/repository`, or a folder; of a pipeline, or of the
            encoder itself.
        device: where to.
        revision: branch, tag or commit of a repository.
        offline: look in the hub's cache only.

    Raises:
        InputError: transformers is missing, or there is no text encoder there.
        DownloadError: the hub has none, or cannot be reached.
    """
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            f"the text encoder {name} needs transformers ({error}): pip install 'npnet-runtime[pipelines]'"
        ) from error
    folder, commit = _folder(name, revision, offline=offline)
    text, tokens = (folder / part for part in _PARTS.get(name, _DEFAULT_PARTS))
    if not text.is_dir():
        text = tokens = folder
    try:
        config = transformers.AutoConfig.from_pretrained(text)
        kind: Any = getattr(transformers, _CLASSES.get(config.model_type, "AutoModel"))
        model = kind.from_pretrained(text, use_safetensors=True, dtype=torch.float32).eval().to(device)
        tokenizer = transformers.AutoTokenizer.from_pretrained(tokens)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(
            f"the text encoder {name}: expected a folder or repository of transformers, or of a pipeline "
            f"with {' and '.join(_DEFAULT_PARTS)}: {error}"
        ) from error
    shape = model.config.text_config if hasattr(model.config, "text_config") else model.config
    own = getattr(shape, "max_position_embeddings", None) or _MOST_TOKENS
    most = min(int(tokenizer.model_max_length), int(own))
    width = int(getattr(shape, "hidden_size", 0) or getattr(shape, "d_model", 0))
    digest = sha256()
    # variants of other precisions beside it are not read
    for file in sorted(f for f in text.glob("*.safetensors") if f.name.count(".") == 1):
        digest.update(file_sha256(file).encode())
    return TextEncoder(
        TextEncoderId(name, commit, digest.hexdigest(), most, width), model.requires_grad_(False), tokenizer
    )


def reload_text_encoder(
    wanted: TextEncoderId, *, device: torch.device | str = "cpu", elsewhere: str | None = None
) -> TextEncoder:
    """The text encoder that a bundle names.

    Args:
        wanted: as the bundle has it.
        device: where to.
        elsewhere: where it is, if not where it was.

    Raises:
        InputError: it is another one now, or not there.
        DownloadError: the hub cannot be reached.
    """
    name = elsewhere or wanted.name
    try:
        found = load_text_encoder(name, device=device, revision=None if elsewhere else wanted.revision)
    except (InputError, DownloadError) as error:
        raise type(error)(
            f"{error}; this engine reads prompts by that text encoder: if it lies elsewhere, give "
            "GoldenNoise(..., text_encoder=FOLDER)"
        ) from error
    if found.id.sha256 != wanted.sha256:
        raise InputError(
            f"the text encoder {name}: expected the weights that the network was trained with, sha256 "
            f"{wanted.sha256[:16]}..., given {found.id.sha256[:16]}...; give the right ones by "
            "GoldenNoise(..., text_encoder=FOLDER)"
        )
    return found


class OwnTexts:
    """The text encoder of an engine, loaded when it is first needed; safe to share among threads.

    Args:
        wanted: as the bundle has it; None without one.
        device: of the engine.
        elsewhere: where it is, if not where the bundle says.

    Raises:
        InputError: a place for one that there is not.
    """

    def __init__(
        self, wanted: TextEncoderId | None, device: torch.device, elsewhere: str | None = None
    ) -> None:
        if wanted is None and elsewhere is not None:
            raise InputError(
                "text_encoder: expected none, as this network reads what the pipeline encodes; leave it out"
            )
        self._wanted, self._device, self.elsewhere = wanted, device, elsewhere
        self._loaded: TextEncoder | None = None
        self._lock = threading.Lock()

    def encode(self, prompts: Sequence[str]) -> Prompt:
        """See `GoldenNoise.encode`."""
        if self._wanted is None:
            raise InputError(
                "encode: this network reads what the pipeline encodes; pass its prompt_embeds instead"
            )
        with self._lock:
            if self._loaded is None:
                self._loaded = reload_text_encoder(
                    self._wanted, device=self._device, elsewhere=self.elsewhere
                )
        return self._loaded.encode(prompts)

    def describe(self) -> list[str]:
        """For `GoldenNoise.report`."""
        if self._wanted is None:
            return []
        revision = f"@{self._wanted.revision}" if self._wanted.revision else ""
        return [f"text: by its own encoder, {self.elsewhere or self._wanted.name}{revision}"]


def _folder(name: str, revision: str | None, *, offline: bool) -> tuple[Path, str | None]:
    """Where a text encoder is on this machine, and its commit if it came from the hub."""
    if name in PACKAGED:
        try:
            return PACKAGED[name].root(), None
        except PackagedError as error:
            raise InputError(f"the text encoder {name}: {error}") from error
    source = REGISTERED.get(name, name)
    if Path(source).expanduser().is_dir():
        return Path(source).expanduser(), None
    if not looks_like_hub_id(source):
        raise InputError(
            f"the text encoder {name}: expected one of {', '.join(REGISTERED)}, owner/repository, or a "
            "folder, found no such thing"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise DownloadError(f"{source} needs huggingface_hub: pip install huggingface_hub") from error
    parts = _PARTS.get(name, _DEFAULT_PARTS)
    wanted = [
        f"{part}/{end}" for part in parts for end in ("*.json", "*.txt", "*.model", "model*.safetensors")
    ]
    if name not in REGISTERED:
        wanted += ["*.json", "*.txt", "*.model", "model*.safetensors"]
    try:
        found = snapshot_download(
            source, revision=revision, allow_patterns=wanted, ignore_patterns=["*.fp16.safetensors"],
            local_files_only=offline,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise DownloadError(
            f"the text encoder {source} cannot be fetched ({error}); check the connection"
        ) from error
    return Path(found), Path(found).name
