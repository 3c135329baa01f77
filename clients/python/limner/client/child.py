"""Runs a module as `python -m` does, and ends when whoever started it is gone.

    python -m limner.client.child limner.inpaint --port 7401

Standard input is a pipe that nobody writes to. The operating system closes it when the parent ends, however it ends,
and this process then stops as on SIGTERM, or by force if it doesn't. That works from any thread and on any system,
unlike Linux's parent-death signal, which comes already when the thread that started the child ends.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

_GRACE_SECONDS = 10.0


def _stop_when_orphaned() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os._exit(1)


def main() -> None:
    """Runs the module that the first argument names with the others as its own."""
    threading.Thread(target=_stop_when_orphaned, name="orphan-watch", daemon=True).start()
    del sys.argv[0]
    module = sys.argv[0]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        if (error.name or "limner").startswith("limner"):  # a fault of ours, not a package that isn't there
            raise
        extra = module.removeprefix("limner.")
        sys.exit(f"{module} is not installed, as {error.name} is missing: pip install 'limner[{extra},cpu]'")


if __name__ == "__main__":
    main()
