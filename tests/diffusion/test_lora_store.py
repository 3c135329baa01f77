"""A folder of LoRAs: files come, change and go while it is used; names lead nowhere else."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from limner.core.errors import BadArgument, UnknownModel
from limner.diffusion.lora import file as lora_file
from limner.diffusion.lora.lora import Lora
from limner.diffusion.lora.store import LoraStore
from limner.diffusion.parameters import LoraUse

KEY = "transformer.transformer_blocks.0.attn.to_q"


def write(path: Path, value: float = 1.0, rank: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(".new")
    save_file(
        {f"{KEY}.lora_A.weight": torch.full((rank, 64), float(value)), f"{KEY}.lora_B.weight": torch.ones(64, rank)},
        new,
    )
    new.replace(path)


def value_of(lora: Lora) -> float:
    return float(lora.layers["transformer"]["transformer_blocks.0.attn.to_q"].down[0, 0])


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    seen: list[Path] = []
    read = lora_file.read_lora

    def counted(path: Path, name: str) -> Lora:
        seen.append(path)
        return read(path, name)

    monkeypatch.setattr(lora_file, "read_lora", counted)
    return seen


def test_names_are_those_of_files_and_folders(tmp_path: Path) -> None:
    for name in ("style.safetensors", "v1.5.safetensors", "Märchen, 2.safetensors", ".half.safetensors"):
        write(tmp_path / name)
    write(tmp_path / "trained" / "pytorch_lora_weights.safetensors")
    write(tmp_path / "peft" / "adapter_model.safetensors")
    write(tmp_path / "other" / "else.safetensors")
    write(tmp_path / "style" / "adapter_model.safetensors", 2)
    (tmp_path / "notes.txt").write_text("none")
    (tmp_path / "old.ckpt").write_bytes(b"pickle")
    store = LoraStore(tmp_path)
    assert store.names() == ["Märchen, 2", "peft", "style", "trained", "v1.5"]
    assert store.path("trained") == tmp_path / "trained" / "pytorch_lora_weights.safetensors"
    assert store.get("peft").name == "peft"
    assert value_of(store.get("style")) == 1  # the file goes before the folder


def test_a_folder_that_is_not_there_is_empty(tmp_path: Path) -> None:
    store = LoraStore(tmp_path / "none")
    assert store.names() == []
    assert not store.is_loaded("style")
    with pytest.raises(UnknownModel, match="no LoRA 'style' here; there are: none"):
        store.get("style")
    write(tmp_path / "none" / "style.safetensors")
    assert value_of(store.get("style")) == 1


@pytest.mark.parametrize("name", ["../secret", "..", ".", "", "/etc/passwd", "sub/inner", "style\0", "secret", "STYLE"])
def test_names_lead_nowhere_else(name: str, tmp_path: Path) -> None:
    write(tmp_path / "secret.safetensors")
    write(tmp_path / "loras" / "style.safetensors")
    write(tmp_path / "loras" / "sub" / "inner.safetensors")
    store = LoraStore(tmp_path / "loras")
    for ask in (store.get, store.path, store.load):
        with pytest.raises(UnknownModel, match="there are: style"):
            ask(name)
    assert not store.is_loaded(name)
    store.unload(name)


def test_loras_are_read_once(tmp_path: Path, reads: list[Path]) -> None:
    write(tmp_path / "style.safetensors")
    store = LoraStore(tmp_path)
    assert not store.is_loaded("style")
    store.load("style")
    assert store.is_loaded("style")
    assert store.get("style") is store.get("style")
    assert reads == [tmp_path / "style.safetensors"]


def test_a_lora_that_was_unloaded_is_read_again_when_it_is_used(tmp_path: Path, reads: list[Path]) -> None:
    write(tmp_path / "style.safetensors")
    store = LoraStore(tmp_path)
    held = store.get("style")
    store.unload("style")
    assert not store.is_loaded("style")
    assert value_of(held) == 1  # whoever uses it goes on
    assert store.get("style") is not held
    assert len(reads) == 2


def test_unloading_frees_the_memory(tmp_path: Path) -> None:
    write(tmp_path / "style.safetensors")
    store = LoraStore(tmp_path)
    gone = weakref.ref(store.get("style"))
    store.unload("style")
    gc.collect()
    assert gone() is None


def test_files_that_changed_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    write(path, 1)
    store = LoraStore(tmp_path)
    first = store.get("style")
    write(path, 2)
    assert not store.is_loaded("style")
    assert value_of(store.get("style")) == 2
    assert value_of(first) == 1
    path.unlink()
    assert store.names() == []
    assert not store.is_loaded("style")
    with pytest.raises(UnknownModel):
        store.get("style")
    store.unload("style")


def test_a_file_that_was_damaged_is_read_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    path.write_bytes(b"half")
    store = LoraStore(tmp_path)
    with pytest.raises(BadArgument, match="LoRA 'style' is no whole safetensors file"):
        store.load("style")
    assert not store.is_loaded("style")
    write(path)
    assert value_of(store.get("style")) == 1


def test_a_file_that_goes_while_it_is_looked_for_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "style.safetensors"
    write(path)
    store = LoraStore(tmp_path)
    monkeypatch.setattr(store, "_paths", lambda: {"style": tmp_path / "gone.safetensors"})
    with pytest.raises(UnknownModel):
        store.get("style")
    assert not store.is_loaded("style")


def test_those_that_were_used_last_are_kept(tmp_path: Path, reads: list[Path]) -> None:
    for name in ("a", "b", "c", "large"):
        write(tmp_path / f"{name}.safetensors", rank=400 if name == "large" else 4)
    size = LoraStore(tmp_path).get("a").byte_count
    reads.clear()
    store = LoraStore(tmp_path, byte_limit=2 * size)
    for name in ("a", "b", "a", "c"):
        store.get(name)
    assert [store.is_loaded(name) for name in ("a", "b", "c")] == [True, False, True]
    assert len(reads) == 3
    store.load("large")  # one is kept in any case: it is used
    assert [store.is_loaded(name) for name in ("a", "b", "c", "large")] == [False, False, False, True]


def test_uses_are_loras_with_scales(tmp_path: Path) -> None:
    for value, name in enumerate(("a", "b"), 1):
        write(tmp_path / f"{name}.safetensors", value)
    store = LoraStore(tmp_path)
    used = store.uses([LoraUse("b", 0.5), LoraUse("a", -2)])
    assert [(each.lora.name, value_of(each.lora), each.scale) for each in used] == [("b", 2, 0.5), ("a", 1, -2)]
    assert store.uses([]) == ()
    with pytest.raises(UnknownModel, match="no LoRA 'c' here; there are: a, b"):
        store.uses([LoraUse("a"), LoraUse("c")])


def test_threads_get_the_same_lora(tmp_path: Path, reads: list[Path]) -> None:
    names = [f"style-{index}" for index in range(3)]
    for name in names:
        write(tmp_path / f"{name}.safetensors")
    store, together, got = LoraStore(tmp_path), threading.Barrier(8), []

    def ask() -> None:
        together.wait()
        got.extend(store.get(name) for name in names)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 24
    assert len({lora.serial for lora in got}) == len(reads) == 3


def test_what_there_is_can_be_told_while_one_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "style.safetensors")
    store, reading, go_on = LoraStore(tmp_path), threading.Event(), threading.Event()
    read = lora_file.read_lora

    def slow(*arguments: Any) -> Lora:
        reading.set()
        assert go_on.wait(10)
        return read(*arguments)

    monkeypatch.setattr(lora_file, "read_lora", slow)
    thread = threading.Thread(target=store.load, args=("style",))
    thread.start()
    assert reading.wait(10)
    assert store.names() == ["style"]
    assert not store.is_loaded("style")
    store.unload("style")
    go_on.set()
    thread.join()
    assert store.is_loaded("style")


def test_a_folder_can_be_listed_without_torch() -> None:
    code = "import sys, limner.diffusion.lora.store as s, pathlib; s.LoraStore(pathlib.Path('x')).names(); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
