"""What can be found wrong before anything slow is imported or made."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from npnet_training.demo.settings import DemoSettings
from npnet_training.demo.worlds import World
from npnet_training.errors import DemoError, PromptsError
from npnet_training.prompt_files import SUFFIXES, kind_of
from npnet_training.prompts import OF_WORLDS, read_prompts

RESULTS = "demo.json"
_MOST = 20_000  # held-out prompts; there are about three times as many
_MODULES = {"onnxruntime": ("onnx", "onnxscript", "onnxruntime"), "torch": ()}


def read_texts(sources: tuple[str, ...], world: World) -> list[str]:
    """Distinct prompts in the order of their sources.

    Args:
        sources: a number of held-out prompts, a file that `npnet_training.prompts` reads, or a prompt, each.
        world: theirs.

    Raises:
        PromptsError: a prompt is outside the grammar, there is none, too many are asked for, or a file
            cannot be read.
    """
    found: dict[str, None] = {}
    for source in sources:
        found.update(dict.fromkeys(_read(source.strip(), world)))
    if not found:
        raise PromptsError('--prompts: expected a number, a file or a prompt such as "a red circle"')
    return list(found)


def _read(source: str, world: World) -> Iterator[str]:
    if _is_number(source):
        if not source.isdecimal() or not 1 <= float(source) <= _MOST:
            raise PromptsError(
                f"--prompts: expected 1 to {_MOST} held-out prompts, in digits, given {source}"
            )
        yield from world.held_out(int(source))
    elif source.startswith(OF_WORLDS) or kind_of(Path(source)) in SUFFIXES or _is_file(source):
        for number, prompt in enumerate(read_prompts(source), 1):
            try:
                yield str(world.parse(prompt.text))
            except PromptsError as error:
                raise PromptsError(f"{source}, prompt {number}: {error}") from error
    else:
        yield str(world.parse(source))


def _is_number(source: str) -> bool:
    try:
        float(source)
    except ValueError:
        return False
    return True


def _is_file(source: str) -> bool:
    try:
        return Path(source).is_file()
    except (OSError, ValueError):  # too long, or with a null character: it is a text
        return False


def check_output(path: Path, *, force: bool) -> None:
    """Whether a demo may be written there.

    Raises:
        DemoError: something else is there, or an earlier demo and `force` is false; or it is no path.
    """
    try:
        path.lstat()
    except OSError:
        return  # nothing is there
    except ValueError as error:  # with a null character
        raise DemoError(
            f"--output {str(path)!r}: cannot be written ({error}); give another folder"
        ) from error
    if not path.is_dir():
        raise DemoError(f"--output {path}: expected a folder, found a file; give another --output")
    if not any(path.iterdir()):
        return
    if not (path / RESULTS).is_file():
        raise DemoError(f"--output {path}: expected an empty folder, found other files; give another one")
    if not force:
        raise DemoError(f"--output {path} holds an earlier demo: replace it with --force, or give another")


def check_modules(settings: DemoSettings) -> None:
    """Whether what the demo imports is installed.

    Raises:
        DemoError: a module is missing.
    """
    needed = ("diffusers", "transformers", "PIL", "jinja2", *_MODULES[settings.engine])
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        other = "; or give --engine torch" if set(missing) <= set(_MODULES["onnxruntime"]) else ""
        raise DemoError(
            f"npnet-demo --engine {settings.engine} needs {', '.join(missing)}: "
            f"pip install 'npnet-runtime[demo]'{other}"
        )
