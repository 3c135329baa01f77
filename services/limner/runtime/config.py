"""Settings: a section of one TOML file, overridden by the environment, into frozen dataclasses.

Every service has its own dataclass that inherits ServerConfig:

    @dataclass(frozen=True)
    class InpaintConfig(ServerConfig):
        port: int = 7401
        default_model: str = "telea"

    load_config("inpaint", InpaintConfig, Path("limner.toml"))     # [inpaint] of limner.toml, then LIMNER_INPAINT_*

Knows nothing of what the settings are for.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from limner.runtime.cpus import cpu_count

if TYPE_CHECKING:
    import cattrs

T = TypeVar("T")

# A Kubernetes service called `limner-inpaint` puts these into every pod's environment, and they mean something else.
_SERVICE_LINK = re.compile(r"SERVICE_HOST|SERVICE_PORT\w*|PORT_\d+_\w+")
_SERVICE_LINK_PORT = re.compile(r"\w+://.*")


class ConfigError(Exception):
    """A setting that cannot be used; the message names the place, the key and the mend."""


@dataclass(frozen=True)
class ServerConfig:
    """What every server can be told."""

    host: str = "127.0.0.1"
    port: int = 0  # 0: any free one
    queue_limit: int = 32  # calls that may wait for a device; more are refused
    max_message_bytes: int = 512 << 20
    max_image_bytes: int = 256 << 20
    max_image_pixels: int = 64_000_000
    drain_seconds: float = 30.0  # how long running calls may go on after SIGTERM
    device: str = "auto"  # `auto`, `cpu`, `cuda:N`, `mps`
    precision: str = "auto"  # `auto`, `fp32`, `fp16`, `bf16`, `int8`
    thread_count: int = 0  # 0: as many as the container has CPUs
    memory_budget_mb: int = 0  # MiB that models and their calls may take; 0: 80 % of what is free at the start
    model_dir: str = ""  # empty: the user's cache directory
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    def __post_init__(self) -> None:
        within("port", self.port, 0, 65535)
        within("queue_limit", self.queue_limit, 1, 10_000)
        within("max_message_bytes", self.max_message_bytes, 1 << 10, 1 << 30)
        within("max_image_bytes", self.max_image_bytes, 1 << 10, 1 << 30)
        within("max_image_pixels", self.max_image_pixels, 1, 1 << 31)
        within("drain_seconds", self.drain_seconds, 0, 86_400)
        within("thread_count", self.thread_count, 0, 4096)
        within("memory_budget_mb", self.memory_budget_mb, 0, 1 << 24)

    @property
    def threads(self) -> int:
        """The CPU threads to use, at least 1."""
        return self.thread_count or cpu_count()


def within(key: str, value: float, low: float, high: float) -> None:
    """Raise ValueError unless low <= value <= high. For the __post_init__ of configurations."""
    if not low <= value <= high:
        raise ValueError(f"{key} is {value}; give {low} to {high}")


def load_config(section: str, kind: type[T], path: Path | None, environment: Mapping[str, str] | None = None) -> T:
    """Return [section] of the TOML at `path` (or at LIMNER_CONFIG), overridden by LIMNER_<SECTION>_<FIELD>.

    Lists are comma-separated in the environment, and tables are `name=value,name=value`. Raises ConfigError, which
    names the place, the key and the mend.
    """
    environment = os.environ if environment is None else environment
    if path is None and environment.get("LIMNER_CONFIG"):
        path = Path(environment["LIMNER_CONFIG"])
    types_by_key = typing.get_type_hints(kind)
    keys = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if path is not None:
        for key, value in _section(path, section).items():
            values[key], origins[key] = value, f"{path} [{section}] {key}"
    prefix = f"LIMNER_{section.upper()}_"
    for name, text in sorted(environment.items()):
        key = name.removeprefix(prefix).lower()
        if not name.startswith(prefix) or _is_service_link(name.removeprefix(prefix), text):
            continue
        origins[key] = name
        values[key] = _from_text(text, types_by_key[key], name) if key in keys else text
    for key in values:
        if key not in keys:
            raise ConfigError(f"{origins[key]}: no such setting; {_suggestion(key, keys)}")
    return _structure(values, kind, types_by_key, origins, f"{path} [{section}]" if path else prefix + "*")


def _section(path: Path, section: str) -> dict[str, Any]:
    """Return one table of a TOML file; an absent one is empty."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}") from error
    if section not in document:
        # The file serves several programs, so a foreign section is no fault, but one that is nearly ours is.
        for near in difflib.get_close_matches(section, document, n=1, cutoff=0.8):
            raise ConfigError(f"{path} [{near}]: no such section; did you mean [{section}]?")
        return {}
    table = document[section]
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {section} is not a section; write [{section}] on a line of its own")
    return table


def _is_service_link(name: str, text: str) -> bool:
    return bool(_SERVICE_LINK.fullmatch(name) or (name == "PORT" and _SERVICE_LINK_PORT.fullmatch(text)))


def _suggestion(key: str, keys: list[str]) -> str:
    near = difflib.get_close_matches(key, keys, n=1)
    return f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted(keys))}"


def _from_text(text: str, kind: Any, name: str) -> Any:
    """Return what an environment variable's text means for a setting of type `kind`."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:  # T | None
        kind = next(argument for argument in typing.get_args(kind) if argument is not type(None))
    try:
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        if kind in (int, float):
            return kind(text)
    except (KeyError, ValueError):
        raise ConfigError(f"{name}: is {text!r}; give {_describe(kind)}") from None
    if typing.get_origin(kind) in (list, tuple):
        item = typing.get_args(kind)[0]
        return [_from_text(part.strip(), item, name) for part in text.split(",") if part.strip()]
    if typing.get_origin(kind) is dict:
        item = typing.get_args(kind)[1]
        pairs = [part.strip().partition("=") for part in text.split(",") if part.strip()]
        if not all(key.strip() and equals for key, equals, _ in pairs):
            raise ConfigError(f"{name}: is {text!r}; give name=value,name=value")
        return {key.strip(): _from_text(value.strip(), item, name) for key, _, value in pairs}
    return text


def _structure(
    values: dict[str, Any], kind: type[T], types_by_key: dict[str, Any], origins: dict[str, str], where: str
) -> T:
    """Return the dataclass, or raise ConfigError for the first value that does not fit."""
    for key, value in values.items():
        try:
            values[key] = _converter().structure(value, types_by_key[key])
        except Exception as error:  # whatever cattrs says of it, with one meaning: it does not fit
            raise ConfigError(f"{origins[key]}: is {value!r}; give {_describe(types_by_key[key])}") from error
    try:
        return kind(**values)
    except ValueError as error:
        key = str(error).split(" ", 1)[0]
        raise ConfigError(f"{origins.get(key, where)}: {error}") from error


@functools.cache
def _converter() -> cattrs.Converter:
    """Return a converter that takes numbers for numbers and text for text: cattrs alone makes "false" true."""
    import cattrs  # here, as it costs start-up time that a server without settings need not spend

    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_structure_hook(bool, functools.partial(_exactly, (bool,)))
    converter.register_structure_hook(int, functools.partial(_exactly, (int,)))
    converter.register_structure_hook(float, functools.partial(_exactly, (int, float)))
    converter.register_structure_hook(str, functools.partial(_exactly, (str,)))
    return converter


def _exactly(accepted: tuple[type, ...], value: Any, kind: type) -> Any:
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
        raise TypeError(value)
    return kind(value)


def _describe(kind: Any) -> str:
    """Return a type for people: `a whole number`, `"text" or "json"`, `a list of texts`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " or ".join(f'"{argument}"' for argument in arguments)
    if origin in (list, tuple):
        return f"a list, each item {_describe(arguments[0])}"
    if origin is dict:
        return f"a table, each value {_describe(arguments[1])}"
    if arguments:
        return " or ".join(_describe(argument) for argument in arguments if argument is not type(None))
    named = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return named.get(kind, getattr(kind, "__name__", str(kind)))
