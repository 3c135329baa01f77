"""What calls a model without a server."""

from __future__ import annotations

import pytest

from limner.runtime.job import Job


@pytest.fixture
def job() -> Job:
    """A call that nobody ends."""
    return Job(seed=0, previews=False, deadline=None, publish=lambda field, message: None)
