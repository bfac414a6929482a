"""Settings of `npnet-train`. The defaults are the paper's recipe where it has one (section 4.1)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from npnet_training.settings import Settings
from npnet_training.training.loss_settings import ImageLossSettings, RewardLossSettings

OWN = "own:"
"""Before the name of a text encoder of the network's own."""


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/npnet`, or `~/.cache/npnet`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "npnet"


class NPNetSettings(Settings):
    """Sizes of the paper's network."""

    spectral_hidden: int = Field(default=64, ge=1)
    """Hidden width of the two MLPs that read singular vectors."""
    spectral_heads: int = Field(default=8, ge=1)
    """Attention heads over the singular triplets."""
    spectral_mlp_hidden: int = Field(default=1024, ge=1)
    """Hidden width of the MLP that writes the correction."""
    swin_image_size: int = Field(default=224, ge=1)
    """Side of the image the Swin Transformer reads."""
    swin_patch_size: int = Field(default=4, ge=1)
    """Side of its patches."""
    swin_window_size: int = Field(default=7, ge=1)
    """Side of its attention windows, in patches."""
    swin_embed_dim: int = Field(default=96, ge=1)
    """Channels of its first stage."""
    swin_depths: tuple[int, ...] = (2, 2, 6, 2)
    """Blocks of each stage."""
    swin_num_heads: tuple[int, ...] = (3, 6, 12, 24)
    """Attention heads of each stage."""
    swin_mlp_ratio: int = Field(default=4, ge=1)
    """Hidden width of a block's MLP over its channels."""


class PromptAttentionSettings(Settings):
    """Sizes of the network that attends to the prompt's tokens."""

    channels: tuple[int, ...] | None = None
    """Widths of its levels, from the full resolution down; by default chosen from the size of the noise."""
    blocks: int = Field(default=1, ge=1)
    """Residual blocks of each level, down and up."""
    heads: int = Field(default=4, ge=1)
    """Attention heads at the lowest level."""


class AnySizeSettings(PromptAttentionSettings):
    """Sizes of the network for noise of any size, and what it is to take beside what the dataset has."""

    least_side: int | None = Field(default=None, ge=1)
    """Smallest side of the noise; by default a quarter of the dataset's."""
    most_side: int | None = Field(default=None, ge=1)
    """Largest side; by default twice the dataset's."""
    most_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of a prompt; by default the dataset's, and at least 512."""


class GeneratorLoraSettings(Settings):
    """Sizes of the LoRA on the model's own denoiser."""

    rank: int = Field(default=16, ge=1)
    """Rank of its weights; HyperNoise has 128."""
    targets: Literal["all", "attention"] = "all"
    """Which layers get some: all linear and convolutional ones, or those of attention and the last."""


class NetworkSettings(Settings):
    """The network to train; its noise and text shapes are the dataset's."""

    kind: Literal["npnet", "prompt-attention", "prompt-attention-2", "generator-lora"] = "npnet"
    """The paper's network; or a small UNet that attends to the prompt's tokens and needs no SVD; or that for
    noise of any size and prompts of any length; or a LoRA on the model's own denoiser, which costs one more
    of its evaluations for each image."""
    npnet: NPNetSettings = NPNetSettings()
    """Sizes, for kind npnet."""
    prompt_attention: PromptAttentionSettings = PromptAttentionSettings()
    """Sizes, for kind prompt-attention."""
    prompt_attention_2: AnySizeSettings = AnySizeSettings()
    """Sizes, for kind prompt-attention-2."""
    generator_lora: GeneratorLoraSettings = GeneratorLoraSettings()
    """Sizes, for kind generator-lora."""


class OptimizerSettings(Settings):
    """AdamW and what surrounds its step."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Highest learning rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """How the rate goes on after the warm-up; cosine ends at `final_share` of it."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the rate rises linearly from zero."""
    final_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the learning rate at the end of the cosine."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of matrices; vectors and scalars are not decayed."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the two moments."""
    clip: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient; None does not clip."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the exponential moving average of the weights; 0 keeps none. Checkpoints and validation
    are of the average."""


class ValidationSettings(Settings):
    """Measuring on prompts that are never trained on."""

    share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the distinct prompts kept for validation; 0 for none."""
    every: int | None = Field(default=None, ge=1)
    """Steps between validations; None for every epoch."""
    max_pairs: int | None = Field(default=None, ge=1)
    """Measure on at most this many pairs."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many validations in a row without a better one; None never stops early."""
    min_improvement: float = Field(default=0.0, ge=0)
    """Share of the best loss by which a validation must be lower to count as better."""


class TrainSettings(Settings):
    """Train a network that makes golden noise on datasets of noise pairs."""

    data: tuple[str, ...] = Field(min_length=1)
    """Folders or URLs of noise pairs, as npnet-collect writes them."""
    output: Path
    """Folder of the run: checkpoints, training state, curves, report."""
    model: tuple[str, ...] = ()
    """Models that golden noise is rewarded in front of, not the dataset's own alone; of one latent space."""
    text: str = "model"
    """What the network reads of a prompt: model, what the dataset's model encodes; or own:NAME, by a text
    encoder of its own, so that it serves every model of the latent space: clip-l, t5-xxl, a repository of the
    hub, or a folder."""
    resume: bool = False
    """Go on from the last training state in the folder, if there is one."""
    start_from: str | None = None
    """Checkpoint whose weights to start from; its sizes win over `network`."""
    network: NetworkSettings = NetworkSettings()
    """The network."""
    freeze: tuple[Literal["spectral", "residual", "text"], ...] = ()
    """Branches of an npnet that are not trained, for ablations."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """The optimizer."""
    validation: ValidationSettings = ValidationSettings()
    """Validation."""
    loss: Literal["mse", "cosine", "image", "reward"] = "mse"
    """mse is the paper's (equation 8); cosine adds one minus the cosine of the changes; image compares the
    images of golden and target noise; reward rewards the image of golden noise, and needs no target."""
    image: ImageLossSettings = ImageLossSettings()
    """Of the loss image."""
    reward: RewardLossSettings = RewardLossSettings()
    """Of the loss reward."""
    seed: int = Field(default=0, ge=0)
    """Of initial weights, shuffling and everything else random."""
    epochs: int = Field(default=30, ge=1)
    """Passes over the pairs."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many optimizer steps."""
    batch_size: int = Field(default=64, ge=1)
    """Pairs of one optimizer step, over all processes and accumulated parts."""
    accumulation: int = Field(default=1, ge=1)
    """Parts a process cuts its share of a batch into, to need less memory."""
    sign_augmentation: bool = False
    """Flip singular pairs at random, so that the network learns not to read their signs."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Of the matrix products; weights, norms, sums and the SVD stay float32."""
    compile: bool = False
    """Compile the network with torch.compile."""
    cache_dir: Path = Field(default_factory=default_cache_dir)
    """Where prompt embeddings and SVD factors are kept between runs."""
    cache_svd: bool = True
    """Compute the SVD of every source noise once and keep it; without, it is computed for every batch."""
    encode_batch: int = Field(default=32, ge=1)
    """Prompts encoded at a time."""
    workers: int = Field(default=0, ge=0)
    """Processes that read batches ahead; 0 reads in the training process."""
    stream: int = Field(default=0, ge=0)
    """Read so many shards at a time, one after another, and shuffle among their pairs only: for datasets
    behind a URL, or larger than memory on a slow disk. 0 shuffles among all pairs."""
    offline: bool = False
    """Take the text-to-image model from the hub's cache only."""
    log_every: int = Field(default=50, ge=1)
    """Steps between log lines."""
    save_every: int = Field(default=1000, ge=1)
    """Steps between training states, of which the last is kept."""
    max_skipped: int = Field(default=20, ge=1)
    """Give up after this many steps in a row whose gradient is not finite."""
    allow_collapse: bool = False
    """Go on where golden noise is no longer noise, or where the pairs can teach nothing else."""
    dry_run: bool = False
    """Say what would be done, how long and how large it would be, and write nothing."""
    gpu: str | None = None
    """With dry_run: load no model, and estimate the memory of loss image or reward for a GPU by name, such as
    h100 or rtx4090."""

    @property
    def reads_factors(self) -> bool:
        """Whether the network is given the SVD of its noise."""
        return self.network.kind == "npnet"

    @property
    def trains_lora(self) -> bool:
        """Whether the network is a LoRA on the model's own denoiser."""
        return self.network.kind == "generator-lora"

    @property
    def uses_target(self) -> bool:
        """Whether the loss compares with what the pairs' targets give, so that only kept pairs will do."""
        return self.loss != "reward" and not (self.loss == "image" and self.image.reference == "source")

    @model_validator(mode="after")
    def _consistent(self) -> TrainSettings:
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of accumulation {self.accumulation}"
            )
        if self.sign_augmentation and not self.reads_factors:
            raise ValueError(f"sign_augmentation: a network of kind {self.network.kind} reads no SVD")
        if self.loss == "reward" and not self.reward.names:
            raise ValueError("loss reward needs reward.names, such as pickscore")
        if self.gpu is not None and not (self.dry_run and self.loss in ("image", "reward")):
            raise ValueError("gpu names a GPU for an estimate: add --dry-run, and a loss that makes images")
        if self.model and self.loss != "reward":
            raise ValueError(f"model: only loss reward is had from several models, given loss {self.loss}")
        if len(set(self.model)) < len(self.model):
            raise ValueError(f"model: the same one twice in {', '.join(self.model)}")
        if self.text != "model" and not self.text.removeprefix(OWN) != self.text:
            raise ValueError(f"text: expected model or {OWN}NAME, given {self.text!r}")
        if self.trains_lora and (self.precision != "fp32" or self.compile or self.text != "model"):
            raise ValueError(
                "network.kind generator-lora: precision, compile and text are the model's own; give "
                "--reward.dtype bfloat16 for a model in half precision"
            )
        if self.validation.patience is not None and not self.validation.share:
            raise ValueError("validation.patience needs a validation.share above 0")
        return self


RESUMABLE = frozenset(
    {"output", "resume", "max_steps", "cache_dir", "cache_svd", "encode_batch", "workers", "offline"}
    | {"log_every", "save_every", "max_skipped", "allow_collapse", "dry_run", "gpu", "accumulation"}
)
"""Settings that may differ when a run is resumed: they do not change what is computed, or only its end."""
