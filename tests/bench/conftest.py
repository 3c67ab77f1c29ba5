"""Every benchmark sets torch's threads, and waits until a turn is long enough to be timed."""

import pytest
import torch

from mmseg_cli.bench import turns


@pytest.fixture(autouse=True, scope="module")
def threads():
    """They are put back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _short_turns(monkeypatch):
    """Of one call: no test judges times."""
    monkeypatch.setattr(turns, "LEAST_SECONDS", 0.0)
