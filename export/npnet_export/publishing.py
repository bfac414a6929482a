"""`--push OWNER/NAME`: a bundle on the Hugging Face hub, with a model card made from its manifest."""

from __future__ import annotations

import json
from typing import Any

from npnet_export.errors import ExportError
from npnet_runtime.bundles.bundle import EngineBundle
from npnet_runtime.bundles.manifest import FILENAME, Manifest
from npnet_runtime.bundles.remote import CODE
from npnet_runtime.networks.any_size_config import AnySizeConfig
from npnet_runtime.weights.hub import looks_like_hub_id
from npnet_runtime.weights.models import MODELS

CARD = "README.md"
RANDOM = "**Its weights are random: it shows what golden noise costs, and makes no image better.**"


def check_push(repository: str) -> None:
    """What can be found wrong before the engine is built.

    Raises:
        ExportError: no name of a repository, or huggingface_hub is missing.
    """
    if not looks_like_hub_id(repository) or ":" in repository:
        raise ExportError(f"--push: expected OWNER/NAME of a repository, given {repository!r}")
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise ExportError("--push needs huggingface_hub: pip install huggingface_hub") from error


def push(
    bundle: EngineBundle, repository: str, licence: str | None = None, evaluation: str | None = None
) -> str:
    """Upload a bundle, its files first and its manifest last, and a model card.

    Args:
        bundle: every file is checked against the manifest before it is sent.
        repository: `OWNER/NAME`, made if it is not there.
        licence: identifier of the licence of the weights, such as `apache-2.0`; None if it is not known.
        evaluation: what an evaluation found, for the card; see `evaluation_table`.

    Returns:
        The commit, which names this very engine: `GoldenNoise(repository, revision=commit)`.

    Raises:
        BundleError: a file was changed.
        ExportError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    contents = {name: bundle.read(name) for name in bundle.manifest.files}
    contents[CARD] = model_card(bundle.manifest, repository, licence, evaluation).encode()
    contents[FILENAME] = (bundle.path / FILENAME).read_bytes()
    operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
    api = HfApi()
    try:
        api.create_repo(repository, exist_ok=True)
        info = api.create_commit(
            repository, operations, commit_message=f"Golden noise engine for {bundle.manifest.model}"
        )
    except (OSError, ValueError) as error:  # the hub's errors are among these
        raise ExportError(
            f"--push {repository}: {error}; log in with: hf auth login. The engine is kept in {bundle.path}"
        ) from error
    return str(info.oid)


def model_card(
    manifest: Manifest, repository: str, licence: str | None = None, evaluation: str | None = None
) -> str:
    """The model card: what the engine is, was made from and agreed with; and how to use it.

    Args:
        manifest: of the bundle.
        repository: where it goes.
        licence: of the weights; None if it is not known.
        evaluation: what an evaluation found.
    """
    made_for = manifest.weights.get("for", manifest.weights.get("trained_for"))
    base = MODELS[manifest.model].base_model if manifest.model in MODELS else made_for
    worth = evaluation or "No evaluation was recorded; npnet-evaluate makes one, --evaluation puts it here."
    about: dict[str, Any] = {"library_name": "npnet-runtime", "pipeline_tag": "text-to-image"}
    about |= {"tags": ["golden-noise", manifest.config.kind, manifest.engine]}
    about |= {"base_model": base} if base else {}
    about |= {"license": licence} if licence else {}
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in about.items())
    trust = ", trust_code=True, revision=COMMIT" if manifest.engine in CODE else ""
    rows = "\n".join(
        f"| {row.inputs} | {row.quantity} | {row.statistic} | {row.value:.2g} | "
        f"{'' if row.tolerance is None else f'{row.tolerance:g}'} |"
        for row in manifest.parity
    )
    parity = f"| inputs | of | statistic | value | allowed |\n|---|---|---|---|---|\n{rows}"
    random = "random_seed" in manifest.weights
    return f"""---
{front}
---

# Golden noise for {manifest.model}

An engine of [npnet-runtime](https://pypi.org/project/npnet-runtime/) that turns the initial noise of a
text-to-image model into golden noise for the prompt (Zhou et al., ICCV 2025, arXiv 2411.09502).

```python
from npnet_runtime import GoldenNoise

GoldenNoise("{repository}"{trust}).attach(pipe)
```

{RANDOM if random else ""}

| | |
|---|---|
| network | `{manifest.config.kind}` |
| engine | {manifest.engine}, {manifest.precision}, batches up to {manifest.max_batch} |
| noise | {_noise(manifest)} |
| prompt | {manifest.config.text_dim} wide{_reads(manifest)} |
| latent space | {_space(manifest)} |
| base model | {base or "not recorded"} |
| weights | {", ".join(f"{key} {value}" for key, value in manifest.weights.items() if key != "training")} |
| training | {manifest.weights.get("training", "not recorded")} |
| licence of the weights | {licence or "not stated"} |
| needs | {", ".join(f"{name} {condition}" for name, condition in manifest.requires.items())} |

## Agreement with float32 PyTorch

{parity if manifest.parity else f"Not compared: {manifest.unverified}"}

## What it is worth

{"Nothing, with random weights." if random else worth}
"""


def _noise(manifest: Manifest) -> str:
    config = manifest.config
    own = "x".join(map(str, config.latent_shape))
    if isinstance(config, AnySizeConfig):
        return f"{own}; sides from {config.least_side} to {config.most_side}"
    return own


def _space(manifest: Manifest) -> str:
    space = manifest.latent_space
    if space is None:
        return "not recorded"
    return f"{space.autoencoder}, {space.channels} channels, {space.factor} pixels to a latent"


def _reads(manifest: Manifest) -> str:
    if manifest.text_encoder is not None:
        return f", by an encoder of its own, `{manifest.text_encoder.name}`"
    return "" if manifest.reads is None else f", read as {', '.join(manifest.reads.values())}"
