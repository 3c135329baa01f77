"""Settings from file and environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from limner.runtime.config import ConfigError, ServerConfig, load_config


@dataclass(frozen=True)
class InpaintConfig(ServerConfig):
    port: int = 7401
    default_model: str = "telea"
    preload: tuple[str, ...] = ()
    share: float = 0.5
    warm: bool = False
    ceiling: int | None = None
    sources: dict[str, str] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "limner.toml"
    path.write_text(text, encoding="utf-8")
    return path


def load(path: Path | None = None, **environment: str) -> InpaintConfig:
    return load_config("inpaint", InpaintConfig, path, environment)


def test_without_a_file_the_defaults_hold():
    assert load() == InpaintConfig()
    assert load().port == 7401


def test_the_section_of_the_file_is_read_and_others_are_not(tmp_path):
    path = written(tmp_path, '[inpaint]\nqueue_limit = 3\npreload = ["a", "b"]\nshare = 1\n[segment]\nwhat = 1\n')
    config = load(path)
    assert (config.queue_limit, config.preload, config.share) == (3, ("a", "b"), 1.0)


def test_the_environment_overrides_the_file(tmp_path):
    path = written(tmp_path, "[inpaint]\nport = 1\nqueue_limit = 3\n")
    config = load(
        None,
        LIMNER_CONFIG=str(path),
        LIMNER_INPAINT_PORT="7777",
        LIMNER_INPAINT_PRELOAD="telea, ns ,",
        LIMNER_INPAINT_WARM="yes",
        LIMNER_INPAINT_SHARE="0.25",
        LIMNER_INPAINT_CEILING="9",
    )
    assert (config.port, config.queue_limit, config.preload) == (7777, 3, ("telea", "ns"))
    assert (config.warm, config.share, config.ceiling) == (True, 0.25, 9)


def test_tables_are_read_from_the_file_and_as_pairs_from_the_environment(tmp_path):
    path = written(tmp_path, '[inpaint]\nsources = { tiny = "/models/tiny" }\nshares = { a = 1, b = 0.5 }\n')
    assert load(path).sources == {"tiny": "/models/tiny"}
    assert load(path).shares == {"a": 1.0, "b": 0.5}
    pairs = load(path, LIMNER_INPAINT_SOURCES="mine=owner/name, other = C:/a=b ,", LIMNER_INPAINT_SHARES="c=2")
    assert pairs.sources == {"mine": "owner/name", "other": "C:/a=b"}  # the first = parts them
    assert pairs.shares == {"c": 2.0}


def test_what_kubernetes_puts_into_the_environment_is_not_taken_for_settings():
    config = load(
        LIMNER_INPAINT_PORT="tcp://10.0.0.1:7401",
        LIMNER_INPAINT_SERVICE_HOST="10.0.0.1",
        LIMNER_INPAINT_SERVICE_PORT_GRPC="7401",
        LIMNER_INPAINT_PORT_7401_TCP_ADDR="10.0.0.1",
    )
    assert config == InpaintConfig()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", ["limner.toml", "[inpaint]", "prot", "did you mean port?"]),
        ('port = "7401"', ["limner.toml", "[inpaint]", "port", "'7401'", "a whole number"]),
        ("port = true", ["port", "True", "a whole number"]),
        ("warm = 1", ["warm", "true or false"]),
        ("preload = [1]", ["preload", "a list, each item a text"]),
        ('log_format = "xml"', ["log_format", '"text" or "json"']),
        ("queue_limit = 0", ["limner.toml", "[inpaint]", "queue_limit is 0; give 1 to 10000"]),
        ("port = 70000", ["port is 70000; give 0 to 65535"]),
    ],
)
def test_a_bad_setting_names_file_section_key_and_mend(tmp_path, text, words):
    path = written(tmp_path, f"[inpaint]\n{text}\n")
    with pytest.raises(ConfigError) as raised:
        load(path)
    assert [word for word in words if word not in str(raised.value)] == []


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("LIMNER_INPAINT_PORT", "http", ["LIMNER_INPAINT_PORT", "'http'", "a whole number"]),
        ("LIMNER_INPAINT_WARM", "perhaps", ["true or false"]),
        ("LIMNER_INPAINT_QUEU_LIMIT", "1", ["LIMNER_INPAINT_QUEU_LIMIT", "did you mean queue_limit?"]),
        ("LIMNER_INPAINT_SOURCES", "a=b,/models/tiny", ["'a=b,/models/tiny'", "give name=value,name=value"]),
        ("LIMNER_INPAINT_SHARES", "a=many", ["LIMNER_INPAINT_SHARES", "'many'", "a number"]),
        ("LIMNER_INPAINT_LOG_LEVEL", "LOUD", ["LIMNER_INPAINT_LOG_LEVEL", '"DEBUG" or "INFO"']),
    ],
)
def test_a_bad_variable_is_named(name, value, words):
    with pytest.raises(ConfigError) as raised:
        load(**{name: value})
    assert [word for word in words if word not in str(raised.value)] == []


def test_a_misspelt_section_is_noticed(tmp_path):
    with pytest.raises(ConfigError, match=r"\[inpiant\].*did you mean \[inpaint\]"):
        load(written(tmp_path, "[inpiant]\nport = 1\n"))


def test_a_missing_file_and_broken_toml_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read"):
        load(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match=r"limner\.toml: is not valid TOML"):
        load(written(tmp_path, "[inpaint\n"))
