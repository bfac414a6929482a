"""Golden noise in Modular Diffusers: the block that draws the noise, of whatever family, draws it golden.

As pipelines do, the blocks that prepare latents draw by `randn_tensor`, some in a method of their own, some
in their call. An attached block is of a subclass of its class in which those functions draw elsewhere; see
`npnet_runtime.integrations.diffusers.redrawing`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.modular_pipelines.modular_pipeline import ModularPipeline, ModularPipelineBlocks, PipelineState
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from npnet_runtime.errors import PipelineError
from npnet_runtime.inputs.texts import Prompt
from npnet_runtime.integrations.diffusers.call import draw_golden, texts_given
from npnet_runtime.integrations.diffusers.checks import check_device, planar
from npnet_runtime.integrations.diffusers.draw import Draw
from npnet_runtime.integrations.diffusers.latent_space import check_latent_space
from npnet_runtime.integrations.diffusers.reading import prompt_from, reads_of, roles_of
from npnet_runtime.integrations.diffusers.redrawing import DRAW, Once, packing_of, plain_function, redrawn
from npnet_runtime.integrations.protocol import GivenLatents, Golden

ATTRIBUTE = "_npnet_attachment"
# Of the values that blocks pass on: those of the positive prompt.
_OF_PROMPTS = ("prompt_", "pooled_prompt", "pooled_projections")
_drawing: ContextVar[Callable[..., Tensor] | None] = ContextVar("npnet_drawing", default=None)


@dataclass(frozen=True)
class BlockAttachment:
    """What an attached block carries; its copies share it."""

    golden: Golden
    given_latents: GivenLatents

    def __deepcopy__(self, memo: dict[int, Any]) -> BlockAttachment:
        return self


def blocks_of(pipe: Any) -> ModularPipelineBlocks | None:
    """Blocks, or those of a modular pipeline; None for anything else."""
    found = pipe._blocks if isinstance(pipe, ModularPipeline) else pipe
    return found if isinstance(found, ModularPipelineBlocks) else None


def attach_blocks(golden: Golden, blocks: ModularPipelineBlocks, given_latents: GivenLatents) -> None:
    """Make the block that draws the noise draw it golden; see `attach`.

    Raises:
        PipelineError: not one of the blocks draws, or several do, or it is attached already.
    """
    drawing = [(path, block) for path, block in _leaves(blocks) if _functions(type(block))]
    if len(drawing) != 1 or not drawing[0][0]:
        found = ", ".join(type(block).__name__ for _, block in drawing) or "none"
        raise PipelineError(
            "blocks: expected those of one workflow from text to image, in which one block draws noise, "
            f"given {type(blocks).__name__} with {len(drawing)} ({found}); "
            f'attach to {type(blocks).__name__}().get_workflow("text2image")'
        )
    ((path, block),) = drawing
    if ATTRIBUTE in vars(block):
        raise PipelineError("blocks: expected plain ones, given some with golden noise; detach it first")
    plain: Any = type(block)
    made = copy.copy(block)
    vars(made)[ATTRIBUTE] = BlockAttachment(golden, given_latents)
    made.__class__ = _attached_class(plain)
    _put(blocks, path, made)


def detach_blocks(golden: Golden, blocks: ModularPipelineBlocks) -> None:
    """Make the blocks what they were before.

    Raises:
        PipelineError: this engine is not attached to any of them.
    """
    for path, block in _leaves(blocks):
        attachment = vars(block).get(ATTRIBUTE)
        if attachment is not None and attachment.golden.shares_engine(golden):
            made = copy.copy(block)
            (made.__class__,) = type(block).__bases__
            del vars(made)[ATTRIBUTE]
            _put(blocks, path, made)
            return
    raise PipelineError("blocks: expected some that this GoldenNoise is attached to, given others")


def _leaves(blocks: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The blocks that have no others within, and where they are."""
    inner = getattr(blocks, "sub_blocks", None)
    if not inner:
        yield path, blocks
        return
    for name, block in inner.items():
        yield from _leaves(block, (*path, name))


def _put(blocks: Any, path: tuple[str, ...], leaf: Any) -> None:
    """Exchange a block within others, of which families share instances: what is changed is a copy."""
    name, *rest = path
    within = leaf
    if rest:
        within = copy.copy(blocks.sub_blocks[name])
        within.sub_blocks = copy.copy(within.sub_blocks)
        _put(within, tuple(rest), leaf)
    blocks.sub_blocks[name] = within


def _functions(kind: type) -> dict[str, Any]:
    """The functions of a class of blocks that draw, by name."""
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        if base is ModularPipelineBlocks:
            break
        for name, value in vars(base).items():
            function = plain_function(
                value.__func__ if isinstance(value, staticmethod | classmethod) else value
            )
            if function is not None and DRAW in function.__code__.co_names:
                found.setdefault(name, value)
    return found


@contextmanager
def _drawing_by(draw: Callable[..., Tensor]) -> Iterator[None]:
    token = _drawing.set(draw)
    try:
        yield
    finally:
        _drawing.reset(token)


def _draw(*args: Any, **kwargs: Any) -> Tensor:
    """In place of `randn_tensor` in the functions of attached classes."""
    found: Tensor = (_drawing.get() or randn_tensor)(*args, **kwargs)
    return found


@functools.cache
def _attached_class(plain: Any) -> type:
    """The subclass of a class of blocks whose noise is golden. It holds no state."""
    changed: dict[str, Any] = {}
    for name, value in _functions(plain).items():
        wrapper = type(value) if isinstance(value, staticmethod | classmethod) else None
        function = redrawn(value.__func__ if wrapper is not None else value, _draw)
        changed[name] = wrapper(function) if wrapper is not None else function
    own = changed.get("__call__", plain.__call__)

    @functools.wraps(plain.__call__)
    @torch.no_grad()
    def __call__(self: Any, components: Any, state: Any) -> Any:
        attachment: BlockAttachment = vars(self)[ATTRIBUTE]
        name, golden = type(self).__name__, attachment.golden
        # blocks have no components before; weights are not compared, which on CUDA would make the host wait
        check_latent_space(components, golden.bundle.manifest.latent_space, weights=False)
        given = state.get("latents")
        if given is not None and attachment.given_latents == "as-is":
            return own(self, components, state)
        values = {key: value for key, value in state.values.items() if key.startswith(_OF_PROMPTS)}
        reads = reads_of(golden.bundle.manifest, roles_of([*values], values))

        def read() -> Prompt:
            if golden.bundle.manifest.text_encoder is not None:
                return golden.encode(texts_given(state.get("prompt"), name))
            return prompt_from(values, reads, name)

        def drawn(
            shape: Any, generator: Any = None, device: Any = None, dtype: Any = None, layout: Any = None
        ) -> Tensor:
            draw = Draw(tuple(shape), dtype or torch.float32, device or "cpu", generator)
            return draw_golden(golden, draw, read)

        def given_to(shape: Any, dtype: Any = None, **_: Any) -> Tensor:
            made = golden(noise.reshape(planar(tuple(shape))), read())
            return made.reshape(tuple(shape)).to(dtype)

        def prepared(draw: Callable[..., Tensor]) -> Any:
            """Of a state that is thrown away."""
            tried = PipelineState({**state.values, "latents": None}, dict(state.kwargs_mapping))
            with _drawing_by(draw):
                own(self, components, tried)
            return tried.get("latents")

        once = Once(drawn)
        if given is not None:
            check_device(components._execution_device, golden.device)
            noise = packing_of(prepared, golden.device).unpack(given.to(golden.device))
            once = Once(given_to)
            state.set("latents", None)
        with _drawing_by(once):
            result = own(self, components, state)
        once.require(name)
        return result

    names = {name: getattr(plain, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(plain.__name__, (plain,), {**changed, "__call__": __call__, **names})
