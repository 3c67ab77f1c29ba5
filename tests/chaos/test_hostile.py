"""Checkpoints made to do harm: none runs anything, hangs, or takes more memory than twice its size."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.hostile import CASES, HEAVY, Payload
from tests.pipeline.tiny import REPOSITORY

SLACK = 16 * 2**20  # of the allocator, the warning's text and the checkpoint before
LIGHT = [name for name in CASES if name not in HEAVY]


def results_of(names, place):
    """What became of every case, by name, and whether something ran. A process for all, another where it was lost."""
    marker = place / "something-ran"
    found, left = {}, list(names)
    while left:
        done = subprocess.run(
            [sys.executable, Path(__file__).with_name("hostile.py"), place / f"from-{len(found)}", *left],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "MARKER": str(marker)},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        for line in done.stdout.splitlines():
            result = json.loads(line)
            found[result["name"]] = result
        left = [name for name in left if name not in found]
        if left:
            found[left[0]] = {"end": f"lost with {done.returncode}: {done.stderr[-300:]}", "bytes": 0, "grown": 0}
            left = left[1:]
    return found, marker.exists()


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    return results_of(LIGHT, tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def heavy(tmp_path_factory):
    return results_of(HEAVY, tmp_path_factory.mktemp("hostile"))


def the_one_before_is_used_aloud(result):
    assert result["end"] == "loaded", result
    assert (result["step"], result["type"], result["weight"]) == (1, "int", 1.0)
    (warning,) = result["warnings"]
    assert "cannot be used" in warning or "does not fit" in warning
    assert warning.endswith("going on from step-000000001")
    assert "\n" not in warning
    assert len(warning) < 1000


def takes_no_more_memory_than_twice_its_size(result):
    assert result["grown"] <= 2 * result["bytes"] + SLACK, {key: result[key] for key in ("bytes", "grown", "end")}


def test_the_harm_is_real_where_it_is_let(tmp_path, monkeypatch):
    """The marker file appears when one of the pickles is loaded."""
    monkeypatch.setenv("MARKER", str(tmp_path / "ran"))
    pickle.loads(pickle.dumps(Payload()))
    assert (tmp_path / "ran").exists()


def test_none_runs_anything(light):
    found, ran = light
    assert len(found) == len(LIGHT)
    assert not ran


@pytest.mark.parametrize("name", LIGHT)
def test_the_one_before_is_used_aloud(light, name):
    the_one_before_is_used_aloud(light[0][name])


@pytest.mark.parametrize("name", LIGHT)
def test_it_takes_no_more_memory_than_twice_its_size(light, name):
    takes_no_more_memory_than_twice_its_size(light[0][name])


@pytest.mark.slow
@pytest.mark.parametrize("name", HEAVY)
def test_a_heavy_one_is_left_out_aloud(heavy, name):
    assert not heavy[1]
    the_one_before_is_used_aloud(heavy[0][name])


@pytest.mark.slow
@pytest.mark.parametrize("name", HEAVY)
def test_a_heavy_one_takes_no_more_memory_than_twice_its_size(heavy, name):
    takes_no_more_memory_than_twice_its_size(heavy[0][name])
