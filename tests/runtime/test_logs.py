"""Log lines."""

from __future__ import annotations

import contextvars
import json
import logging

from limner.runtime import logs


def record(message: str, *arguments: object, error: Exception | None = None) -> logging.LogRecord:
    info = (type(error), error, None) if error else None
    return logging.LogRecord("limner.test", logging.INFO, "file", 1, message, arguments, info)


def formatted(formatter: logging.Formatter, line: logging.LogRecord) -> str:
    def within() -> str:
        logs.run_id.set("run-7")
        logs.step.set("erase")
        return formatter.format(line)

    return contextvars.copy_context().run(within)


def test_text_lines_tell_run_and_step():
    line = formatted(logs.TextFormatter(), record("took %d ms", 7))
    assert line.endswith(" INFO limner.test: took 7 ms [run=run-7 step=erase]")


def test_json_lines_are_json_with_run_step_and_exception():
    entry = json.loads(formatted(logs.JsonFormatter(), record("größer", error=ValueError("no"))))
    assert (entry["message"], entry["run"], entry["step"], entry["level"]) == ("größer", "run-7", "erase", "INFO")
    assert "ValueError: no" in entry["exception"]


def test_outside_a_call_nothing_is_told_about_one():
    assert logs.TextFormatter().format(record("up")).endswith("limner.test: up")
