"""Limner's services as processes of this machine: started together, watched, stopped together.

    with LocalServers(services=("router", "inpaint")) as servers:
        client = Client(servers.address("router"))

What `limner up`, the demo, the benchmarks and the end-to-end tests use. It knows how to start `limner.SERVICE` and to
ask its health; it imports none of them.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

HOST = "127.0.0.1"
DEFAULT_PORTS = {"router": 7400, "inpaint": 7401, "segment": 7402, "postprocess": 7403, "diffusion": 7404}
SERVICES = tuple(DEFAULT_PORTS)
# What a service can do nothing without, although its modules come with those of the others: torch is large, and many
# do without it.
_NEEDED = {"diffusion": "diffusers"}
# Below the range that systems take ports of outgoing connections from, so that a port found free stays so.
_FREE_PORTS = range(15000, 32000)
_POLL_SECONDS = 0.05
_ROUTER_POLL_SECONDS = 0.2


class ServiceFailed(Exception):
    """A service did not start, or died; the message ends with the last lines of its log."""


@dataclass
class _Service:
    name: str
    host: str
    port: int
    log_file: Path
    process: subprocess.Popen[bytes] | None = None
    reader: threading.Thread | None = None
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=20))


class LocalServers:
    """Runs services until the block is left: by default all, but diffusion only where its packages are installed.

    `config` is the TOML file that each of them reads; `environment` is added to the processes' own. By default each
    listens on a free port, and the router keeps its blobs in a temporary directory that goes with the block; with
    `free_ports=False` ports are the configured or usual ones plus `port_offset`. Logs go to `log_dir/SERVICE.log`, by
    default in the temporary directory, and line by line to `on_line`. Leaving the block, or the death of this process,
    stops them all; an object is good for one block.
    """

    def __init__(
        self,
        *,
        config: str | os.PathLike[str] | None = None,
        services: Sequence[str] | None = None,
        free_ports: bool = True,
        port_offset: int = 0,
        log_dir: str | os.PathLike[str] | None = None,
        environment: Mapping[str, str] | None = None,
        on_line: Callable[[str, str], None] | None = None,
        start_timeout: float = 60.0,
        stop_timeout: float = 35.0,
    ) -> None:
        services = default_services() if services is None else services
        for name in services:
            if name not in DEFAULT_PORTS:
                raise ValueError(f"no service {name!r}; there are: {', '.join(SERVICES)}")
        config = config or os.environ.get("LIMNER_CONFIG")
        self._config = Path(config).resolve() if config else None
        self._on_line = on_line
        self._start_timeout = start_timeout
        self._stop_timeout = stop_timeout
        if free_ports:
            ports = dict(zip(services, find_free_ports(len(services)), strict=True))
        else:
            ports = {name: port + port_offset for name, port in configured_ports(self._config, services).items()}
        for name, port in ports.items():
            if not 0 < port < 65536:
                raise ValueError(f"{name} can't listen on port {port}: give 1 to 65535")
        self._temporary = tempfile.TemporaryDirectory(prefix="limner-", ignore_cleanup_errors=True)
        self.log_dir = Path(log_dir or self._temporary.name)
        self.log_dir.mkdir(parents=True, exist_ok=True)
        hosts = configured_hosts(self._config, services)
        self._services = {
            name: _Service(name, hosts[name], ports[name], self.log_dir / f"{name}.log") for name in services
        }
        # The router finds the servers that are started here; others are where its configuration says.
        own = {f"LIMNER_ROUTER_{name.upper()}": self.address(name) for name in services if name != "router"}
        if free_ports:
            own["LIMNER_ROUTER_BLOB_DIR"] = str(Path(self._temporary.name) / "blobs")
        self._environment = {**os.environ, **own, **(environment or {})}

    def __enter__(self) -> LocalServers:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def services(self) -> tuple[str, ...]:
        """The names of the services, in the order given."""
        return tuple(self._services)

    @property
    def pids(self) -> dict[str, int]:
        """The process of each service that runs."""
        return {name: service.process.pid for name, service in self._services.items() if service.process is not None}

    def address(self, name: str) -> str:
        """Host and port of a service."""
        return f"{self._services[name].host}:{self._services[name].port}"

    def log_file(self, name: str) -> Path:
        """Where a service's log is written; it holds all starts of the service."""
        return self._services[name].log_file

    def start(self) -> None:
        """Starts all at once and returns when all are healthy. Raises ServiceFailed, having stopped them all."""
        try:
            missing = [name for name in self._services if not is_installed(name)]
            if missing:
                raise ServiceFailed(f"not installed here: {', '.join(missing)}; `pip install limner[all]` brings them")
            taken = [
                f"{each.port} ({each.name})" for each in self._services.values() if not is_free(each.port, each.host)
            ]
            if taken:
                raise ServiceFailed(
                    f"something listens already on port {', '.join(taken)}: stop it, "
                    "or choose other ports with --port-offset or --free-ports"
                )
            for service in self._services.values():
                self._start(service)
            self.wait_healthy()
        except BaseException:
            self.stop()
            raise

    def restart(self, name: str, *, wait: bool = True) -> None:
        """Starts a service that died again, on its old port; with `wait`, returns when it is healthy."""
        self._stop([self._services[name]])
        self._start(self._services[name])
        if wait:
            self.wait_healthy([name])

    def kill(self, name: str, signal_number: int = signal.SIGKILL) -> None:
        """Sends a signal to a service, as a fault; by default one that it can't catch."""
        process = self._services[name].process
        if process is not None:
            process.send_signal(signal_number)

    def dead(self) -> dict[str, int]:
        """The services that have ended by themselves, with their exit codes; negative: the signal that ended them."""
        codes = {name: service.process.poll() for name, service in self._services.items() if service.process}
        return {name: code for name, code in codes.items() if code is not None}

    def last_lines(self, name: str) -> list[str]:
        """The end of a service's log."""
        return list(self._services[name].last_lines)

    def wait_healthy(self, names: Sequence[str] | None = None) -> None:
        """Returns when the services' health is SERVING and the router, if it runs here, knows it of those given.

        Raises ServiceFailed when one dies or takes too long.
        """
        deadline = time.monotonic() + self._start_timeout
        waiting = list(self._services if names is None else names)
        checks = [(name, name, health_check(self.address(name)), _POLL_SECONDS) for name in waiting]
        if "router" in self._services:
            known = set(self._services if "router" in waiting else waiting) - {"router"} - self.dead().keys()
            seen = router_check(self.address("router"), known)
            checks.append(("router", "one of the servers, as the router sees it,", seen, _ROUTER_POLL_SECONDS))
        for name, what, is_healthy, interval in checks:
            while True:
                healthy = is_healthy()
                if name in self.dead():  # then somebody else answered
                    raise ServiceFailed(self.describe_death(name))
                if healthy:
                    break
                if time.monotonic() > deadline:
                    log = "\n".join(f"  {line}" for line in self.last_lines(name))
                    raise ServiceFailed(f"{what} is not healthy after {self._start_timeout:g} s\n{log}")
                time.sleep(interval)

    def describe_death(self, name: str) -> str:
        """What became of a dead service, with the end of its log."""
        service = self._services[name]
        if service.reader is not None:
            service.reader.join(1.0)
        code = self.dead().get(name, 0)
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return "\n".join([f"{name} {how}", *(f"  {line}" for line in service.last_lines)])

    def stop(self) -> None:
        """Asks all to finish what they do and stop, then makes them. Does nothing if they are stopped."""
        self._stop(self._services.values())
        self._temporary.cleanup()

    def _start(self, service: _Service) -> None:
        command = [sys.executable, "-m", "limner.client.child", f"limner.{service.name}", "--port", str(service.port)]
        if self._config is not None:
            command += ["--config", str(self._config)]
        # In a session of its own, so that the terminal's Ctrl-C reaches only us and we stop them in order.
        service.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment,
            start_new_session=True,
        )
        assert service.process.stdout is not None
        service.reader = threading.Thread(
            target=self._read_log, args=(service, service.process.stdout), name=f"log-{service.name}", daemon=True
        )
        service.reader.start()

    def _read_log(self, service: _Service, output: BinaryIO) -> None:
        with service.log_file.open("ab") as log, output:
            for raw in output:
                log.write(raw)
                log.flush()
                line = raw.decode(errors="replace").rstrip()
                service.last_lines.append(line)
                if self._on_line is not None:
                    self._on_line(service.name, line)

    def _stop(self, services: Iterable[_Service]) -> None:
        running = [(service, service.process) for service in services if service.process is not None]
        for _, process in running:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + self._stop_timeout
        try:
            for _, process in running:
                process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        finally:  # also when a second Ctrl-C cuts the waiting short
            for service, process in running:
                if process.poll() is None:
                    process.kill()
                process.wait()
                if process.stdin is not None:
                    process.stdin.close()
                if service.reader is not None:
                    service.reader.join(1.0)
                service.process = service.reader = None


def default_services() -> tuple[str, ...]:
    """All services, without those whose modules are here and the packages that they need are not."""
    return tuple(name for name in SERVICES if name not in _NEEDED or is_installed(name))


def is_installed(name: str) -> bool:
    """True if a service can be started, as far as can be told without importing it."""
    return find_spec(f"limner.{name}") is not None and (name not in _NEEDED or find_spec(_NEEDED[name]) is not None)


def health_check(address: str) -> Callable[[], bool]:
    """Asks a server's health service, each time it is called."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    def is_serving() -> bool:
        with grpc.insecure_channel(address) as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1.0)
            except grpc.RpcError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    return is_serving


def router_check(address: str, kinds: set[str]) -> Callable[[], bool]:
    """Asks a router, each time it is called, whether servers of these kinds are all healthy."""
    import grpc

    from limner.v1 import router_pb2, router_pb2_grpc

    def all_are_healthy() -> bool:
        with grpc.insecure_channel(address) as channel:
            try:
                status = router_pb2_grpc.RouterServiceStub(channel).GetStatus(
                    router_pb2.GetStatusRequest(), timeout=1.0
                )
            except grpc.RpcError:
                return False
            return kinds <= {server.kind for server in status.servers if server.healthy}

    return all_are_healthy


def find_free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on, all different."""
    found: list[int] = []
    for port in random.sample(_FREE_PORTS, k=1000):
        if len(found) == count:
            break
        if is_free(port):
            found.append(port)
    return found


def is_free(port: int, host: str = HOST) -> bool:
    """True if nobody listens on the port, also just after another one has stopped there.

    True as well where that can't be found out: the server that tries to listen tells better what is wrong.
    """
    with socket.socket() as probe:
        if os.name == "posix":  # elsewhere it would allow to take a port that is in use
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True


def configured_ports(config: Path | None, services: Sequence[str]) -> dict[str, int]:
    """The port of each service: from the environment, else from the file, else the usual one.

    What is wrong with either is not told here: the service tells it better when it starts.
    """
    ports = {}
    for name, port in _configured(config, services, "port").items():
        ports[name] = DEFAULT_PORTS[name]
        with suppress(ValueError):
            ports[name] = int(str(port or DEFAULT_PORTS[name]))
    return ports


def configured_hosts(config: Path | None, services: Sequence[str]) -> dict[str, str]:
    """Where each service is reached from here: at the address it listens on, or this machine's own if that is all."""
    hosts = _configured(config, services, "host")
    return {
        name: host if isinstance(host, str) and host not in ("", "0.0.0.0", "::", "[::]") else HOST
        for name, host in hosts.items()
    }


def _configured(config: Path | None, services: Sequence[str], setting: str) -> dict[str, object]:
    """A setting of each service, from the environment, else from the file, else None."""
    document: dict[str, object] = {}
    if config is not None:
        with suppress(OSError, ValueError):
            document = tomllib.loads(config.read_text(encoding="utf-8"))
    found: dict[str, object] = {}
    for name in services:
        section = document.get(name)
        in_file = section.get(setting) if isinstance(section, dict) else None
        found[name] = os.environ.get(f"LIMNER_{name.upper()}_{setting.upper()}") or in_file
    return found
