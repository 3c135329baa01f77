"""The command `limner`, run as a program where processes matter and in place where they don't."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from google.rpc import code_pb2, error_details_pb2
from rich.console import Console

from limner.client import Client, LocalServers, ServiceFailed, jobs
from limner.client.command import limner
from limner.client.local import SERVICES, configured_hosts, configured_ports, default_services, find_free_ports
from limner.client.terminal import Bars

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def run(router):
    """Runs a command line against the router."""

    def invoke(*arguments, stdin=None):
        return CliRunner(env={"LIMNER_ADDRESS": router.address}).invoke(
            limner, [str(a) for a in arguments], input=stdin
        )

    return invoke


def json_lines(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_help_is_quick_and_imports_nothing_heavy():
    program = (
        "import sys; from limner.client.command import limner\n"
        "try: limner(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'grpc', 'rich', 'yaml', 'google.protobuf', 'asyncio', 'opentelemetry'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.endswith("[]\n")
    assert "remove-background" in out


def test_every_command_has_help(run):
    for name in limner.list_commands(None):
        result = run(name, "--help")
        assert result.exit_code == 0
        assert result.stdout.startswith("Usage: limner")


def test_erase_writes_the_result(run, router, photo, tmp_path):
    result = run("erase", photo, "-o", tmp_path / "out.jpg", "--click", "10,20.5", "--not", "1,2", "--box", "1,2,3,4")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out.jpg").read_bytes().endswith(b"photo|erase")
    assert result.stdout == ""
    assert "erase: telea, 0.25 s" in result.stderr
    assert f"wrote {tmp_path / 'out.jpg'}" in result.stderr
    request = router.requests[0]
    assert [step.name for step in request.pipeline.steps] == ["segment", "soften", "erase"]
    assert request.pipeline.steps[2].output.format == "jpeg"
    assert request.pipeline.steps[0].segment.options.clicks[0].y_px == 20.5


def test_pictures_go_through_standard_input_and_output(run):
    result = run("upscale", "-", "-o", "-", "--scale", "3", "-q", stdin=PNG + b"in")
    assert result.exit_code == 0
    assert result.stdout_bytes == PNG + b"in|upscale"
    assert result.stderr == ""


def test_json_writes_one_event_a_line_without_pixels(run, photo, tmp_path):
    result = run("convert", photo, "-o", tmp_path / "out.webp", "--json")
    assert result.exit_code == 0
    lines = json_lines(result)
    assert lines[0]["accepted"] == {"run_id": "run-1", "steps": ["convert"]}
    assert [line["sequence"] for line in lines[:-1]] == [str(n + 1) for n in range(len(lines) - 1)]
    assert lines[-1] == {"written": {"convert": str(tmp_path / "out.webp")}}
    assert "encoded" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["erase", "PHOTO", "-o", "out.png"], "by a mask, or by clicks"),
        (["erase", "PHOTO", "-o", "out.png", "--click", "10"], "not of the form x,y"),
        (["erase", "PHOTO", "-o", "out.xyz", "--click", "1,1"], "no picture can be written as '.xyz'; there are: .bmp"),
        (["erase", "PHOTO", "-o", "out.gif", "--click", "1,1"], "no picture can be written as '.gif'"),
        (["convert", "PHOTO", "-o", "out.webp", "--format", "png"], "let suffix and --format agree"),
        (["convert", "PHOTO", "-o", "out", "--format", "gif"], "'gif' can't be written; give one of png, jpeg"),
        (["erase", "PHOTO", "-o", "out.png", "--address", "http://localhost:7400", "--click", "1,1"], "is a URL"),
        (["status", "--address", "localhost"], "has no port; give HOST:PORT"),
        (["segment", "PHOTO", "-o", "out.png", "--box", "0,0,-5,7"], "a width and a height from 1"),
        (["up", "--port-offset", "60000"], "can't listen on port 67400"),
        (["erase", "PHOTO", "-o", "nowhere/out.png", "--click", "1,1"], "no folder 'nowhere'"),
        (["erase", "nothing.png", "-o", "out.png"], "does not exist"),
        (["erase", "-", "-o", "out.png", "--mask", "-"], "only one"),
        (["upscale", "PHOTO", "-o", "out.png", "--scale", "99"], "0.1<=x<=16"),
        (["upscale", "PHOTO", "-o", "-", "--json"], "give -o a file"),
        (["segment", "PHOTO", "-o", "out.png"], "at least one click or box"),
        (["batch", "sharpen", ".", "-o", "out"], "neither a file nor one of: erase"),
        (["batch", "erase", ".", "-o", "out"], "erase needs --masks"),
        (["batch", "upscale", ".", "-o", "out", "--grow", "3", "--bit-depth", "8"], "takes no --bit-depth, --grow"),
        (["batch", "upscale", ".", "-o", "."], "a folder of their own"),
        (["batch", "erase", ".", "-o", "masks", "--masks", "masks"], "a folder of their own"),
        (["nonsense"], "No such command"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_the_mend(run, router, photo, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "masks").mkdir()
    result = run(*[photo if argument == "PHOTO" else argument for argument in arguments])
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())
    assert not router.requests


def test_the_suffix_says_the_format_of_every_result(run, router, photo, tmp_path):
    for name, arguments in {
        "erase": ["--click", "1,1"],
        "segment": ["--click", "1,1", "--grow", "2"],
        "upscale": [],
        "remove-background": [],
        "convert": ["--format", "JPG"],
    }.items():
        assert run(name, photo, "-o", tmp_path / "out.JPEG", *arguments).exit_code == 0
        steps = router.requests[-1].pipeline.steps
        assert [step.output.format for step in steps] == [""] * (len(steps) - 1) + ["jpeg"]


def test_links_and_devices_are_written_to_and_never_replaced(run, photo, tmp_path):
    pipe, kept, link = tmp_path / "pipe", tmp_path / "kept.png", tmp_path / "link.png"
    os.mkfifo(pipe)
    link.symlink_to(kept)
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE)
    assert run("upscale", photo, "-o", pipe).exit_code == 0
    assert reader.communicate(timeout=10)[0].endswith(b"photo|upscale")
    assert pipe.is_fifo()
    assert run("upscale", photo, "-o", link).exit_code == 0
    assert link.is_symlink()
    assert kept.read_bytes().endswith(b"photo|upscale")


def test_names_of_all_kinds_and_lengths_are_written(run, photo, tmp_path):
    for name in ("ünï ☃.png", "-o.png", "x" * 251 + ".png", "a\nb.png"):
        result = run("upscale", photo, "-o", tmp_path / name)
        assert result.exit_code == 0, result.output
        assert (tmp_path / name).is_file()
    assert len(list(tmp_path.iterdir())) == 5


def test_an_empty_picture_is_told_before_anything_is_sent(run, router, tmp_path):
    result = run("upscale", "-", "-o", tmp_path / "out.png", stdin=b"")
    assert result.exit_code == 1
    assert result.stderr == "Error: standard input is empty; give an image file\n"
    assert not router.requests


def test_a_failure_exits_with_1_and_tells_reason_field_and_mend(run, router, photo, tmp_path):
    violation = error_details_pb2.BadRequest.FieldViolation(field="inputs[mask]", description="is 3x3, not 4x4")
    router.refusals += [
        router.a_status(
            code_pb2.INVALID_ARGUMENT,
            "the mask has another size than the picture",
            "BAD_MASK",
            details=[error_details_pb2.BadRequest(field_violations=[violation])],
        )
        for _ in range(2)
    ]
    result = run("erase", photo, "-o", tmp_path / "out.png", "--mask", photo)
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: BAD_MASK: the mask has another size than the picture\n  inputs[mask]: is 3x3, not 4x4\n"
    )
    assert not (tmp_path / "out.png").exists()
    result = run("erase", photo, "-o", tmp_path / "out.png", "--mask", photo, "--json")
    assert json_lines(result)[-1]["error"]["violations"] == [
        {"field": "inputs[mask]", "description": "is 3x3, not 4x4"}
    ]


def test_nobody_there_exits_with_3(photo, tmp_path):
    result = CliRunner().invoke(
        limner, ["upscale", str(photo), "-o", str(tmp_path / "out.png"), "--address", "127.0.0.1:1"]
    )
    assert result.exit_code == 3
    assert "limner up" in result.stderr


def test_an_interrupt_exits_with_130_and_cancels_the_run(router, photo, tmp_path):
    router.gate.clear()
    process = subprocess.Popen(
        [sys.executable, "-m", "limner.client", "upscale", photo, "-o", tmp_path / "out.png"],
        env={**os.environ, "LIMNER_ADDRESS": router.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not any(run.events for run in list(router.runs.values())):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (130, "interrupted\n")
    assert router.cancelled == ["run-1"]
    assert not (tmp_path / "out.png").exists()


def test_a_pipelines_file_is_run_and_each_result_named_after_its_step(run, router, photo, tmp_path):
    pipeline = tmp_path / "twice.yaml"
    pipeline.write_text("steps: [{name: first, upscale: }, {name: second, upscale: {image: first}}]\noutputs: [second]")
    result = run("run", pipeline, "-i", photo, "-o", tmp_path / "out", "--intermediates")
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"first.png", "second.png"}
    assert router.requests[0].intermediates
    result = run("run", pipeline, "-i", f"source={photo}", "-i", photo, "-o", tmp_path / "out")
    assert result.exit_code == 2
    pipeline.write_text("steps: [{name: first, upscal: {}}]")
    result = run("run", pipeline, "-i", photo, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert '"upscal"' in result.stderr


def test_status_and_models_tell_what_the_router_knows(run):
    assert "inpaint" in run("status").stdout
    assert json_lines(run("status", "--json"))[0]["servers"][0]["healthy"] is True
    assert "telea (default)" in run("models", "served").stdout
    assert [model["name"] for model in json_lines(run("models", "served", "--task", "segment", "--json"))] == [
        "grabcut"
    ]


# Batches


@pytest.fixture
def album(tmp_path):
    """Pictures of all kinds of names, and masks for them."""
    folder = tmp_path / "album"
    (folder / "deep").mkdir(parents=True)
    (tmp_path / "masks" / "deep").mkdir(parents=True)
    for name in ("a.png", "b.png", "b.jpg", "deep/a.png"):
        (folder / name).write_bytes(PNG + name.encode())
        (tmp_path / "masks" / name).with_suffix(".png").write_bytes(PNG + b"mask of " + name.encode())
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(PNG)
    return folder


def read_report(folder):
    report = json.loads((folder / "report.json").read_text())
    return report, {entry["source"]: entry for entry in report["pictures"]}


def names_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}


def test_a_batch_names_results_without_collisions(run, album, tmp_path):
    out = tmp_path / "out"
    result = run("batch", "erase", album, "-o", out, "--masks", tmp_path / "masks", "-r", "--grow", 5)
    assert result.exit_code == 0, result.output
    assert names_in(out) == {"a.png", "b.png.png", "b.jpg.png", "deep/a.png"}
    report, entries = read_report(out)
    assert (report["done"], report["failed"]) == (4, 0)
    assert entries["deep/a.png"]["outputs"] == ["deep/a.png"]
    assert "4 done, 0 skipped, 0 failed" in result.stderr
    assert not list(out.rglob("*.partial"))


def test_masks_are_matched_by_stem_within_their_folder(run, router, album, tmp_path):
    run("batch", "erase", album, "-o", tmp_path / "out", "--masks", tmp_path / "masks", "-r")
    pairs = {request.inputs["source"].encoded: request.inputs["mask"].encoded for request in router.requests}
    assert pairs[PNG + b"deep/a.png"] == PNG + b"mask of deep/a.png"
    assert pairs[PNG + b"a.png"] == PNG + b"mask of a.png"


def test_one_mask_may_serve_all(run, router, album, photo, tmp_path):
    assert run("batch", "erase", album, "-o", tmp_path / "out", "--masks", photo).exit_code == 0
    assert {request.inputs["mask"].encoded for request in router.requests} == {photo.read_bytes()}
    assert len(router.requests) == 3


def test_a_batch_skips_what_is_done_and_does_what_changed(run, router, album, tmp_path):
    out = tmp_path / "out"
    run("batch", "upscale", album, "-o", out)
    assert len(router.requests) == 3
    assert run("batch", "upscale", album, "-o", out).exit_code == 0
    assert len(router.requests) == 3
    assert read_report(out)[0]["skipped"] == 3
    (album / "a.png").write_bytes(PNG + b"another")
    (out / "b.png.png").unlink()
    run("batch", "upscale", album, "-o", out)
    assert len(router.requests) == 5
    run("batch", "upscale", album, "-o", out, "--scale", "3")
    assert len(router.requests) == 8, "other options are other work"
    run("batch", "upscale", album, "-o", out, "--scale", "3", "--redo")
    assert len(router.requests) == 11


def test_two_pictures_with_the_same_bytes_both_get_their_result(run, album, tmp_path):
    (album / "twin.png").write_bytes((album / "a.png").read_bytes())
    for _ in range(2):
        run("batch", "upscale", album, "-o", tmp_path / "out", "--jobs", "1")
        assert {"a.png", "twin.png"} <= names_in(tmp_path / "out")
    assert read_report(tmp_path / "out")[1]["twin.png"]["outputs"] == ["twin.png"]


def test_a_journal_that_was_cut_off_is_gone_on_with(run, router, album, tmp_path):
    out = tmp_path / "out"
    run("batch", "upscale", album, "-o", out)
    journal = out / ".limner-batch.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    run("batch", "upscale", album, "-o", out)
    assert len(router.requests) == 4
    run("batch", "upscale", album, "-o", out)
    assert len(router.requests) == 4


def test_a_failure_does_not_stop_the_rest(run, router, album, tmp_path):
    (tmp_path / "masks" / "b.png").unlink()
    (tmp_path / "masks" / "a.webp").write_bytes(PNG)
    router.refusals.append(router.a_status(code_pb2.INVALID_ARGUMENT, "inputs[source] is no image", "BAD_IMAGE"))
    out = tmp_path / "out"
    (album / "c.png").write_bytes(PNG + b"c")
    (album / "d.png").write_bytes(PNG + b"d")
    for name in "cd":
        (tmp_path / "masks" / f"{name}.png").write_bytes(PNG)
    result = run("batch", "erase", album, "-o", out, "--masks", tmp_path / "masks", "--jobs", "1")
    assert result.exit_code == 1
    report, entries = read_report(out)
    assert (report["done"], report["failed"]) == (1, 4)
    assert "several files for mask: a.png, a.webp" in entries["a.png"]["error"]["message"]
    assert "no mask named b" in entries["b.jpg"]["error"]["message"]
    assert entries["c.png"]["error"]["reason"] == "BAD_IMAGE"
    assert entries["d.png"]["status"] == "done"
    assert "BAD_IMAGE: inputs[source] is no image" in " ".join(result.stderr.split())


def test_a_batch_waits_while_the_servers_are_overloaded(run, router, album, tmp_path):
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(50)
    router.refusals += [
        router.a_status(code_pb2.RESOURCE_EXHAUSTED, "the queue is full", "OVERLOADED", details=[retry])
        for _ in range(3)
    ]
    assert run("batch", "upscale", album, "-o", tmp_path / "out").exit_code == 0


def test_a_batch_of_a_pipelines_file_gives_a_folder_a_step(run, album, tmp_path):
    pipeline = tmp_path / "two.yaml"
    pipeline.write_text("steps: [{name: big, upscale: }, {name: small, convert: }]")
    out = album / "out"  # inside the input folder: not taken as input again
    for _ in range(2):
        assert run("batch", pipeline, album, "-o", out, "-r", "--json").exit_code == 0
    assert read_report(out)[0]["total"] == 4
    assert names_in(out) >= {"big/a.png", "small/a.png", "big/deep/a.png"}


def test_an_interrupted_batch_tells_what_it_did_and_goes_on_later(router, run, album, tmp_path):
    router.gate.clear()
    process = subprocess.Popen(
        [sys.executable, "-m", "limner.client", "batch", "upscale", album, "-o", tmp_path / "out"],
        env={**os.environ, "LIMNER_ADDRESS": router.address},
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(router.runs) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert "run it again" in process.communicate(timeout=10)[1]
    assert process.returncode == 130
    assert sorted(router.cancelled) == ["run-1", "run-2"]
    router.gate.set()
    assert run("batch", "upscale", album, "-o", tmp_path / "out").exit_code == 0


def test_a_result_never_goes_over_an_input(run, album, tmp_path):
    (album / "deep" / "deep").mkdir()
    (album / "deep" / "deep" / "a.png").write_bytes(PNG + b"deeper")
    # deep/deep/a.png would become deep/a.png.
    assert run("batch", "upscale", album / "deep", "-o", album, "-r").exit_code == 1
    assert (album / "deep" / "a.png").read_bytes() == PNG + b"deep/a.png"
    _, entries = read_report(album)
    assert "would overwrite" in entries["deep/a.png"]["error"]["message"]
    assert entries["a.png"]["status"] == "done", "an output folder above the input folder hides nothing"


def test_results_have_places_of_their_own_whatever_the_names(run, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "a.jpg", "a.png.jpg", "A.webp", "b.png"):
        (folder / name).write_bytes(PNG + name.encode())
    assert run("batch", "upscale", folder, "-o", tmp_path / "out").exit_code == 0
    assert names_in(tmp_path / "out") == {"a.png.png", "a.jpg.png", "a.png.jpg.png", "A.webp.png", "b.png"}


def test_what_cannot_be_read_is_told_by_name(run, album, tmp_path):
    (album / "gone.png").symlink_to("nowhere.png")
    (album / "empty.png").write_bytes(b"")
    (album / "folder.png").mkdir()
    assert run("batch", "upscale", album, "-o", tmp_path / "out").exit_code == 1
    report, entries = read_report(tmp_path / "out")
    assert (report["total"], report["done"], report["failed"], report["left"]) == (5, 3, 2, 0)
    assert entries["gone.png"]["error"]["message"] == f"No such file or directory: {album / 'gone.png'}"
    assert entries["empty.png"]["error"]["message"] == "empty.png is empty; give an image file"


def test_a_batch_stops_before_any_work_where_nothing_can_be_written(run, router, album, tmp_path):
    (tmp_path / "out" / ".limner-batch.jsonl").mkdir(parents=True)
    result = run("batch", "upscale", album, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert ".limner-batch.jsonl" in result.stderr
    assert not router.requests


def test_a_folder_without_pictures_is_told(run, tmp_path):
    (tmp_path / "in").mkdir()
    result = run("batch", "upscale", tmp_path / "in", "-o", tmp_path / "out")
    assert result.exit_code == 0
    assert "there are no pictures in" in result.stderr


def test_a_batch_whose_router_goes_away_stops_and_tells_what_is_left(router, wire, album, tmp_path, monkeypatch):
    monkeypatch.setattr("limner.client.batch._LOST_SECONDS", 0.0)
    for number in range(20):
        (album / f"{number}.png").write_bytes(PNG + str(number).encode())

    class Requests(list):
        def append(self, request):
            super().append(request)
            if len(self) == 3:
                wire.close()

    router.requests = Requests()
    command = ["batch", "upscale", str(album), "-o", str(tmp_path / "out"), "--address", wire.address, "--jobs", "1"]
    result = CliRunner().invoke(limner, command)
    assert result.exit_code == 3, result.output
    report, _ = read_report(tmp_path / "out")
    assert report["failed"] == 1
    assert report["left"] == report["total"] - report["done"] - 1 > 10
    assert f"stopped, {report['left']} not begun" in result.stderr


# limner up, with services that are made up: python -m limner.inpaint of a folder of the test's


@pytest.fixture
def made_up_services(tmp_path, monkeypatch):
    """Services that only say that they are healthy, in place of the real ones."""
    package = tmp_path / "made-up" / "limner"
    for name in ("router", "inpaint"):
        (package / name).mkdir(parents=True)
        (package / name / "__main__.py").write_text(
            "import argparse, os, signal, sys, time\n"
            "from concurrent.futures import ThreadPoolExecutor\n"
            "import grpc\n"
            "from grpc_health.v1 import health, health_pb2, health_pb2_grpc\n"
            "from limner.v1 import router_pb2\n"
            "parser = argparse.ArgumentParser(); parser.add_argument('--port', type=int)\n"
            "parser.add_argument('--config')\n"
            "options = parser.parse_args()\n"
            f"if os.environ.get('BROKEN') == '{name}': sys.exit('cannot find the weights')\n"
            "server = grpc.server(ThreadPoolExecutor(2)); servicer = health.HealthServicer()\n"
            "servicer.set('', health_pb2.HealthCheckResponse.SERVING)\n"
            "health_pb2_grpc.add_HealthServicer_to_server(servicer, server)\n"
            "handlers = {'GetStatus': grpc.unary_unary_rpc_method_handler(\n"
            "    lambda request, context: router_pb2.GetStatusResponse(\n"
            "        servers=[router_pb2.ServerStatus(kind='inpaint', healthy=True)]).SerializeToString())}\n"
            "handler = grpc.method_handlers_generic_handler('limner.v1.RouterService', handlers)\n"
            "server.add_generic_rpc_handlers([handler])\n"
            "server.add_insecure_port(f'127.0.0.1:{options.port}'); server.start()\n"
            "signal.signal(signal.SIGTERM, lambda *signal: sys.exit(0))\n"
            f"print('{name} listens; inpaint is at', os.environ.get('LIMNER_ROUTER_INPAINT'), flush=True)\n"
            "try:\n"
            "    while True: time.sleep(1)\n"
            "finally: print('stopped cleanly', flush=True)\n"
        )
    # The made-up portion of the namespace comes first.
    monkeypatch.setenv("PYTHONPATH", str(package.parent))


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def start_up(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "limner.client", "up", "--only", "router", "--only", "inpaint", *arguments],
        stderr=subprocess.PIPE,
        text=True,
    )


def test_up_starts_services_shows_them_and_stops_them_on_ctrl_c(made_up_services):
    process = start_up("--free-ports")
    lines = []
    while not any("all healthy" in line for line in lines):
        lines.append(process.stderr.readline())
        assert lines[-1]
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=10)[1]
    assert process.returncode == 0
    assert "stopped cleanly" in rest
    assert rest.endswith("all stopped\n")
    text = "".join(lines)
    assert "    inpaint inpaint listens" in text
    assert "127.0.0.1:" in text


def test_up_tells_of_a_death_and_starts_the_service_again(made_up_services):
    process = start_up("--free-ports")
    lines = []

    def read_until(text):
        while not any(text in line for line in lines):
            lines.append(process.stderr.readline())
            assert lines[-1]

    read_until("all healthy")
    row = next(line for line in lines if line.strip().startswith(("│ inpaint", "| inpaint")))
    os.kill(int(row.replace("│", " ").split()[-1]), signal.SIGKILL)
    lines.clear()
    read_until("inpaint was ended by SIGKILL")
    read_until("inpaint inpaint listens")
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == 0


def test_up_runs_a_command_and_exits_with_its_code(made_up_services):
    program = "import os, sys; print(os.environ['LIMNER_ADDRESS'], file=sys.stderr); sys.exit(7)"
    process = start_up("--free-ports", "-q", "--", sys.executable, "-c", program)
    err = process.communicate(timeout=20)[1]
    assert process.returncode == 7
    assert "\n127.0.0.1:" in err


def test_up_says_why_a_service_did_not_start(made_up_services, monkeypatch):
    monkeypatch.setenv("BROKEN", "inpaint")
    process = start_up("--free-ports", "-q")
    err = process.communicate(timeout=20)[1]
    assert process.returncode == 1
    assert "inpaint ended with exit code 1\n  cannot find the weights" in err


def test_services_end_with_their_killed_parent(made_up_services):
    program = (
        "from limner.client import LocalServers\n"
        "import time\n"
        "with LocalServers(services=('router', 'inpaint')) as servers:\n"
        "    print(*servers.pids.values(), flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    assert all(is_alive(pid) for pid in pids)
    process.kill()
    process.communicate()
    wait_until(lambda: not any(is_alive(pid) for pid in pids))


def test_ports_come_from_the_environment_then_the_file_then_the_custom(tmp_path, monkeypatch):
    config = tmp_path / "limner.toml"
    config.write_text("[inpaint]\nport = 8001\n[segment]\nport = 8002\n[router]\nblob_dir = '/blobs'\n")
    monkeypatch.setenv("LIMNER_SEGMENT_PORT", "9002")
    assert configured_ports(config, SERVICES) == {
        "router": 7400,
        "inpaint": 8001,
        "segment": 9002,
        "postprocess": 7403,
        "diffusion": 7404,
    }


def test_services_are_asked_where_they_listen(tmp_path, monkeypatch):
    config = tmp_path / "limner.toml"
    config.write_text("[inpaint]\nhost = '10.0.0.5'\n[segment]\nhost = '0.0.0.0'\n[router]\nhost = 3\n")
    monkeypatch.setenv("LIMNER_POSTPROCESS_HOST", "127.0.0.2")
    assert configured_hosts(config, SERVICES) == {
        "router": "127.0.0.1",
        "inpaint": "10.0.0.5",
        "segment": "127.0.0.1",
        "postprocess": "127.0.0.2",
        "diffusion": "127.0.0.1",
    }


def test_ports_that_make_no_sense_are_left_for_the_service_to_tell(tmp_path, monkeypatch):
    file = tmp_path / "limner.toml"
    monkeypatch.setenv("LIMNER_ROUTER_PORT", "abc")
    for text in ("[inpaint]\nport = 'x'", "inpaint = 3", "no toml"):
        file.write_text(text)
        assert configured_ports(file, ["router", "inpaint"]) == {"router": 7400, "inpaint": 7401}


def test_up_says_which_ports_are_taken_and_starts_nothing(made_up_services, monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setenv("LIMNER_INPAINT_PORT", str(port))
        monkeypatch.setenv("LIMNER_ROUTER_PORT", str(find_free_ports(1)[0]))
        process = start_up()
        _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert f"something listens already on port {port} (inpaint)" in err
    assert "--free-ports" in err
    assert "listens; inpaint is at" not in err


def test_a_package_that_a_service_lacks_is_told_with_its_extra(tmp_path):
    (tmp_path / "limner" / "inpaint").mkdir(parents=True)
    (tmp_path / "limner" / "inpaint" / "__main__.py").write_text("import not_there_at_all")
    nobody, writer = os.pipe()
    ended = subprocess.run(
        [sys.executable, "-m", "limner.client.child", "limner.inpaint"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        stdin=nobody,
        text=True,
    )
    os.close(nobody)
    os.close(writer)
    assert ended.returncode == 1
    assert ended.stderr == (
        "limner.inpaint is not installed, as not_there_at_all is missing: pip install 'limner[inpaint,cpu]'\n"
    )


def test_a_reader_that_has_gone_is_no_news():
    picture = Path(__file__).parents[2] / "assets/ladybird.jpg"
    reader, writer = os.pipe()
    os.close(reader)
    program = [sys.executable, "-c", "from limner.client.command import main; main()", "info", picture]
    ended = subprocess.run(program, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, b"")


def test_unknown_services_are_refused():
    with pytest.raises(ValueError, match="no service 'painter'; there are: router"):
        LocalServers(services=("painter",))


def test_bars_show_each_step_and_end_with_its_model_and_time(router):
    console = Console(width=100, force_terminal=False)
    with Client(router.address) as client, Bars(console) as bars, console.capture() as shown:
        for event in client.run(jobs.erase(PNG, clicks=[(1, 1)]).pipeline, {"source": PNG}):
            bars.show(event)
        bars.__exit__()
    lines = shown.get().splitlines()
    assert [line.split()[1] for line in lines] == ["segment", "soften", "erase"]
    assert all("telea, 0.25 s" in line for line in lines)


def test_free_ports_are_free_and_different():
    ports = find_free_ports(8)
    assert len(set(ports)) == 8


def test_services_that_are_not_installed_are_told(monkeypatch):
    monkeypatch.setattr("limner.client.local.find_spec", lambda name: None)
    with pytest.raises(ServiceFailed, match=r"not installed here: segment; `pip install limner\[all\]`"):
        LocalServers(services=("segment",)).start()


def test_diffusion_is_left_out_where_torch_and_its_like_are_not_installed(monkeypatch):
    assert default_services() == SERVICES
    monkeypatch.setattr("limner.client.local.find_spec", lambda name: None if name == "diffusers" else object())
    assert default_services() == tuple(name for name in SERVICES if name != "diffusion")
    servers = LocalServers()
    servers.stop()
    assert servers.services == default_services()
    with pytest.raises(ServiceFailed, match="not installed here: diffusion"):
        LocalServers(services=("diffusion",)).start()
