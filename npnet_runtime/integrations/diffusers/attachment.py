"""Attach golden noise to one pipeline object, and take it off again.

A pipeline encodes its prompt (`encode_prompt`), then draws its noise, packs it and scales it for the
scheduler (`prepare_latents`). An attached pipeline is given a subclass of its own class in which these two
methods and `__call__` are wrapped, as `torch.nn.utils.parametrize` does with modules: the class in diffusers
and every other pipeline stay as they are. Called on their own, the wrapped methods do what they always did.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

from npnet_runtime.errors import PipelineError
from npnet_runtime.integrations.diffusers.call import Call
from npnet_runtime.integrations.diffusers.checks import check_pipeline
from npnet_runtime.integrations.diffusers.latent_space import check_latent_space
from npnet_runtime.integrations.protocol import GivenLatents, Golden

ATTRIBUTE = "_npnet_attachment"


@dataclass(eq=False)
class Attachment:
    """What an attached pipeline carries; its copies share it."""

    golden: Golden
    given_latents: GivenLatents
    kind: type[Call] = Call
    # one thread: a pipeline is in one call at a time
    worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "npnet-ahead"))

    def __deepcopy__(self, memo: dict[int, Any]) -> Attachment:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Attachment, (self.golden, self.given_latents, self.kind)  # a thread cannot be pickled


# Per thread and per nesting: a callback of one pipeline may call another.
_current: ContextVar[Call | None] = ContextVar("npnet_call", default=None)


def attach(golden: Golden, pipe: Any, *, given_latents: GivenLatents = "golden") -> None:
    """Make every call of `pipe` start from golden noise.

    The noise is drawn as the plain pipeline draws it, from the same random state, and made golden for the
    positive prompt where it is drawn: packing, ids and scaling stay the pipeline's own. Calls take and return
    what they did before.

    Args:
        golden: the engine. Any number of pipelines may share it.
        pipe: a text-to-image pipeline of diffusers, of which docs/pipelines.md has a list; or blocks of
            Modular Diffusers for one workflow from text to image, or a pipeline of such blocks.
        given_latents: what becomes of noise that a caller passes as `latents`, packed as the pipeline takes
            it or as it would be drawn: `"golden"` makes it golden as well, `"as-is"` leaves it alone.

    Raises:
        PipelineError: no such pipeline, one whose latents or text embeddings do not fit the network, one of
            another latent space, or one that has golden noise attached already.
    Warns:
        UserWarning: its autoencoder has other weights than the one that the network was trained with.
    """
    if given_latents not in ("golden", "as-is"):
        raise PipelineError(f"given_latents: expected 'golden' or 'as-is', given {given_latents!r}")
    if (blocks := _blocks_of(pipe)) is not None:
        _modular().attach_blocks(golden, blocks, given_latents)
        return
    if _attachment(pipe) is not None:
        raise PipelineError(
            f"pipe: expected a plain {type(pipe).__name__}, given one that has golden noise attached; "
            "detach it first"
        )
    manifest = golden.bundle.manifest
    check_pipeline(pipe, manifest.config, manifest.reads, own_text=manifest.text_encoder is not None)
    check_latent_space(pipe, manifest.latent_space)
    attach_as(golden, pipe, given_latents, Call)


def attach_as(golden: Golden, pipe: Any, given_latents: GivenLatents, kind: type[Call]) -> None:
    """Make calls of a pipeline, which was checked, calls of a kind."""
    pipe.__dict__[ATTRIBUTE] = Attachment(golden, given_latents, kind)
    plain: Any = type(pipe)
    pipe.__class__ = _attached_class(plain)


def is_attached(pipe: object) -> bool:
    """Whether golden noise is attached to a pipeline."""
    return _attachment(pipe) is not None


def detach(golden: Golden, pipe: Any) -> None:
    """Give the pipeline its own class back: it is what it was before `attach`.

    Raises:
        PipelineError: this engine is not attached to it.
    """
    if (blocks := _blocks_of(pipe)) is not None:
        _modular().detach_blocks(golden, blocks)
        return
    attachment = _attachment(pipe)
    if attachment is None or not attachment.golden.shares_engine(golden):
        found = "one with no golden noise" if attachment is None else "one attached to another GoldenNoise"
        raise PipelineError(
            f"pipe: expected a pipeline attached to this GoldenNoise, given {found} ({type(pipe).__name__})"
        )
    (pipe.__class__,) = type(pipe).__bases__
    del pipe.__dict__[ATTRIBUTE]


def _modular() -> Any:
    # its base classes come with newer releases of diffusers only, and only who uses them has them loaded
    from npnet_runtime.integrations.diffusers import modular

    return modular


def _blocks_of(pipe: object) -> Any:
    loaded = "diffusers.modular_pipelines.modular_pipeline" in sys.modules
    return _modular().blocks_of(pipe) if loaded else None


@contextmanager
def attached_for(pipe: Any, kind: type[Call]) -> Iterator[None]:
    """Calls of another kind, without an engine and on the CPU, for as long as the block runs."""
    plain, attachment = type(pipe), _attachment(pipe)
    (own,) = plain.__bases__ if attachment is not None else (plain,)
    here = {"_execution_device": property(lambda self: torch.device("cpu"))}
    pipe.__dict__[ATTRIBUTE] = Attachment(None, "golden", kind)  # type: ignore[arg-type]
    pipe.__class__ = type(own.__name__, (_attached_class(own),), here)
    try:
        yield
    finally:
        pipe.__class__ = plain
        if attachment is None:
            del pipe.__dict__[ATTRIBUTE]
        else:
            pipe.__dict__[ATTRIBUTE] = attachment


def _attachment(pipe: object) -> Attachment | None:
    return getattr(pipe, "__dict__", {}).get(ATTRIBUTE)


def _call_of(pipe: object) -> Call | None:
    call = _current.get()
    return call if call is not None and call.pipe is pipe else None


def _restore(plain: Any, attachment: Attachment | None) -> Any:
    """A pipeline without state, attached as the pickled or copied one was."""
    pipe = plain.__new__(plain)
    if attachment is not None:
        pipe.__dict__[ATTRIBUTE] = attachment
        pipe.__class__ = _attached_class(plain)
    return pipe


@functools.cache
def _attached_class(plain: Any) -> type:
    """The subclass of a pipeline class whose calls start from golden noise. It holds no state."""

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        attachment = _attachment(self)
        if attachment is None:  # made by this class, as `from_pipe` does: a plain pipeline
            return plain.__call__(self, *args, **kwargs)
        call = attachment.kind(self, attachment.golden, attachment.given_latents)
        token = _current.set(call)
        try:
            call.begin(attachment.worker, args, kwargs)
            return plain.__call__(self, *args, **kwargs)
        finally:
            _current.reset(token)
            call.end()

    def encode_prompt(self: Any, *args: Any, **kwargs: Any) -> Any:
        encoded = plain.encode_prompt(self, *args, **kwargs)
        if call := _call_of(self):
            call.saw_prompt(encoded, sys._getframe(1))
        return encoded

    def prepare_latents(self: Any, *args: Any, **kwargs: Any) -> Any:
        if call := _call_of(self):
            return call.prepare(plain.prepare_latents, args, kwargs)
        return plain.prepare_latents(self, *args, **kwargs)

    def __reduce_ex__(self: Any, protocol: Any) -> tuple[Any, ...]:
        # By the plain class: this one cannot be found under its name.
        state = {name: value for name, value in self.__dict__.items() if name != ATTRIBUTE}
        return _restore, (plain, _attachment(self)), state

    wrapped: dict[str, Any] = {
        method.__name__: functools.wraps(getattr(plain, method.__name__))(method)
        for method in (__call__, encode_prompt, prepare_latents)
    }
    wrapped["__reduce_ex__"] = __reduce_ex__
    # The name of the plain class: `save_pretrained` writes it down.
    names = {name: getattr(plain, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(plain.__name__, (plain,), wrapped | names)
