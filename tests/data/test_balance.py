from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmseg_cli.data.balance import inverse_log_weights


def test_weights_are_those_of_enet():
    weight_K = inverse_log_weights([900, 100, 0])
    assert weight_K.dtype == np.float64
    assert weight_K.tolist() == pytest.approx([1 / math.log(1.92), 1 / math.log(1.12), 1 / math.log(1.02)])


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=30))
def test_a_rarer_class_weighs_more_and_no_weight_is_out_of_bounds(pixels):
    weight_K = inverse_log_weights(pixels)
    assert ((weight_K > 1.4) & (weight_K < 50.51)).all()
    assert (np.diff(weight_K[np.argsort(pixels)]) <= 0).all()


def test_it_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; import mmseg_cli.data.balance"
    subprocess.run([sys.executable, "-c", code], check=True)
