from __future__ import annotations

import json
import subprocess
import sys
import types

import pytest

from limner.core.card import ModelCard
from limner.models import __main__ as command
from limner.models import offers
from limner.models.offers import Offer

TELEA = ModelCard("telea", "inpaint", "Fast marching.", "Apache-2.0", "Telea 2004", engine="opencv")


@pytest.fixture
def limner_models(weight_server, card_at, tmp_path, monkeypatch, capsys):
    """`limner_models("pull", "lama")`: (exit code, rows or text of stdout, stderr) with the models telea and lama."""
    lama = card_at(f"{weight_server.url}/lama.onnx")
    offered = [Offer("inpaint", lama), Offer("inpaint", TELEA)]
    absent = ["the segment server is not installed (scipy is missing): pip install 'limner[segment]'"]
    monkeypatch.setattr(command, "gather", lambda: (offered, absent))
    monkeypatch.delenv("LIMNER_MIRROR", raising=False)

    def run(*arguments, as_json=True):
        common = ["--model-dir", str(tmp_path / "models")] + (["--json"] if as_json else [])
        code = command.main([*arguments, *common])
        out, err = capsys.readouterr()
        return code, json.loads(out) if as_json else out, err

    return run


def outcomes(rows):
    return {row["name"]: row["outcome"] for row in rows}


def test_list_tells_what_is_installed_and_how_to_install_the_rest(limner_models):
    code, rows, err = limner_models("list")
    assert code == 0
    assert [(row["name"], row["installed"], row["install_with"]) for row in rows] == [
        ("lama", False, "limner models pull lama"),
        ("telea", True, ""),
    ]
    assert rows[0]["size_bytes"] == 3_000_000
    assert "limner[segment]" in err


def test_the_table_for_people_holds_the_same(limner_models):
    _, text, _ = limner_models("list", as_json=False)
    assert "3.0 MB" in text
    assert "limner models pull lama" in text
    assert "Fast marching." in text


def test_pull_verify_and_rm_in_turn(limner_models, tmp_path):
    code, rows, err = limner_models("pull", "lama")
    assert (code, outcomes(rows)) == (0, {"lama": "pulled lama.onnx"})
    assert "lama: Apache-2.0, https://example.org/lama" in err
    assert outcomes(limner_models("pull", "lama")[1]) == {"lama": "is here already"}
    code, rows, _ = limner_models("verify")
    assert (code, outcomes(rows)["lama"]) == (0, "right")
    (tmp_path / "models" / "lama" / "lama.onnx").write_bytes(b"damage")
    code, rows, _ = limner_models("verify", "lama")
    assert code == 1
    assert "damaged" in outcomes(rows)["lama"]
    code, rows, _ = limner_models("rm", "lama")
    assert code == 0
    assert "freed" in outcomes(rows)["lama"]
    assert limner_models("list")[1][0]["installed"] is False


def test_verify_of_all_skips_what_was_never_pulled(limner_models):
    code, rows, _ = limner_models("verify")
    assert (code, outcomes(rows)["lama"]) == (0, "not installed")
    assert limner_models("verify", "lama")[0] == 1


def test_an_algorithm_has_nothing_to_pull(limner_models):
    code, rows, _ = limner_models("pull", "telea")
    assert code == 0
    assert "nothing to pull" in outcomes(rows)["telea"]


def test_a_failed_pull_ends_with_1_and_goes_on_with_the_rest(limner_models, weight_server):
    weight_server.content = {}
    code, rows, _ = limner_models("pull", "lama", "telea")
    assert code == 1
    assert "404" in outcomes(rows)["lama"]
    assert "nothing to pull" in outcomes(rows)["telea"]


def test_the_mirror_can_come_from_the_environment(limner_models, weight_server, weights, monkeypatch):
    weight_server.content = {"/mirror/lama/lama.onnx": weights}
    monkeypatch.setenv("LIMNER_MIRROR", f"{weight_server.url}/mirror")
    assert limner_models("pull", "lama")[0] == 0


def test_plan_gives_a_reason_for_every_model(limner_models):
    code, rows, _ = limner_models("plan", "--precision", "fp32")
    assert code == 0
    by_name = {row["name"]: row for row in rows}
    assert by_name["telea"]["precision"] == "native"
    assert by_name["lama"]["precision"] == "fp32"
    assert "asked for" in by_name["lama"]["reason"]
    assert limner_models("plan", "--device", "mps")[0] == 1


@pytest.mark.parametrize("arguments", [["pull", "lame"], ["pull"], ["fetch"], ["list", "--no-such-option"]])
def test_a_wrong_command_line_ends_with_2(limner_models, arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        limner_models(*arguments)
    assert stopped.value.code == 2


def test_an_unknown_name_is_answered_with_the_known_ones(limner_models, capsys):
    with pytest.raises(SystemExit):
        limner_models("rm", "lame")
    assert "there are: lama, telea" in capsys.readouterr().err


def test_a_server_whose_package_is_missing_is_told_not_raised(monkeypatch, card_at):
    present = types.ModuleType("limner.inpaint.models")
    present.MODELS = {"telea": types.SimpleNamespace(CARD=TELEA)}
    monkeypatch.setattr(offers, "SERVERS", ("inpaint", "segment"))
    monkeypatch.setitem(sys.modules, "limner.inpaint.models", present)
    import_module = offers.importlib.import_module

    def without_scipy(name):
        if name == "limner.segment.models":
            raise ModuleNotFoundError("No module named 'scipy'", name="scipy")
        return import_module(name)

    monkeypatch.setattr(offers.importlib, "import_module", without_scipy)
    found, absent = offers.gather()
    assert found == [Offer("inpaint", TELEA)]
    assert absent == ["the segment server is not installed (scipy is missing): pip install 'limner[segment]'"]


def test_the_real_command_lists_the_models_of_every_server():
    command = [sys.executable, "-m", "limner.models", "list", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert {row["server"] for row in json.loads(result.stdout)} == set(offers.SERVERS)
    assert result.stderr == ""


@pytest.mark.parametrize("command", ["list", "plan"])
def test_only_the_models_named_are_shown(command):
    named = [sys.executable, "-m", "limner.models", command, "telea", "fsr", "--json"]
    result = subprocess.run(named, capture_output=True, text=True, check=True)
    assert [row["name"] for row in json.loads(result.stdout)] == ["telea", "fsr"]


def test_a_machine_without_any_model_server_is_told_what_to_install():
    program = (
        "import sys, runpy; sys.modules['filelock'] = None; runpy.run_module('limner.models', run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", program, "list"], capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr == ("no model server is installed here, as filelock is missing: pip install 'limner[all]'\n")
