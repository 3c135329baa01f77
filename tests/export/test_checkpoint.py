"""Checkpoints of every kind give their tensors, hostile and broken ones a sentence, and nothing in them is run."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from limner.export.checkpoint import BadCheckpoint, read_tensors


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.rest = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False))
        self.steps = [1, 2]  # a script keeps it as a list that is built by a function of torch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rest(self.norm(self.first(x))) * len(self.steps)


@pytest.fixture(scope="module")
def small() -> Small:
    torch.manual_seed(0)
    return Small().eval()


def save_traced(network: nn.Module, path: Path) -> None:
    torch.jit.trace(network, torch.zeros(1, 3, 8, 8)).save(path)


def save_script(network: nn.Module, path: Path) -> None:
    torch.jit.script(network).save(path)


def save_lightning(network: nn.Module, path: Path) -> None:
    """As Lightning does: classes of packages that aren't here, and an optimiser's tensors beside the network's."""
    package = types.ModuleType("no_such_lightning")
    attribute_dict = type("AttributeDict", (dict,), {"__module__": "no_such_lightning"})
    callback = type("Callback", (), {"__module__": "no_such_lightning"})
    package.AttributeDict, package.Callback = attribute_dict, callback
    sys.modules["no_such_lightning"] = package
    saver = callback()
    saver.best = 0.5
    parameters = attribute_dict(lr=0.1, sizes=[1, 2], where=Path("somewhere"), names=collections.Counter("abc"))
    adam = {"state": {0: {"exp_avg": torch.ones(3)}}}
    content = {
        "epoch": 3,
        "hyper_parameters": parameters,
        "callbacks": {callback: saver},
        "optimizer_states": [adam],
        "state_dict": network.state_dict(),
    }
    try:
        torch.save(content, path)
    finally:
        del sys.modules["no_such_lightning"]


SAVERS = {
    "traced": save_traced,
    "scripted": save_script,
    "state dict": lambda network, path: torch.save(network.state_dict(), path),
    "parameters": lambda network, path: torch.save(
        dict(network.named_parameters()) | dict(network.named_buffers()), path
    ),
    "beside another network": lambda network, path: torch.save(
        {"iteration": 7, "discriminator": {"x": torch.zeros(1)}, "generator": network.state_dict()}, path
    ),
    "under two names": lambda network, path: torch.save({"model": {"state_dict": network.state_dict()}}, path),
    "whole module": lambda network, path: torch.save(network, path),
    "Lightning": save_lightning,
    "older format": lambda network, path: torch.save(
        {"state_dict": network.state_dict(), "epoch": 3}, path, _use_new_zipfile_serialization=False
    ),
    "safetensors": lambda network, path: save_file(network.state_dict(), path),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's, of TorchScript
@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS)
def test_every_format_gives_the_state_dict(small, save, tmp_path):
    save(small, tmp_path / "x.ckpt")  # what it is shows in its content, not in its name
    found = read_tensors(tmp_path / "x.ckpt")
    expected = small.state_dict()
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_views_strides_and_types_come_out_as_they_were_saved(tmp_path):
    base = torch.arange(24, dtype=torch.float64).reshape(4, 6)
    saved = {
        "view": base[1:3, 2:],
        "transposed": base.T,
        "half": torch.ones(3, dtype=torch.float16),
        "bfloat16": torch.ones(3, dtype=torch.bfloat16),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
    }
    torch.save(saved, tmp_path / "x.pth")
    found = read_tensors(tmp_path / "x.pth")
    assert list(found) == list(saved)
    for name, tensor in saved.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name], tensor)


class Runs:
    """Pickled, it asks for a program to be run."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self._mark}",)


def test_a_program_in_a_checkpoint_is_not_run(small, tmp_path):
    torch.save({"state_dict": small.state_dict(), "hook": Runs(tmp_path / "ran")}, tmp_path / "x.pth")
    assert set(read_tensors(tmp_path / "x.pth")) == set(small.state_dict())
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "x.pth", weights_only=False)  # it would have been
    assert (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_program_in_a_script_is_neither_run_nor_compiled(small, tmp_path):
    save_traced(small, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for entry in good.infolist():
            content = good.read(entry)
            if entry.filename.endswith("/data.pkl"):  # `.` ends a pickle: the call comes first, its result is dropped
                content = content[:2] + pickle.dumps(Runs(tmp_path / "ran"), 2)[2:-1] + b"0" + content[2:]
            elif entry.filename.endswith(".py"):
                content = b"this is no program"
            bad.writestr(entry.filename, content)
    assert set(read_tensors(tmp_path / "bad.pt")) == set(small.state_dict())
    assert not (tmp_path / "ran").exists()


def test_a_program_in_an_older_file_is_refused(small, tmp_path):
    content = {"state_dict": small.state_dict(), "hook": Runs(tmp_path / "ran")}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(BadCheckpoint, match=r"x\.pth: .*none of these are run; save its state dict anew"):
        read_tensors(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()


def test_a_bare_pickle_is_not_even_opened(tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(Runs(tmp_path / "ran"), 2))
    with pytest.raises(BadCheckpoint, match="no checkpoint"):
        read_tensors(tmp_path / "x.pkl")
    assert not (tmp_path / "ran").exists()


def test_what_a_pickle_does_to_the_classes_it_is_given_stays_in_it(small, tmp_path):
    """It sets attributes of OrderedDict, of a rebuilding function and of a class that isn't here."""
    poison = b"".join(
        b"c" + name + b"\n" + b"(N}X\x0b\x00\x00\x00__setitem__K\x01stb0"
        for name in (b"collections\nOrderedDict", b"torch._utils\n_rebuild_parameter", b"foreign\nThing")
    )
    torch.save(small.state_dict(), tmp_path / "good.pth")
    with zipfile.ZipFile(tmp_path / "good.pth") as good, zipfile.ZipFile(tmp_path / "bad.pth", "w") as bad:
        for entry in good.infolist():
            content = good.read(entry)
            bad.writestr(
                entry.filename, content[:2] + poison + content[2:] if "data.pkl" in entry.filename else content
            )
    for _ in range(2):
        with contextlib.suppress(BadCheckpoint):
            read_tensors(tmp_path / "bad.pth")
        assert set(read_tensors(tmp_path / "good.pth")) == set(small.state_dict())


def rewritten(source: Path, change) -> bytes:
    """Return the archive with `change(name, content)` in each content's place; None drops it."""
    out = io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            content = change(entry.filename.partition("/")[2], old.read(entry))
            if content is not None:
                new.writestr(entry.filename, content)
    return out.getvalue()


@pytest.fixture(scope="module")
def saved(small, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "x.pth"
    torch.save(small.state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, data: None if name == "data/0" else data, "values of first.weight are not in it"),
        (lambda name, data: data[:-4] if name == "data/0" else data, r"claims 108 values of torch.float32, 428 bytes"),
        (lambda name, data: data[:300] if name == "data.pkl" else data, "data.pkl is damaged"),
        (lambda name, data: None if name == "data.pkl" else data, "no checkpoint of torch"),
        (lambda name, data: b"big" if name == "byteorder" else data, "big-endian"),
        (lambda name, data: data.replace(b"K\x6c", b"K\x6d") if name == "data.pkl" else data, "claims 109 values"),
        (lambda name, data: data.replace(b"(K\x04K\x03", b"(K\x05K\x03") if name == "data.pkl" else data, "not fit"),
        (lambda name, data: pickle.dumps({"a": 1}, 2) if name == "data.pkl" else data, "no tensors in it"),
    ],
)
def test_a_damaged_archive_is_told_with_what_is_wrong(saved, tmp_path, change, message):
    (tmp_path / "y.pth").write_bytes(rewritten(saved, change))
    with pytest.raises(BadCheckpoint, match=rf"y\.pth: .*{message}"):
        read_tensors(tmp_path / "y.pth")


def test_a_file_cut_off_anywhere_is_refused(saved, small, tmp_path):
    formats = [saved.read_bytes()]
    torch.save(small.state_dict(), tmp_path / "legacy", _use_new_zipfile_serialization=False)
    save_file(small.state_dict(), tmp_path / "safe")
    formats += [(tmp_path / "legacy").read_bytes(), (tmp_path / "safe").read_bytes()]
    for content in formats:
        for part in (0, 1, 5, 9, 20, len(content) // 3, len(content) - 100, len(content) - 1):
            (tmp_path / "y").write_bytes(content[:part])
            with pytest.raises(BadCheckpoint, match="y: "):
                read_tensors(tmp_path / "y")


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>rate limit</html>", b"\x89PNG\r\n\x1a\n" + bytes(99)])
def test_what_is_no_checkpoint_is_told(tmp_path, content):
    (tmp_path / "y.pt").write_bytes(content)
    with pytest.raises(BadCheckpoint, match=r"y\.pt: it is no checkpoint"):
        read_tensors(tmp_path / "y.pt")


def test_a_zip_that_unfolds_into_more_than_it_is_long_is_refused_unread(saved, tmp_path):
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(tmp_path / "y", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, bytes(50_000_000) if entry.filename.endswith("data/0") else old.read(entry))
    with pytest.raises(BadCheckpoint, match="claims to hold more than its"):
        read_tensors(tmp_path / "y")


def test_a_pickle_that_nests_without_end_is_refused(saved, tmp_path):
    shared = {"x": 1}
    for _ in range(40):  # forty small dicts, a million million paths
        shared = {"a": shared, "b": shared}
    knot = pickle.dumps(shared, 2)
    endless = b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s."  # a dict that holds itself
    for pickled in (knot, endless):
        content = rewritten(saved, lambda name, data, new=pickled: new if name == "data.pkl" else data)
        (tmp_path / "y").write_bytes(content)
        with pytest.raises(BadCheckpoint, match="nested deeper"):
            read_tensors(tmp_path / "y")


def test_a_safetensors_header_that_claims_too_much_is_refused(tmp_path):
    header = b'{"a":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}'
    (tmp_path / "y").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(BadCheckpoint, match="damaged safetensors"):
        read_tensors(tmp_path / "y")
