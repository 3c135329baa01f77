"""Logging: one line a record on stderr, as text for people or JSON for machines, with the run, step and trace it
belongs to. Those come from context variables, which follow a call onto the device's thread."""

from __future__ import annotations

import json
import logging
import sys
import time
from contextvars import ContextVar

from opentelemetry import trace

run_id: ContextVar[str] = ContextVar("limner_run_id", default="")
step: ContextVar[str] = ContextVar("limner_step", default="")


def set_up(style: str = "text", level: str = "INFO") -> None:
    """Send all records of `level` and above to stderr, in the style `text` or `json`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)


def current() -> dict[str, str]:
    """Return what is known of the call that is being worked on: `run`, `step`, `trace`; absent ones are left out."""
    span = trace.get_current_span().get_span_context()
    known = {
        "run": run_id.get(),
        "step": step.get(),
        "trace": trace.format_trace_id(span.trace_id) if span.is_valid else "",
    }
    return {name: value for name, value in known.items() if value}


class TextFormatter(logging.Formatter):
    """`2026-11-23 16:30:00.123 INFO limner.inpaint: what happened [run=… step=…]`."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        about = " ".join(f"{name}={value}" for name, value in current().items())
        line = f"{clock}.{int(record.msecs):03d} {record.levelname} {record.name}: {record.getMessage()}"
        return line + (f" [{about}]" if about else "") + self._traceback(record)

    def _traceback(self, record: logging.LogRecord) -> str:
        return "\n" + self.formatException(record.exc_info) if record.exc_info else ""


class JsonFormatter(logging.Formatter):
    """One JSON object a record: `time`, `level`, `logger`, `message`, and `run`, `step`, `trace`, `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **current(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)
