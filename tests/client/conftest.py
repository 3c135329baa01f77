"""A small honest router in memory, and a wire to it that can be cut."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from limner.v1 import (
    blobs_pb2,
    blobs_pb2_grpc,
    images_pb2,
    models_pb2,
    models_pb2_grpc,
    progress_pb2,
    router_pb2,
    router_pb2_grpc,
)

PNG = b"\x89PNG\r\n\x1a\n"


def a_status(code, message, reason="", *, metadata=None, details=()):
    """A google.rpc.Status with Limner's ErrorInfo and further details."""
    status = status_pb2.Status(code=code, message=message)
    info = error_details_pb2.ErrorInfo(reason=reason, domain="limner", metadata=metadata or {})
    for detail in (info, *details):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def png_of(text):
    """A whole PNG file whose one row of grey pixels is the text."""
    row = text.encode()
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", len(row), 1, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" + row)),
        (b"IEND", b""),
    )
    return PNG + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


class FakeRun:
    """Events in order; readers wait for the next one."""

    def __init__(self, run_id):
        self.run_id = run_id
        self.events = []
        self.changed = threading.Condition()

    def append(self, step="", **event):
        with self.changed:
            if self.ended:
                return
            self.events.append(router_pb2.RunEvent(sequence=len(self.events) + 1, step=step, **event))
            self.events[-1].time.FromNanoseconds(time.time_ns())
            self.changed.notify_all()

    @property
    def ended(self):
        return bool(self.events) and self.events[-1].WhichOneof("event") in ("run_finished", "run_failed")

    def read(self, after, context):
        while context.is_active():
            with self.changed:
                if len(self.events) == after:
                    self.changed.wait(0.1)
                new = self.events[after:]
            for event in new:
                yield event
                after = event.sequence
                if event.WhichOneof("event") == "run_failed":
                    context.abort_with_status(rpc_status.to_status(event.run_failed.error))
            if self.ended and after == len(self.events):
                return


class FakeRouter(
    router_pb2_grpc.RouterServiceServicer, blobs_pb2_grpc.BlobServiceServicer, models_pb2_grpc.ModelServiceServicer
):
    """Does every step by giving its input back, with the step's name after it. What is made from text is a PNG
    file that holds the prompt, with a number for each further one."""

    a_status = staticmethod(a_status)
    png_of = staticmethod(png_of)

    def __init__(self):
        self.requests = []  # every RunRequest, joined ones too
        self.watches = []
        self.cancelled = []
        self.uploads = []  # every UploadBlobRequest
        self.metadata = []
        self.blobs = {}
        self.runs = {}
        self.by_request = {}
        self.refusals = []  # statuses for the next calls of Run, before anything is done
        self.parameters = {}  # that pictures were made from, as Finished tells them, beside the usual ones
        self.loads = []  # names of models, with `+` or `-` before them
        self.failures = {}  # statuses by name of the step that they end
        self.gate = threading.Event()  # steps wait here in their middle
        self.gate.set()
        self.answering = threading.Event()  # no event is sent while it is clear
        self.answering.set()
        self.server = grpc.server(
            ThreadPoolExecutor(16),
            options=[("grpc.max_receive_message_length", 64 << 20), ("grpc.so_reuseport", 0)],
        )
        router_pb2_grpc.add_RouterServiceServicer_to_server(self, self.server)
        blobs_pb2_grpc.add_BlobServiceServicer_to_server(self, self.server)
        models_pb2_grpc.add_ModelServiceServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{self.port}"
        self.server.start()

    def stop(self):
        self.gate.set()
        self.answering.set()
        self.server.stop(0).wait(5)

    def Run(self, request, context):
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        if self.refusals:
            context.abort_with_status(rpc_status.to_status(self.refusals.pop(0)))
        run = self.by_request.get(request.request_id)
        if run is None:
            run = FakeRun(f"run-{len(self.runs) + 1}")
            self.runs[run.run_id] = self.by_request[request.request_id] = run
            threading.Thread(target=self._work, args=(run, request), daemon=True).start()
        self.answering.wait(10)
        for event in run.read(0, context):
            yield router_pb2.RunResponse(event=event)

    def _work(self, run, request):
        steps = request.pipeline.steps
        run.append(accepted=router_pb2.RunAccepted(run_id=run.run_id, steps=[step.name for step in steps]))
        images = dict(request.inputs)
        for step in steps:
            name = step.name
            run.append(name, queued=progress_pb2.Queued())
            run.append(name, started=progress_pb2.Started(placement=progress_pb2.Placement(device="cpu")))
            for done in range(3):
                run.append(name, progress=progress_pb2.Progress(stage="work", step=done, step_count=2))
                if done == 1:
                    self.gate.wait(10)
            if name in self.failures:
                run.append(run_failed=router_pb2.RunFailed(error=self.failures[name]))
                return
            operation = getattr(step, step.WhichOneof("operation"))
            if hasattr(operation, "prompt"):
                self._make(run, request, step)
                continue
            taken = operation.masks[0] if hasattr(operation, "masks") else operation.image or "source"
            image = images[taken]
            data = (self.blobs[image.blob_id] if image.blob_id else image.encoded) + f"|{name}".encode()
            images[name] = images_pb2.Image(encoded=data)
            if name in request.pipeline.outputs or request.intermediates or not request.pipeline.outputs:
                kind = router_pb2.RESULT_KIND_IMAGE
                if step.WhichOneof("operation") in ("mask", "segment"):
                    kind = router_pb2.RESULT_KIND_MASK
                result = router_pb2.StepResult(image=self._sent(data, request), kind=kind)
                run.append(name, result=result)
            timing = progress_pb2.Timing(stage="work")
            timing.duration.FromMilliseconds(250)
            run.append(name, finished=progress_pb2.Finished(model="telea", timings=[timing]))
        run.append(run_finished=router_pb2.RunFinished())

    def _make(self, run, request, step):
        kind, operation = step.WhichOneof("operation"), getattr(step, step.WhichOneof("operation"))
        options = operation.options if kind == "generate" else operation.options.generate
        files = [png_of(operation.prompt + (f"#{i}" if i else "")) for i in range(options.image_count or 1)]
        if request.previews:
            for done in (1, 2):
                for i, file in enumerate(files):
                    preview = progress_pb2.Preview(image=images_pb2.Image(encoded=file), step=done, image_index=i)
                    run.append(step.name, preview=preview)
        for i, file in enumerate(files):
            result = router_pb2.StepResult(
                image=self._sent(file, request), kind=router_pb2.RESULT_KIND_IMAGE, image_index=i
            )
            run.append(step.name, result=result)
        parameters = {"prompt": operation.prompt, "step_count": str(options.step_count or 28), "sampler": "euler"}
        parameters |= {"width_px": "1024", "height_px": "768", "guidance_scale": "4.5", **self.parameters}
        run.append(
            step.name,
            finished=progress_pb2.Finished(
                model=options.model or "tiny", model_digest="ab" * 32, seed=options.seed or 41, parameters=parameters
            ),
        )

    def _sent(self, data, request):
        if len(data) <= request.inline_limit_bytes:
            return images_pb2.Image(encoded=data)
        blob_id = hashlib.sha256(data).hexdigest()
        self.blobs[blob_id] = data
        return images_pb2.Image(blob_id=blob_id)

    def WatchRun(self, request, context):
        self.watches.append(request)
        run = self.runs.get(request.run_id)
        if run is None:
            status = a_status(code_pb2.NOT_FOUND, "no such run", "RUN_NOT_FOUND")
            context.abort_with_status(rpc_status.to_status(status))
        for event in run.read(request.after_sequence, context):
            yield router_pb2.WatchRunResponse(event=event)

    def CancelRun(self, request, context):
        run = self.runs[request.run_id]
        was_running = not run.ended
        self.cancelled.append(request.run_id)
        status = a_status(code_pb2.CANCELLED, "the run was cancelled", "CANCELLED")
        run.append(run_failed=router_pb2.RunFailed(error=status))
        return router_pb2.CancelRunResponse(cancelled=was_running)

    def GetStatus(self, request, context):
        self.metadata.append(dict(context.invocation_metadata()))
        server = router_pb2.ServerStatus(kind="inpaint", address="127.0.0.1:7401", healthy=True)
        return router_pb2.GetStatusResponse(servers=[server], version="0.1.0", blob_quota_bytes=1 << 30)

    def ListModels(self, request, context):
        models = [
            models_pb2.Model(name="telea", task="inpaint", state=models_pb2.MODEL_STATE_LOADED, default=True),
            models_pb2.Model(name="grabcut", task="segment", state=models_pb2.MODEL_STATE_INSTALLED),
        ]
        return models_pb2.ListModelsResponse(models=[each for each in models if request.task in ("", each.task)])

    def LoadModel(self, request, context):
        yield from self._changed(request, "+", models_pb2.LoadModelResponse, models_pb2.MODEL_STATE_LOADED, context)

    def UnloadModel(self, request, context):
        yield from self._changed(
            request, "-", models_pb2.UnloadModelResponse, models_pb2.MODEL_STATE_INSTALLED, context
        )

    def _changed(self, request, sign, response, state, context):
        if request.name == "unknown":
            status = a_status(code_pb2.NOT_FOUND, "no model of this name", "UNKNOWN_MODEL")
            context.abort_with_status(rpc_status.to_status(status))
        self.loads.append(sign + request.name)
        yield response(started=progress_pb2.Started(placement=progress_pb2.Placement(device="cpu")))
        yield response(progress=progress_pb2.Progress(stage="load", step=1, step_count=2))
        yield response(result=models_pb2.Model(name=request.name, state=state))
        yield response(finished=progress_pb2.Finished(model=request.name))

    def UploadBlob(self, request, context):
        self.uploads.append(request)
        there = self.blobs.get(request.blob_id, b"")
        if request.offset_bytes == len(there):
            there += request.data
            self.blobs[request.blob_id] = there
        complete = hashlib.sha256(there).hexdigest() == request.blob_id
        return blobs_pb2.UploadBlobResponse(received_bytes=len(there), complete=complete)

    def DownloadBlob(self, request, context):
        data = self.blobs.get(request.blob_id)
        if data is None:
            status = a_status(code_pb2.NOT_FOUND, "the blob is gone", "BLOB_NOT_FOUND")
            context.abort_with_status(rpc_status.to_status(status))
        for offset in range(request.offset_bytes, len(data), 1 << 20):
            yield blobs_pb2.DownloadBlobResponse(data=data[offset : offset + (1 << 20)])


class Wire:
    """A TCP relay whose connections can be cut, as a network does it."""

    def __init__(self, port):
        self._target = ("127.0.0.1", port)
        self._sockets = []
        self.broken = False  # refuses new connections at once
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self):
        while self._sockets:
            end = self._sockets.pop()
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self):
        self.broken = True
        self._listener.close()
        self.cut()

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.broken:
                near.close()
                continue
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            self._sockets += [near, far]
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._relay, args=(source, target), daemon=True).start()

    def _relay(self, source, target):
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def router() -> Iterator[FakeRouter]:
    router = FakeRouter()
    yield router
    router.stop()


@pytest.fixture
def wire(router) -> Iterator[Wire]:
    wire = Wire(router.port)
    yield wire
    wire.close()


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(PNG + b"photo")
    return path
