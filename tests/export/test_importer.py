from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from limner.core.errors import ModelNotInstalled, OutOfMemory
from limner.engine.fetch import StoreError
from limner.engine.store import digest
from limner.export import importer, precisions
from limner.export.checkpoint import BadCheckpoint
from limner.export.exports import EXPORTS
from tests.export.conftest import EXPORT, TinyFill, tiny


@pytest.fixture
def told():
    return []


@pytest.fixture
def pull(store, told):
    def pull(card, **options):
        return importer.pull(store, card, tell=told.append, **{"precisions": ("fp32",), **options})

    return pull


@pytest.fixture
def import_files(store, told):
    def import_files(card, *paths, **options):
        return importer.import_files(store, card, paths, tell=told.append, **{"precisions": ("fp32",), **options})

    return import_files


def leftovers(store):
    return sorted(path.name for path in store.root.rglob("*") if path.is_file() and path.suffix != ".lock")


def record(store, card):
    return json.loads((store.folder(card) / "card.json").read_text())


def fill(path: Path, side: int = 24, batch: int = 2):
    random = np.random.default_rng(5)
    inputs = {
        "image": random.random((batch, 3, side, side), np.float32),
        "mask": (random.random((batch, 1, side, side)) < 0.3).astype(np.float32),
    }
    (found,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, inputs)
    return found, [torch.from_numpy(value) for value in inputs.values()]


def test_a_pulled_model_is_an_onnx_file_that_fills_as_torch_does(store, card, pull):
    assert store.missing(card) == ["network.onnx"]
    assert pull(card) == ["network.onnx"]
    assert (store.missing(card), store.verify(card)) == ([], [])
    found, inputs = fill(store.path(card, "network.onnx"))
    with torch.inference_mode():
        expected = TinyFill(tiny())(*inputs).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_sources_go_and_what_they_were_is_written_down(store, card, pull, weights):
    pull(card)
    assert leftovers(store) == ["card.json", "network.onnx"]
    found = record(store, card)
    assert found["made_from"]["tiny.pth"] == {
        "digest": digest(weights),
        "from": weights.as_uri(),
        "published": card.files[0].digest,
    }
    assert found["files"]["network.onnx"]["digest"] == digest(store.path(card, "network.onnx"))
    assert found["made_by"]["torch"] == torch.__version__
    assert found["licence"] == "Apache-2.0"


def test_every_precision_is_made_and_its_difference_measured(store, card, pull, monkeypatch):
    machine = dataclasses.replace(importer.this_machine(), cpu_flags=frozenset())
    monkeypatch.setattr(importer, "this_machine", lambda: machine)
    made = pull(card, precisions=importer.PRECISIONS)
    assert set(made) == {"network.onnx", "network.fp16.onnx", "network.int8.onnx"}
    assert store.verify(card) == []
    differences = store.differences(card)
    assert set(differences) == {"fp16", "int8"}  # this machine was said not to multiply in bf16
    assert all(0 < value <= 1 / 255 for value in differences.values())
    exact, _ = fill(store.path(card, "network.onnx"))
    for name, operator in (("fp16", "Cast"), ("int8", "QuantizeLinear")):
        path = store.path(card, f"network.{name}.onnx")
        assert operator in {node.op_type for node in onnx.load(path).graph.node}
        found, _ = fill(path)
        assert 0 < np.abs(found - exact).mean() < 0.01


def test_bf16_is_measured_where_the_machine_has_it(store, card, pull):
    if not importer.this_machine().bf16_unit:
        pytest.skip("this CPU doesn't multiply in bf16")
    assert pull(card, precisions=("fp32", "bf16")) == ["network.onnx"]
    assert 0 < store.differences(card)["bf16"] < 1 / 255


def test_a_precision_that_differs_too_much_is_measured_but_not_kept(store, card, pull, told, monkeypatch):
    monkeypatch.setattr(importer, "LARGEST_DIFFERENCE", 1e-9)
    assert pull(card, precisions=("fp32", "int8")) == ["network.onnx"]
    assert leftovers(store) == ["card.json", "network.onnx"]
    assert store.differences(card)["int8"] > 1e-9
    assert any("int8 differs" in text and "too much" in text for text in told)
    with pytest.raises(ModelNotInstalled):
        store.path(card, "network.int8.onnx")


def test_the_difference_is_that_in_the_hole_alone():
    mask = np.zeros((1, 1, 4, 4), np.float32)
    mask[..., :2, :] = 1
    one, other = np.zeros((1, 3, 4, 4), np.float32), np.zeros((1, 3, 4, 4), np.float32)
    other[..., :2, :], other[..., 2:, :] = 0.25, 1
    assert precisions.difference([one], [other], [{"mask": mask}]) == 0.25


def test_an_import_needs_no_published_file_and_says_so(store, card, import_files, told, save, weights):
    path = save({f"model.{name}": tensor for name, tensor in tiny(3).state_dict().items()})
    assert import_files(card, path) == ["network.onnx"]
    assert any("mine.pth, not the published file" in text for text in told)
    assert record(store, card)["made_from"] == {"tiny.pth": {"digest": digest(path), "from": "mine.pth"}}
    assert path.is_file()
    assert store.missing(card) == []
    found, inputs = fill(store.path(card, "network.onnx"))
    with torch.inference_mode():
        np.testing.assert_allclose(found, TinyFill(tiny(3))(*inputs).numpy(), atol=1e-5)
    import_files(card, weights)
    assert any("tiny.pth, the published file" in text for text in told)


def test_files_are_known_by_their_names_else_by_their_order(store, two_networks, import_files, save, weights):
    renamed = save(tiny(3).state_dict(), "renamed.pth")
    for paths in ((weights, renamed), (renamed, weights)):
        assert import_files(two_networks, *paths) == ["network.onnx", "other.onnx"]
        sources = record(store, two_networks)["made_from"]
        assert (sources["tiny.pth"]["from"], sources["other.pth"]["from"]) == ("tiny.pth", "renamed.pth")
    with pytest.raises(StoreError, match=r"2 files, in this order: tiny\.pth, other\.pth"):
        import_files(two_networks, weights)
    with pytest.raises(StoreError, match="given twice"):
        import_files(two_networks, weights, weights)
    with pytest.raises(StoreError, match=r"there is no file .*gone\.pth"):
        import_files(two_networks, weights, Path("gone.pth"))


def contents(store):
    return {path.name: path.read_bytes() for path in store.root.rglob("*") if path.is_file() and path.suffix != ".lock"}


@pytest.fixture
def installed(store, card, pull):
    """The files of an earlier export."""
    pull(card)
    return contents(store)


def test_weights_that_do_not_fit_are_named_and_leave_the_old_file(store, card, installed, import_files, save):
    path = save({name: tensor for name, tensor in tiny().state_dict().items() if name != "last.bias"})
    with pytest.raises(BadCheckpoint, match=r"^mine\.pth does not fit: of 9 parameters 1 missing: last\.bias \(3\)$"):
        import_files(card, path)
    assert contents(store) == installed


def test_a_network_that_onnx_computes_otherwise_is_refused(store, card, installed, import_files, save, monkeypatch):
    class Unsteady(TinyFill):
        def forward(self, image, mask):
            return super().forward(image, mask) + (0.1 if torch.onnx.is_in_onnx_export() else 0)

    monkeypatch.setitem(EXPORTS, "tiny", (dataclasses.replace(EXPORT, wrap=Unsteady),))
    with pytest.raises(StoreError, match=r"other values than torch: filled differs by 0\.1.*nothing was kept"):
        import_files(card, save(tiny(3).state_dict()))
    assert contents(store) == installed


def test_values_that_are_no_numbers_are_refused(store, card, import_files, save):
    broken = tiny(3).state_dict()
    broken["last.bias"] = torch.full((3,), torch.nan)
    with pytest.raises(StoreError, match="nan"):
        import_files(card, save(broken))
    assert leftovers(store) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
@pytest.mark.parametrize("name", ["network.onnx.part", "network.int8.onnx.part", "card.json.part"])
def test_a_full_disk_leaves_the_old_files(store, card, installed, import_files, save, name):
    (store.folder(card) / name).symlink_to("/dev/full")
    with pytest.raises(StoreError, match=r"is full: .*set --model-dir"):
        import_files(card, save(tiny(3).state_dict()), precisions=("fp32", "int8"))
    assert contents(store) == installed


@pytest.mark.parametrize("precisions", [("fp32",), ("fp32", "int8")])
def test_memory_that_runs_out_is_told_in_words(store, card, installed, import_files, save, monkeypatch, precisions):
    def run_out(*_):
        raise OutOfMemory("the device has not enough memory for this")

    monkeypatch.setattr(importer, "fills" if "int8" in precisions else "check_onnx", run_out)
    with pytest.raises(StoreError, match="not enough memory for this; nothing was kept"):
        import_files(card, save(tiny(3).state_dict()), precisions=precisions)
    assert contents(store) == installed


class Killed(BaseException):
    """What nothing catches."""


@pytest.mark.parametrize("last", ["network.onnx.part", "other.onnx.part", "card.json.part"])
def test_a_process_killed_while_files_get_their_names_leaves_no_mixture(
    store, two_networks, import_files, save, monkeypatch, last
):
    old, new = save(tiny(0).state_dict(), "old.pth"), save(tiny(3).state_dict(), "new.pth")
    import_files(two_networks, old, old)
    replace = Path.replace

    def replace_or_die(path, target):
        if path.name == last:
            raise Killed
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replace_or_die)
    with pytest.raises(Killed):
        import_files(two_networks, new, new)
    monkeypatch.undo()
    monkeypatch.setitem(EXPORTS, "tiny", (EXPORT, dataclasses.replace(EXPORT, file="other.pth", onnx="other.onnx")))
    assert store.missing(two_networks) or store.verify(two_networks) == []
    import_files(two_networks, new, new)
    assert (store.missing(two_networks), store.verify(two_networks)) == ([], [])
    assert leftovers(store) == ["card.json", "network.onnx", "other.onnx"]


def test_a_wrong_digest_leaves_the_old_files(store, card, installed, pull):
    newer = dataclasses.replace(card, files=(dataclasses.replace(card.files[0], digest="md5:" + "0" * 32),))
    assert store.missing(newer) == ["network.onnx"]
    assert "another version" in store.verify(newer)[0]
    with pytest.raises(StoreError, match="nothing was kept"):
        pull(newer)
    assert contents(store) == installed


def test_an_export_that_failed_needs_no_second_download(store, card, pull, monkeypatch, weights):
    monkeypatch.setattr(importer, "TOLERANCE", -1)
    with pytest.raises(StoreError, match="other values"):
        pull(card)
    assert leftovers(store) == ["tiny.pth"]
    weights.unlink()
    monkeypatch.undo()
    monkeypatch.setitem(EXPORTS, "tiny", (EXPORT,))
    assert pull(card) == ["network.onnx"]
    assert leftovers(store) == ["card.json", "network.onnx"]


def test_a_licence_that_is_not_free_is_asked_for_before_anything_is_done(store, card, pull, import_files, weights):
    bound = dataclasses.replace(card, needs_acceptance=True, licence="CC-BY-NC-4.0")
    for attempt in (lambda: pull(bound), lambda: import_files(bound, weights)):
        with pytest.raises(StoreError, match=r"CC-BY-NC-4\.0.*--accept-licence"):
            attempt()
    assert not store.folder(bound).exists()
    assert pull(bound, accept_licence=True) == ["network.onnx"]


def test_a_new_export_takes_the_old_ones_precisions_away(store, card, pull, import_files, weights):
    pull(card, precisions=("fp32", "int8"))
    import_files(card, weights)
    assert leftovers(store) == ["card.json", "network.onnx"]
    assert store.differences(card) == {}


def test_what_a_killed_export_left_goes_with_the_next(store, card, import_files, weights):
    store.folder(card).mkdir(parents=True)
    for name in ("network.int8.onnx", "network.fp16.onnx.part"):  # of precisions that are not made this time
        (store.folder(card) / name).write_bytes(b"left")
    import_files(card, weights)
    assert leftovers(store) == ["card.json", "network.onnx"]


def test_a_precision_whose_file_was_removed_is_not_offered(store, card, pull):
    pull(card, precisions=("fp32", "int8"))
    assert "int8" in store.differences(card)
    (store.folder(card) / "network.int8.onnx").unlink()
    assert "int8" not in store.differences(card)
    assert store.missing(card) == []
    assert store.verify(card) == [
        "network.int8.onnx is missing: limner models rm tiny, then limner models pull tiny or import it again"
    ]


def test_a_damaged_export_is_told_by_verify_and_made_anew_after_rm(store, card, pull):
    pull(card)
    (store.folder(card) / "network.onnx").write_bytes(b"damage")
    assert store.verify(card) == [
        "network.onnx is damaged: limner models rm tiny, then limner models pull tiny or import it again"
    ]
    store.rm(card)
    assert store.missing(card) == ["network.onnx"]
    assert "missing" in store.verify(card)[0]
    pull(card)
    assert store.verify(card) == []
