"""Runs an ONNX network where its placement says. Knows arrays by name, not what they mean.

    session = open_session(store.path(card, "model.onnx"), placement)
    (upscaled,) = session.run({"input": batch})    # float32 NCHW in, float32 NCHW out
    (upscaled,) = session.run({"input": batch}, check=job.check)    # given up in the middle once the call is over

Engines are imported when the first session is opened: a server without networks never pays for them. What a run takes
on a CPU is given back when it ends: of several networks in one process only one runs, and what a session keeps for its
largest run the others could not have.
"""

from __future__ import annotations

import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from limner.core.errors import BadArgument, ModelNotInstalled, OutOfMemory
from limner.core.placement import Placement
from limner.engine.memory import trim
from limner.runtime.cpus import cpu_count

OUT_OF_MEMORY = ("bad_alloc", "failed to allocate", "out of memory", "alloc_failed", "cannot allocate memory")
"""What the engines' messages say, in lower case, when an allocation failed."""

CHECK_EVERY_S = 0.03  # how often a run asks whether it is still wanted

Check = Callable[[], object]
"""Raises once the work isn't wanted any more, such as `Job.check`."""


class Session(ABC):
    """An opened network. Not for two threads at once."""

    input_names: list[str]
    output_names: list[str]

    def run(self, inputs: dict[str, NDArray[Any]], check: Check | None = None) -> list[NDArray[Any]]:
        """Return the outputs in the order of `output_names`, the caller's to keep. Raises OutOfMemory.

        `check` is called on the calling thread every CHECK_EVERY_S while the network runs. If it raises, the engine
        stops after the operator it is at (of large pictures some take half a second), or is waited for where stopping
        would cost more than the rest of the run; then the exception goes on to the caller. The session can be used
        again.
        """
        with _allocations():
            return self._run(inputs, check)

    @abstractmethod
    def _run(self, inputs: dict[str, NDArray[Any]], check: Check | None) -> list[NDArray[Any]]: ...


def open_session(model: Path | bytes, placement: Placement, *, thread_count: int | None = None) -> Session:
    """Open a network from its file or its bytes. `thread_count` overrules the placement's.

    Raises BadArgument if the file isn't to be trusted or can't be run, OutOfMemory, and ModelNotInstalled if the engine
    or the device of the placement turns out not to work."""
    from limner.engine.onnx_check import check_onnx  # imports onnx, half a second

    with _allocations():
        check_onnx(model)
    threads = (placement.thread_count if thread_count is None else thread_count) or cpu_count()
    kind = {"onnxruntime": OnnxRuntimeSession, "openvino": OpenVinoSession}[placement.engine]
    try:
        with _allocations():
            return kind(model, placement, threads)
    except ImportError as error:
        raise ModelNotInstalled(
            f"{placement.engine} can't be imported ({error}): pip install --force-reinstall {placement.engine}"
        ) from error


class OnnxRuntimeSession(Session):
    """ONNX Runtime on the CPU or on CUDA, in the precision that the file is written in."""

    def __init__(self, model: Path | bytes, placement: Placement, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors; they are raised as well
        # Waiting threads sleep: the servers of one machine share its cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers: list[Any] = ["CPUExecutionProvider"]
        if placement.device != "cpu":
            onnxruntime.preload_dlls()  # CUDA and cuDNN from NVIDIA's Python packages, if they are there
            # HEURISTIC: each new shape would cost EXHAUSTIVE a search of seconds.
            settings = {"device_id": placement.device.removeprefix("cuda:"), "cudnn_conv_algo_search": "HEURISTIC"}
            providers.insert(0, ("CUDAExecutionProvider", settings))
        try:
            source = model if isinstance(model, bytes) else str(model)
            self._session = onnxruntime.InferenceSession(source, options, providers=providers)
        except Exception as error:  # its exceptions have no common base, and no public names
            raise _cannot_run("ONNX Runtime", error) from error
        if placement.device != "cpu" and "CUDAExecutionProvider" not in self._session.get_providers():
            raise ModelNotInstalled(
                f"ONNX Runtime could not use {placement.device}: CUDA or cuDNN is missing; "
                "pip install 'onnxruntime-gpu[cuda,cudnn]', or set device to cpu"
            )
        self._make_options = onnxruntime.RunOptions
        self._on_cpu = placement.device == "cpu"
        self.input_names = [value.name for value in self._session.get_inputs()]
        self.output_names = [value.name for value in self._session.get_outputs()]

    def _run(self, inputs: dict[str, NDArray[Any]], check: Check | None) -> list[NDArray[Any]]:
        options = self._make_options()
        if self._on_cpu:  # on CUDA, to allocate anew would make the device wait
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

        def run() -> list[NDArray[Any]]:
            return list(self._session.run(self.output_names, inputs, options))

        if check is None:
            return run()
        # `run_async` would need a second thread in the engine's pool, which a container with one CPU has not.
        turn = _Turn(run)
        try:
            while not turn.ended(CHECK_EVERY_S):
                check()
        except BaseException:
            options.terminate = True
            turn.wait()
            raise
        return turn.result()


class _Turn:
    """A function on a thread of its own, which is awaited in steps."""

    def __init__(self, function: Callable[[], list[NDArray[Any]]]) -> None:
        self._function = function
        self._outputs: list[NDArray[Any]] = []
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="limner-onnxruntime", daemon=True)
        self._thread.start()

    def ended(self, within_s: float) -> bool:
        self._thread.join(within_s)
        return not self._thread.is_alive()

    def wait(self) -> None:
        self._thread.join()

    def result(self) -> list[NDArray[Any]]:
        if self._error is not None:
            error, self._error = self._error, None  # its traceback leads back here, and holds pictures
            raise error
        return self._outputs

    def _work(self) -> None:
        try:
            self._outputs = self._function()
        except Exception as error:  # raised where the result is asked for
            self._error = error


class OpenVinoSession(Session):
    """OpenVINO on the CPU. Inputs and outputs are what the file says, whatever it computes in.

    An int8 file says itself which operators are int8; the rest of it runs in fp32, as with bf16 in between OpenVINO
    converts to and fro (LaMa at 256²: 0.33 s instead of 0.22 s).

    A compiled network is not used again after a run that was stopped or failed: part of it would be left prepared for
    another size, and the next run would give wrong values, or end the process (2026.4). It is compiled anew by the next
    run. That takes seconds, so a run that will be over before is not stopped but waited for.
    """

    _compiled: Any  # None after a run that was stopped or failed
    _request: Any

    def __init__(self, model: Path | bytes, placement: Placement, threads: int) -> None:
        openvino = _import_openvino()
        self._model = model
        self._settings = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": openvino.Type.bf16 if placement.precision == "bf16" else openvino.Type.f32,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # the servers of one machine would all pin the same cores
        }
        self._core = openvino.Core()
        self._seconds_per_value = 0.0  # of the inputs; of the last run that ended well
        self._compile()
        self.input_names = [port.any_name for port in self._compiled.inputs]
        self.output_names = [port.any_name for port in self._compiled.outputs]

    def _compile(self) -> None:
        began = time.monotonic()
        try:
            self._compiled = self._core.compile_model(self._core.read_model(self._model), "CPU", self._settings)
            self._request = self._compiled.create_infer_request()
        except RuntimeError as error:
            raise _cannot_run("OpenVINO", error) from error
        self._compile_s = time.monotonic() - began

    def _run(self, inputs: dict[str, NDArray[Any]], check: Check | None) -> list[NDArray[Any]]:
        if self._compiled is None:
            self._compile()
        began, values = time.monotonic(), sum(array.size for array in inputs.values())
        try:
            # Not `infer`: with a single thread it drops exceptions and returns empty arrays (2026.4).
            self._request.start_async(inputs, share_inputs=True)
            error = None if check is None else self._await(check, began + self._seconds_per_value * values)
            self._request.wait()
            outputs = [self._request.get_output_tensor(index).data.copy() for index in range(len(self.output_names))]
            self._compiled.release_memory()
        except BaseException:
            self._request = self._compiled = None
            raise
        finally:
            trim()
        self._seconds_per_value = (time.monotonic() - began) / max(values, 1)
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback leads back here, and holds pictures
        return outputs

    def _await(self, check: Check, end: float) -> BaseException | None:
        """Return None once the run has ended, well or not; or what `check` raised if the run ends before long anyway.
        Otherwise stop the run and raise that. `end` is when it is expected to end."""
        while not self._request.wait_for(round(CHECK_EVERY_S * 1000)):
            try:
                check()
            except BaseException as error:
                if 0 < end - time.monotonic() < self._compile_s:
                    return error
                self._request.cancel()
                with suppress(RuntimeError):  # that it was cancelled
                    self._request.wait()
                raise
        return None


def _import_openvino() -> Any:
    """Import OpenVINO without its telemetry, which otherwise reports each import to Google Analytics unasked."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # what Python knows as "not importable"
    import openvino

    return openvino


def _cannot_run(engine: str, error: Exception) -> Exception:
    if _is_out_of_memory(error):
        return error
    first_line = str(error).strip().partition("\n")[0]
    return BadArgument(f"{engine} can't run this network: {first_line}", field="model")


@contextmanager
def _allocations() -> Iterator[None]:
    """Turn an engine's failed allocation into OutOfMemory."""
    try:
        yield
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        raise OutOfMemory(
            "the device has not enough memory for this; use smaller pictures, tiles or batches"
        ) from error


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(phrase in str(error).lower() for phrase in OUT_OF_MEMORY)
