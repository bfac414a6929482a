"""What a pipeline calls the values that its `encode_prompt` returns, read in its own `__call__`.

No two families return the same: embeddings and negative ones, masks between or behind them, pooled ones,
lists. But each pipeline gives them names where it takes them,

    prompt_embeds, prompt_attention_mask, negative_prompt_embeds, ... = self.encode_prompt(...)

and these names say which are of the positive prompt and what they are; they are the ones a bundle records.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor

from npnet_runtime.bundles.manifest import Manifest
from npnet_runtime.errors import PipelineError
from npnet_runtime.inputs.texts import Prompt, fields_read

ENCODE, PREPARE = "encode_prompt", "prepare_latents"
NEGATIVE = ("negative", "neg_", "uncond", "base_", "_")


@dataclass(frozen=True)
class Assigned:
    """A statement of `__call__` that takes what a method returns: its lines, the names, the arguments."""

    method: str
    first_line: int
    last_line: int
    names: tuple[str, ...]
    call: ast.Call


@dataclass(frozen=True)
class Reading:
    """The statements of a `__call__` that encode the prompt and prepare the latents, in order.

    `expressions` has what its other names stand for, where they are assigned.
    """

    code: CodeType | None
    statements: tuple[Assigned, ...]
    expressions: Mapping[str, ast.expr]

    def of(self, method: str) -> list[Assigned]:
        """Those that call a method."""
        return [statement for statement in self.statements if statement.method == method]

    def names_at(self, frame: FrameType | None) -> tuple[str, ...]:
        """The names that take what a method returns which was called in a frame; empty if there are none."""
        while frame is not None and frame.f_code is not self.code:
            frame = frame.f_back
        if frame is None:
            return ()
        line = frame.f_lineno
        return next((s.names for s in self.statements if s.first_line <= line <= s.last_line), ())

    def positive(self) -> list[str]:
        """Names of what is encoded of the positive prompt, in order."""
        return [name for s in self.of(ENCODE) for name in s.names if not name.startswith(NEGATIVE)]


def roles_of(names: Sequence[str], values: Mapping[str, Any]) -> dict[str, str]:
    """Which values of an encoded prompt a network can read, and as what, by what they look like.

    Args:
        names: of the positive prompt's values, in order.
        values: of these; a mask may be None.

    Returns:
        By field of `Prompt`, the name of the value.
    """
    found: dict[str, str] = {}
    for name in names:
        value = values.get(name)
        parts = value if isinstance(value, list) and value else [value]
        dims = {part.dim() if isinstance(part, Tensor) else 0 for part in parts}
        masks = "mask" in name or (isinstance(value, Tensor) and not value.is_floating_point())
        if name.endswith("ids"):
            continue  # of positions
        if masks and (value is None or dims == {2}):
            role = "mask" if "mask" not in found else "second_mask"
        elif dims == ({2} if isinstance(value, list) else {3}):
            role = "embeds" if "embeds" not in found else "second_embeds"
        elif dims == {2} and isinstance(value, Tensor):
            role = "pooled"
        else:
            continue
        found.setdefault(role, name)
    if "second_embeds" not in found or isinstance(values.get(found["second_embeds"]), list):
        found = {role: name for role, name in found.items() if not role.startswith("second")}
    return found or {"embeds": "prompt_embeds"}


def reads_of(manifest: Manifest, roles: Mapping[str, str]) -> dict[str, str]:
    """What an engine reads of a pipeline's prompt: as its bundle says, or all that its network can.

    Args:
        manifest: of the engine.
        roles: of the pipeline, as `roles_of` gives them.
    """
    own = fields_read(manifest.config)
    return manifest.reads or {role: roles[role] for role in own if role in roles}


def reading_of(pipeline: type) -> Reading:
    """What the `__call__` of a class of pipelines does with its prompt; nothing where it cannot be read."""
    return _read(inspect.unwrap(pipeline.__call__))


@functools.cache
def _read(call: Any) -> Reading:
    code = getattr(call, "__code__", None)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(call)))
    except (OSError, TypeError, SyntaxError):
        return Reading(code, (), {})
    expressions = {
        node.targets[0].id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    return Reading(code, tuple(_assigned(tree, code.co_firstlineno - 1 if code else 0)), expressions)


def _assigned(tree: ast.AST, before: int) -> Iterator[Assigned]:
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    for node in sorted(found, key=lambda node: node.lineno):
        call, target = node.value, node.targets[0]
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            continue
        if ast.unparse(call.func.value) == "self" and call.func.attr in (ENCODE, PREPARE):
            targets = target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]
            names = tuple(item.id if isinstance(item, ast.Name) else "_" for item in targets)
            last = before + (node.end_lineno or node.lineno)
            yield Assigned(call.func.attr, before + node.lineno, last, names, call)


def passed_on(values: Mapping[str, Any], parameters: Container[str]) -> dict[str, Any]:
    """What a pipeline's call takes of what it encoded; a mask of ones where it left one out.

    Args:
        values: by the names that the pipeline has for them, embeddings before their masks.
        parameters: names of the call's.
    """
    found: dict[str, Any] = {}
    embeds: Tensor | None = None
    for name, value in values.items():
        if name not in parameters:
            continue
        if isinstance(value, Tensor) and value.dim() == 3:
            embeds = value
        if value is None and "mask" in name and embeds is not None:
            value = torch.ones(embeds.shape[:2], dtype=torch.int64, device=embeds.device)
        if value is not None:
            found[name] = value
    return found


def prompt_from(values: Mapping[str, Any], reads: Mapping[str, str], pipeline: str) -> Prompt:
    """The positive prompt of a call.

    Args:
        values: what was encoded, or passed by the caller, by the name that the pipeline has for it.
        reads: of these, what the network reads: by field of `Prompt`.
        pipeline: its name, for errors.

    Raises:
        PipelineError: there is no such value, or it is none that a network reads.
    """
    taken: dict[str, Any] = {}
    for role, name in reads.items():
        value = values.get(name)
        if value is None and role.endswith("mask"):
            continue  # all are tokens
        if (
            isinstance(value, list) and role == "embeds" and all(isinstance(part, Tensor) for part in value)
        ) or isinstance(value, Tensor):
            taken[role] = value
        else:
            known = ", ".join(name for name, found in values.items() if found is not None) or "nothing"
            raise PipelineError(
                f"{pipeline}: expected prompt embeddings from encode_prompt before the noise is drawn, "
                f"by the name of {name}, given {type(value).__name__}; this call has {known}"
            )
    return Prompt(**taken).padded()
