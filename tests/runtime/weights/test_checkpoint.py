"""Reading every form of checkpoint, and refusing everything else."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from npnet_runtime import NPNet, NPNetConfig
from npnet_runtime.errors import CheckpointError
from npnet_runtime.weights import checkpoint
from npnet_runtime.weights.models import MODELS
from npnet_runtime.weights.published import is_unused, published_name
from support.networks import SMALL
from support.published_files import published_groups, published_shapes, write_pth, write_safetensors

State = dict[str, Tensor]


def assert_same(given: State, expected: State) -> None:
    assert given.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(given[name], value), name


@pytest.mark.parametrize("form", ["pth", "safetensors/embeeding", "safetensors/text_embedding"])
def test_published_forms(form: str, small_state: State, tmp_path: Path) -> None:
    path = tmp_path / "any-name"  # the form is told by the content
    if form == "pth":
        write_pth(path, small_state)
    else:
        write_safetensors(path, small_state, form.partition("/")[2])
    read = checkpoint.read(path, SMALL)
    assert read.form == form
    assert_same(read.state, small_state)
    assert len(read.sha256) == 64


def test_own_form(small_checkpoint: Path, small_state: State) -> None:
    read = checkpoint.read(small_checkpoint)
    assert (read.form, read.config) == (checkpoint.FORMAT, SMALL)
    assert_same(read.state, small_state)
    assert not read.network().training


def test_own_form_is_deterministic(small_state: State, tmp_path: Path) -> None:
    for name in ("a", "b"):
        checkpoint.write(tmp_path / name, small_state, SMALL)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_names_are_those_of_the_released_file() -> None:
    released = {name: tuple(shape) for name, shape in published_shapes().items() if not is_unused(name)}
    with torch.device("meta"):
        state = NPNet(MODELS["sdxl"].config).state_dict()
    ours = {published_name(name): tuple(value.shape) for name, value in state.items()}
    assert ours.pop("alpha") == ours.pop("beta") == ()
    assert ours == released


def test_half_precision_weights_are_widened(small_state: State, tmp_path: Path) -> None:
    save_file({k: v.half() for k, v in write_flat(small_state).items()}, tmp_path / "half.safetensors")
    read = checkpoint.read(tmp_path / "half.safetensors", SMALL)
    assert {value.dtype for value in read.state.values()} == {torch.float32}


def write_flat(state: State) -> State:
    return {published_name(name): value.clone() for name, value in state.items()}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("inside", [False, True])
def test_prefixes_of_wrapped_modules(prefix: str, inside: bool, small_state: State, tmp_path: Path) -> None:
    """Of a whole network, or of each of its state dicts."""

    def named(name: str) -> str:
        group, dot, key = name.partition(".")
        return f"{group}.{prefix}{key}" if inside and dot else prefix + name

    flat = {named(name): tensor for name, tensor in write_flat(small_state).items()}
    torch.save(flat, tmp_path / "a.pth")
    save_file(flat, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        given = checkpoint.read(tmp_path / name, SMALL).state
        assert all(torch.equal(given[key], value) for key, value in small_state.items())


def test_a_tensor_under_two_names(small_state: State, tmp_path: Path) -> None:
    flat = write_flat(small_state)
    torch.save(flat | {f"module.{name}": tensor for name, tensor in flat.items()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="expected each tensor once"):
        checkpoint.read(tmp_path / "a.pth", SMALL)


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
def test_what_trainers_save_beside_weights(wrapper: str, small_state: State, tmp_path: Path) -> None:
    content = {
        wrapper: write_flat(small_state), "optimizer": {"state": {0: {"step": torch.ones(1)}}},
        "loss": np.float64(0.5), "best": np.float32(1), "curve": np.arange(3.0),
        "options": argparse.Namespace(lr=np.float64(1e-4), name="a"),
    }  # fmt: skip
    torch.save(content, tmp_path / "a.pth")
    given = checkpoint.read(tmp_path / "a.pth", SMALL).state
    assert all(torch.equal(given[key], value) for key, value in small_state.items())


def test_objects_are_named(small_state: State, tmp_path: Path) -> None:
    torch.save(write_flat(small_state) | {"where": tmp_path}, tmp_path / "a.pth")
    with pytest.raises(
        CheckpointError, match=r"objects of pathlib.* beside them, .*safetensors.torch.save_file"
    ):
        checkpoint.read(tmp_path / "a.pth", SMALL)


class Exploit:
    """Unpickling this would run code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("container", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_not_run(container: str, tmp_path: Path) -> None:
    path, trap = tmp_path / "evil.pth", tmp_path / "ran"
    if container == "torch":
        torch.save({"unet_svd": Exploit(trap)}, path)
    else:
        path.write_bytes(pickle.dumps({"unet_svd": Exploit(trap)}))
    with pytest.raises(CheckpointError, match="holds tensors only"):
        checkpoint.read(path, SMALL)
    assert not trap.exists()


@pytest.mark.parametrize("form", ["pth", "safetensors", "own"])
@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.999])
def test_truncated(form: str, keep: float, small_state: State, tmp_path: Path) -> None:
    path = tmp_path / "cut"
    if form == "pth":
        write_pth(path, small_state)
    elif form == "own":
        checkpoint.write(path, small_state, SMALL)
    else:
        write_safetensors(path, small_state, "embeeding")
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(CheckpointError, match="truncated, damaged or foreign|truncated or damaged"):
        checkpoint.read(path, SMALL)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "expected a dict of state dicts, given list"),
        ({"model": {"weight": torch.ones(2)}}, "no NPNet checkpoint.*given weight"),
        ({}, "no NPNet checkpoint.*no tensors"),
        ({"unet_svd": "text"}, "no NPNet checkpoint"),
    ],
)
def test_foreign(content: object, said: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "foreign.pth")
    with pytest.raises(CheckpointError, match=said):
        checkpoint.read(tmp_path / "foreign.pth", SMALL)


def test_git_lfs_pointer(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(CheckpointError, match="a git-lfs pointer; run git lfs pull"):
        checkpoint.read(tmp_path / "x.pth", SMALL)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint.read(tmp_path / "absent.pth", SMALL)
    with pytest.raises(CheckpointError, match="a directory"):
        checkpoint.read(tmp_path, SMALL)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda g: g["unet_svd"].pop("mlp3.0.weight"), r"missing: unet_svd.mlp3.0.weight \[32, 32\]"),
        (lambda g: g.pop("alpha"), r"missing: alpha"),
        (lambda g: g["embeeding"].update(extra=torch.ones(3)), r"unexpected: embeeding.extra \[3\]"),
        (
            lambda g: g["unet_embedding"].update({"upconv.bias": torch.ones(5)}),
            r"misshapen: unet_embedding.upconv.bias: expected \[4\], given \[5\]",
        ),
        (lambda g: g.update(beta=torch.ones(2)), r"misshapen: beta: expected \[\], given \[2\]"),
        (lambda g: g.update(beta=torch.ones(1).long()), r"not floating point: beta"),
        (lambda g: g["unet_svd"]["mlp3.0.bias"].fill_(torch.nan), r"not finite in float32: unet_svd.mlp3"),
        (lambda g: g.update(beta=torch.tensor([1e300]).double()), r"not finite in float32: beta"),
        (lambda g: g.update(beta=torch.ones(1).to(torch.float8_e4m3fn)), r"not floating point: beta"),
        (lambda g: g["unet_svd"].update({"mlp3.0.bias": torch.ones(32).to_sparse()}), r"no dense values"),
    ],
)
def test_wrong_tensors(change: object, said: str, small_state: State, tmp_path: Path) -> None:
    groups = published_groups(small_state)
    change(groups)  # type: ignore[operator]
    torch.save(groups, tmp_path / "wrong.pth")
    with pytest.raises(CheckpointError, match=said):
        checkpoint.read(tmp_path / "wrong.pth", SMALL)


def test_many_problems_are_counted(small_state: State, tmp_path: Path) -> None:
    groups = published_groups(small_state)
    groups["unet_embedding"].clear()
    torch.save(groups, tmp_path / "wrong.pth")
    with pytest.raises(CheckpointError, match=r"and \d+ more"):
        checkpoint.read(tmp_path / "wrong.pth", SMALL)


def test_checkpoint_of_another_model(sdxl_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="text affine is that of --model sdxl or dreamshaper"):
        checkpoint.read(sdxl_checkpoint, MODELS["hunyuan-dit"].config)


def test_own_form_of_another_network(small_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="text_dim: expected 2048, given 12"):
        checkpoint.read(small_checkpoint, NPNetConfig())


def test_published_form_needs_a_model(small_state: State, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="name its model"):
        checkpoint.read(write_pth(tmp_path / "x.pth", small_state))


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ('{"format_version": 99}', "format version 1, given 99"),
        ('{"format_version": 1', "unreadable metadata"),
        ('{"format_version": 1}', "unreadable metadata"),
        ('{"format_version": 1, "config": {}}', "unreadable metadata"),
        ("[]", "unreadable metadata"),
    ],
)
def test_bad_metadata(header: str, said: str, small_state: State, tmp_path: Path) -> None:
    save_file(small_state, tmp_path / "x", {checkpoint.FORMAT: header})
    with pytest.raises(CheckpointError, match=said):
        checkpoint.read(tmp_path / "x")


def test_write_refuses_an_incomplete_state(small_state: State, tmp_path: Path) -> None:
    partial = {k: v for k, v in small_state.items() if k != "alpha"}
    with pytest.raises(CheckpointError, match="missing: alpha"):
        checkpoint.write(tmp_path / "x", partial, SMALL)
    assert not list(tmp_path.iterdir())


def test_write_into_a_file(small_state: State, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot write"):
        checkpoint.write(tmp_path / "file" / "x", small_state, SMALL)
