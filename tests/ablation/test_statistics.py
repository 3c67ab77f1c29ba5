from __future__ import annotations

import pytest

from mmseg_cli.ablation.statistics import paired_difference, summarise


def test_a_summary_computed_by_hand():
    summary = summarise([1.0, 2.0, 6.0])
    assert (summary.mean, summary.count) == (3.0, 3)
    assert summary.spread == pytest.approx(7**0.5)  # (4 + 1 + 9) / 2


def test_one_value_has_no_spread():
    summary = summarise([4.5])
    assert (summary.mean, summary.spread, summary.count) == (4.5, None, 1)


def test_a_paired_difference_computed_by_hand():
    """The seeds' common noise (10, 20, 30) is gone."""
    difference = paired_difference([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    assert (difference.mean, difference.spread) == (2.0, 1.0)
    with pytest.raises(ValueError, match="zip"):
        paired_difference([1.0, 2.0], [1.0])
