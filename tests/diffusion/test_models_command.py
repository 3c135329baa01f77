"""`limner models` and diffusion: pulled from a hub of our own, planned for memory that is told, verified, removed.

The hub's library reads where the hub is when it is imported, so each story is a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from limner.core.errors import BadArgument, OutOfMemory
from limner.diffusion.config import DiffusionConfig
from limner.engine.machine import Machine
from limner.engine.store import Store
from limner.models.pipelines import Pipelines, bytes_of

HUB = "stabilityai/stable-diffusion-3.5-medium"
COMMIT = "d" * 40
RUN = """
import json, sys
from limner.models import __main__ as command
for arguments in json.loads(sys.argv[1]):
    print(f"exit {command.main([*arguments, '--json', '--model-dir', sys.argv[2]])}")
assert "torch" not in sys.modules
"""


@pytest.fixture
def hub(tiny_sd3, tmp_path):
    """A hub with one repository: the tiny pipeline, and beside it what a pull has no use for."""
    files = {str(path.relative_to(tiny_sd3)): path.read_bytes() for path in tiny_sd3.rglob("*") if path.is_file()}
    files["transformer/diffusion_pytorch_model.bin"] = files["sd3.5_medium.safetensors"] = b"not wanted"
    files["text_encoder/model.fp16.safetensors"] = files["README.md"] = b"not wanted"
    with Hub(files) as server:
        yield server


class Hub:
    """Answers as the Hugging Face hub does, as far as its library asks for a snapshot."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.fault = ""  # `GatedRepo`, `RepoNotFound`, `BadToken`
        self.got: list[str] = []  # files whose content was asked for
        self.tokens: set[str | None] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_HEAD(self):
                self.answer()

            def do_GET(self):
                self.answer()

            def answer(self):
                hub.tokens.add(self.headers["Authorization"])
                path = self.path.partition("?")[0]
                if f"/{HUB}/resolve/" in path:
                    name = path.split("/resolve/")[1].partition("/")[2]
                    if hub.fault or name not in files:
                        status = {"GatedRepo": 403, "RepoNotFound": 401, "BadToken": 401}.get(hub.fault, 404)
                        told = {"X-Error-Code": hub.fault or "EntryNotFound"}
                        if hub.fault == "BadToken":  # the hub gives this one no code
                            told = {"X-Error-Message": "Invalid credentials in Authorization header"}
                        self.reply(status, b"", told)
                        return
                    if self.command == "GET":
                        hub.got.append(name)
                    etag = hashlib.sha256(files[name]).hexdigest()
                    self.reply(200, files[name], {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
                elif "/tree/" in path:
                    entries = [
                        {"type": "file", "path": name, "size": len(content), "oid": "e" * 40}
                        for name, content in files.items()
                    ]
                    self.reply(200, json.dumps(entries).encode(), {})
                elif path == f"/api/models/{HUB}/revision/main":
                    siblings = [{"rfilename": name} for name in files]
                    self.reply(200, json.dumps({"id": HUB, "sha": COMMIT, "siblings": siblings}).encode(), {})
                else:
                    self.reply(404, b"", {})

            def reply(self, status, content, headers):
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def commands(hub, tmp_path):
    """`commands([...], [...])`: exit code and rows of each, one after the other in one process; and stderr."""

    def run(*lines):
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "LIMNER_"))}
        environment |= {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "hf_secret",
            "NO_PROXY": "127.0.0.1",
            "LIMNER_DIFFUSION_HUB_CACHE": str(tmp_path / "cache"),
        }
        ended = subprocess.run(
            [sys.executable, "-c", RUN, json.dumps(lines), str(tmp_path / "models")],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert ended.returncode == 0, ended.stderr
        parts = ended.stdout.split("exit ")
        texts = [parts[0], *(part.partition("\n")[2] for part in parts[1:-1])]
        codes = [int(part.partition("\n")[0]) for part in parts[1:]]
        return [(code, json.loads(text)) for code, text in zip(codes, texts, strict=True)], ended.stderr

    return run


def test_a_pipeline_is_pulled_once_verified_and_removed(commands, hub, tmp_path):
    name = "sd3.5-medium"
    results, err = commands(
        ["list", name],
        ["pull", name],
        ["pull", name, "--accept-licence"],
        ["list", name],
        ["pull", name, "--accept-licence"],
        ["verify", name],
    )
    listed, refused, pulled, listed_then, again, verified = results
    assert (listed[1][0]["installed"], listed[1][0]["install_with"]) == (False, f"limner models pull {name}")
    assert refused[0] == 1
    assert "--accept-licence" in refused[1][0]["outcome"]
    assert pulled[0] == 0
    assert "pulled to" in pulled[1][0]["outcome"]
    assert listed_then[1][0]["installed"] is True
    assert listed_then[1][0]["size_bytes"] > 1 << 20
    assert again[1][0]["outcome"] == "is here already"
    assert verified == (0, [{"name": name, "outcome": "right"}])
    assert "Stability AI Community License" in err
    assert sorted(hub.got) == sorted(set(hub.got))
    assert not {"README.md", "sd3.5_medium.safetensors", "transformer/diffusion_pytorch_model.bin"} & set(hub.got)
    assert "text_encoder/model.fp16.safetensors" not in hub.got
    assert "Bearer hf_secret" in hub.tokens

    (weights,) = tmp_path.glob("cache/*/snapshots/*/vae/*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.resolve().write_bytes(content)
    damaged, removed, gone = commands(["verify", name], ["rm", name], ["list", name])[0]
    assert damaged[0] == 1
    assert "diffusion_pytorch_model.safetensors is damaged" in damaged[1][0]["outcome"]
    assert "freed" in removed[1][0]["outcome"]
    assert gone[1][0]["installed"] is False


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            "GatedRepo",
            f"accepted its licence: do so at https://huggingface.co/{HUB} with your account, and set HF_TOKEN",
        ),
        ("RepoNotFound", f"the hub shows no {HUB}"),
        ("BadToken", "the hub takes no such token: set HF_TOKEN"),
    ],
)
def test_what_the_hub_refuses_is_explained(fault, said, commands, hub):
    hub.fault = fault
    ((code, rows),), _ = commands(["pull", "sd3.5-medium", "--accept-licence"])
    assert code == 1
    assert said in rows[0]["outcome"]


@pytest.fixture
def pipelines(tiny_sd3, tmp_path):
    config = DiffusionConfig(sources={"mine": str(tiny_sd3)}, default_model="mine", hub_cache=str(tmp_path / "none"))
    return Pipelines(config, Store(tmp_path / "models"))


def card(pipelines, name):
    return next(card for card in pipelines.cards() if card.name == name)


def test_plans_are_made_for_memory_that_is_told(pipelines):
    machine = Machine(frozenset())

    def planned(name, gib, precision="auto"):
        return pipelines.plan(
            card(pipelines, name), machine, device="cuda:0", precision=precision, memory_bytes=gib << 30
        )

    assert "int8" in planned("sd3.5-large", 12).reason
    assert planned("sd3.5-large", 80).reason != planned("sd3.5-large", 12).reason
    assert "nf4" in planned("sd3.5-large", 80, "nf4").reason
    assert planned("mine", 80).device == "cuda:0"
    with pytest.raises(OutOfMemory, match=r"sd3\.5-large needs about"):
        planned("sd3.5-large", 1)
    with pytest.raises(BadArgument, match="device 'cuda:0'"):
        pipelines.plan(card(pipelines, "mine"), machine, device="cuda:0", precision="auto", memory_bytes=None)


def test_a_folder_of_ones_own_is_listed_verified_and_left_alone(pipelines, tiny_sd3):
    mine = card(pipelines, "mine")
    assert pipelines.missing(mine) == ""
    assert pipelines.size(mine) == sum(path.stat().st_size for path in tiny_sd3.rglob("*.safetensors"))
    assert pipelines.verify(mine) == []
    assert pipelines.pull(mine, accept_licence=False) == f"nothing to pull: it is at {tiny_sd3}"
    with pytest.raises(Exception, match="remove it yourself"):
        pipelines.rm(mine)


@pytest.mark.parametrize(
    ("text", "count"), [("12GiB", 12 << 30), ("8 gb", 8 * 10**9), ("1.5GiB", 3 << 29), ("4096", 4096)]
)
def test_amounts_of_memory_are_read_as_people_write_them(text, count):
    assert bytes_of(text) == count


@pytest.mark.parametrize("text", ["", "much", "12 GiBi", "-3GB", "1e9"])
def test_other_amounts_are_refused(text):
    with pytest.raises(ValueError, match="no amount of memory"):
        bytes_of(text)


def test_a_configuration_that_is_wrong_ends_the_command_with_2(tmp_path):
    (tmp_path / "limner.toml").write_text("[diffusion]\nmax_active = 0\n")
    ended = subprocess.run(
        [sys.executable, "-m", "limner.models", "list"],
        capture_output=True,
        text=True,
        env={**os.environ, "LIMNER_CONFIG": str(tmp_path / "limner.toml")},
    )
    assert ended.returncode == 2
    assert "max_active" in ended.stderr


def test_importing_a_pipeline_says_where_to_name_its_place(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "limner.models", "import", "sd3.5-large", str(Path(__file__)), "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "LIMNER_MODEL_DIR": str(tmp_path)},
    )
    assert ended.returncode == 1
    assert "[diffusion.sources]" in json.loads(ended.stdout)[0]["outcome"]
