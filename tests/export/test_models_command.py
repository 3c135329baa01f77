"""`limner models` with a model whose published weights become ONNX files."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

from limner.models import __main__ as command
from limner.models.offers import Offer
from tests.export.conftest import tiny


@pytest.fixture
def limner_models(card, store, monkeypatch, capsys):
    """`limner_models("pull", "tiny")`: (exit code, the row of stdout, stderr)."""
    offered = [Offer("inpaint", card)]
    monkeypatch.setattr(command, "gather", lambda: (offered, []))
    monkeypatch.delenv("LIMNER_MIRROR", raising=False)

    def run(*arguments):
        code = command.main([*arguments, "--model-dir", str(store.root), "--json"])
        out, err = capsys.readouterr()
        (row,) = json.loads(out)
        return code, row, err

    run.offered = offered
    return run


def test_pull_list_verify_and_rm_in_turn(limner_models, weights, store):
    code, row, _ = limner_models("list")
    assert (row["installed"], row["install_with"]) == (False, "limner models pull tiny")
    assert row["size_bytes"] == weights.stat().st_size
    code, row, err = limner_models("pull", "tiny", "--precisions", "fp32,int8")
    assert (code, row["outcome"]) == (0, "made network.onnx, network.int8.onnx")
    for text in ("tiny.pth, the published file", "writing network.onnx", "comparing", "int8 differs from fp32 by"):
        assert text in err
    code, row, _ = limner_models("list")
    assert (row["installed"], row["install_with"]) == (True, "")
    assert row["size_bytes"] == sum(path.stat().st_size for path in store.root.rglob("*.onnx"))
    assert limner_models("pull", "tiny")[1]["outcome"] == "is here already"
    assert limner_models("verify")[:2] == (0, {"name": "tiny", "outcome": "right"})
    assert limner_models("rm", "tiny")[0] == 0
    assert limner_models("verify", "tiny")[0] == 1


def test_import_takes_files_of_this_disk(limner_models, save):
    code, row, err = limner_models("import", "tiny", str(save(tiny(3).state_dict())), "--precisions", "fp32")
    assert (code, row["outcome"]) == (0, "made network.onnx")
    assert "mine.pth, not the published file" in err
    code, row, _ = limner_models("import", "tiny", str(save({"first.weight": torch.zeros(8, 4, 5, 5)})))
    assert code == 1
    assert row["outcome"].startswith("failed: mine.pth does not fit: of 9 parameters 7 missing: first.bias (8), ")


def test_a_model_without_a_checkpoint_has_nothing_to_import(limner_models, weights, card):
    limner_models.offered[0] = Offer("inpaint", dataclasses.replace(card, files=(), exports=()))
    code, row, _ = limner_models("import", "tiny", str(weights))
    assert (code, row["outcome"]) == (1, "failed: it is not made from a checkpoint, so there is nothing to import")


def test_plan_says_which_precision_and_why(limner_models):
    limner_models("pull", "tiny", "--precisions", "fp32,int8")
    code, row, _ = limner_models("plan", "--device", "cpu", "--precision", "int8")
    assert (code, row["precision"]) == (0, "int8")
    assert limner_models("plan", "--device", "cpu", "--precision", "fp16")[0] == 1  # was not made


@pytest.mark.parametrize("arguments", [["import", "tiny"], ["pull", "tiny", "--precisions", "int3"]])
def test_a_wrong_command_line_ends_with_2(limner_models, arguments):
    with pytest.raises(SystemExit) as stopped:
        limner_models(*arguments)
    assert stopped.value.code == 2


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from limner.core.card import ModelCard, WeightFile
from limner.models import __main__ as command
from limner.models.offers import Offer
file = WeightFile("tiny.pth", "http://127.0.0.1:9/unreachable", "md5:0")
card = ModelCard("tiny", "inpaint", "", "", "", (file,), exports=("x.onnx",))
command.gather = lambda: ([Offer("inpaint", card)], [])
sys.exit(command.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("arguments", [["pull", "tiny"], ["import", "tiny", "x.pth"]])
def test_without_torch_it_says_what_to_install_before_anything_is_fetched(arguments, tmp_path):
    place = ["--model-dir", str(tmp_path / "models"), "--json"]
    ended = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *arguments, *place], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr.count("Traceback")) == (1, 0)
    assert "takes torch, which is missing: pip install 'limner[export]'" in json.loads(ended.stdout)[0]["outcome"]
    assert not (tmp_path / "models").exists()
