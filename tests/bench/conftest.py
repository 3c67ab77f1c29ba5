"""Every benchmark sets torch's threads."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def threads():
    """They are put back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
