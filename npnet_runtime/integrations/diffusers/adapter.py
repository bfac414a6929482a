"""A LoRA on a pipeline's own denoiser that makes it predict a change of the noise (arXiv 2508.09968).

Every linear and convolutional layer gets low-rank weights; of the last one only these count, so that a new
adapter, whose second factors are zero, changes nothing. They are active while the change is predicted, and
never while an image is made.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from npnet_runtime.errors import PipelineError
from npnet_runtime.integrations.diffusers.checks import denoiser
from npnet_runtime.integrations.diffusers.steering import SteeredPipeline

ADAPTER = "npnet_golden"


@dataclass(frozen=True)
class Adapter:
    """Low-rank weights within a denoiser.

    Args:
        module: the denoiser.
        last: name of its last layer.
        name: of the adapter there.
    """

    module: nn.Module
    last: str
    name: str = ADAPTER

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """By the name of a layer, `.lora_A.weight` or `.lora_B.weight`, as diffusers writes them."""
        found: dict[str, nn.Parameter] = {}
        for name, layer in self._layers():
            for factor in ("lora_A", "lora_B"):
                found[f"{name}.{factor}.weight"] = getattr(layer, factor)[self.name].weight
        return found

    def remove(self) -> None:
        """Give the denoiser back as it was."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for name, layer in [*self._layers()]:
            layer.delete_adapter(self.name)
            if not any(getattr(layer, kind) for kind in layer.adapter_layer_names):
                owner, _, own = name.rpartition(".")
                setattr(self.module.get_submodule(owner), own, layer.get_base_layer())
        configs = getattr(self.module, "peft_config", {})
        configs.pop(self.name, None)
        if not any(isinstance(layer, BaseTunerLayer) for layer in self.module.modules()):
            if hasattr(self.module, "peft_config"):
                del self.module.peft_config
            setattr(self.module, "_hf_peft_config_loaded", False)  # noqa: B010

    @contextmanager
    def active(self) -> Iterator[None]:
        """The denoiser predicts a change of the noise inside the block, with other adapters as they are."""
        before = [(layer, layer._active_adapter, layer._disable_adapters) for _, layer in self._layers()]

        def low_rank_alone(layer: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            first, second = layer.lora_A[self.name], layer.lora_B[self.name]
            found: Tensor = second(first(inputs[0].to(first.weight.dtype))) * layer.scaling[self.name]
            return found.to(output.dtype)

        hook = self.module.get_submodule(self.last).register_forward_hook(low_rank_alone)
        try:
            for layer, names, disabled in before:
                others = [] if disabled else [names] if isinstance(names, str) else [*names]
                layer._active_adapter, layer._disable_adapters = [*others, self.name], False
            yield
        finally:
            hook.remove()
            for layer, names, disabled in before:
                layer._active_adapter, layer._disable_adapters = names, disabled

    def _layers(self) -> Iterator[tuple[str, Any]]:
        for name, layer in self.module.named_modules():
            if self.name in getattr(layer, "lora_A", {}):
                yield name, layer


def add_adapter(
    module: nn.Module, layers: Sequence[str], rank: int, last: str, name: str = ADAPTER
) -> Adapter:
    """Put low-rank weights into layers of a denoiser, in float32; the second factors are zero.

    Args:
        module: the denoiser, changed in place.
        layers: names of linear and convolutional ones, `last` among them.
        rank: of the weights.
        last: name of the last layer.
        name: of the adapter, one for each that is in use at once.

    Raises:
        PipelineError: peft is missing, or the denoiser has one already, or no such layers.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise PipelineError(f"a LoRA of golden noise needs peft ({error}): pip install peft") from error
    if any(name in getattr(layer, "lora_A", {}) for layer in module.modules()):
        raise PipelineError("pipe: expected a denoiser without a LoRA of golden noise; detach it first")
    present = {path.replace(".base_layer", "") for path, _ in module.named_modules()}
    if missing := [layer for layer in layers if layer not in present]:
        raise PipelineError(
            f"pipe: expected the denoiser that the LoRA was trained for, given {type(module).__name__} "
            f"without {', '.join(missing[:3])} and {len(missing)} layers of it in all"
        )
    states = {id(layer): (layer._active_adapter, layer._disable_adapters) for layer in _tuned(module)}
    chosen = _pattern(layers)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=chosen, init_lora_weights=True)
    frozen = {path for path, parameter in module.named_parameters() if not parameter.requires_grad}
    inject_adapter_in_model(config, module, adapter_name=name)
    for path, parameter in module.named_parameters():
        own = f".{name}." in path
        parameter.requires_grad_(own or path.replace(".base_layer", "") not in frozen)
    for layer in _tuned(module):
        layer._active_adapter, layer._disable_adapters = states.get(id(layer), ([], False))
    made = Adapter(module, last, name)
    for parameter in made.weights.values():
        parameter.data = parameter.data.float()
    return made


def adaptable_layers(module: nn.Module) -> list[str]:
    """Names of all linear and plain convolutional layers."""
    return [
        name.removesuffix(".base_layer")
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
        if not any(part in name for part in ("lora_A", "lora_B"))
    ]


@contextmanager
def watching_last(module: nn.Module) -> Iterator[Callable[[], str]]:
    """A function that says which layer of a denoiser was called last inside the block."""
    called: list[str] = []
    hooks = [
        module.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
        for name in adaptable_layers(module)
    ]
    try:
        yield lambda: called[-1]
    finally:
        for hook in hooks:
            hook.remove()


def predicted_change(
    adapter: Adapter, pipeline: SteeredPipeline, noise: Tensor, timestep: Tensor, arguments: Mapping[str, Any]
) -> Tensor:
    """The change of the noise that a denoiser with an active adapter predicts, in one evaluation.

    What the pipeline makes of the denoiser's output before its scheduler sees it is left out, but for what is
    proportional to the output: SANA-Sprint's mixes it with the noise.

    Args:
        adapter: of the pipeline's denoiser.
        pipeline: steered.
        noise: (B, C, H, W).
        timestep: (), of the scheduler, at which the denoiser is asked.
        arguments: of the pipeline's call, without guidance.

    Returns:
        (B, C, H, W) float32, with gradients in the adapter's weights and the noise.
    """
    raw: list[Any] = []
    hook = adapter.module.register_forward_hook(lambda module, inputs, output: raw.append(output))
    try:
        with adapter.active():
            found = pipeline.output(noise, timestep, **arguments)
    finally:
        hook.remove()
    with _silenced(adapter.module, raw[-1]), torch.no_grad():
        nothing = pipeline.output(noise, timestep, **arguments)
    change: Tensor = found.float() - nothing.float()
    if nothing.any():  # it has the noise in it, and so has a gradient in it
        with _silenced(adapter.module, raw[-1]):
            change = found.float() - pipeline.output(noise, timestep, **arguments).float()
    return change


@contextmanager
def _silenced(module: nn.Module, like: Any) -> Iterator[None]:
    """A denoiser whose output is zero, and costs nothing."""
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = lambda *args, **kwargs: _zeros(like)
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own


def _zeros(like: Any) -> Any:
    if isinstance(like, Tensor):
        return torch.zeros_like(like)
    if isinstance(like, dict):  # as the outputs of diffusers are
        made = copy.copy(like)
        for name, value in like.items():
            made[name] = _zeros(value)
        return made
    if isinstance(like, (tuple, list)):
        return type(like)(_zeros(part) for part in like)
    return like


def _tuned(module: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]


def _pattern(layers: Sequence[str]) -> str:
    """A regular expression for exactly these names: peft takes a list for the ends of names."""
    return "|".join(name.replace(".", r"\.") for name in layers)


def denoiser_of(pipe: Any) -> nn.Module:
    """The denoiser of a pipeline.

    Raises:
        PipelineError: it has none that is a module.
    """
    found = denoiser(pipe)
    if not isinstance(found, nn.Module):
        raise PipelineError(
            f"pipe: expected a pipeline with a denoiser that a LoRA fits into, given {type(found).__name__}"
        )
    return found
