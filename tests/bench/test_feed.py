"""`mmseg bench feed`: the real loop, fed by the real loader and from memory; no speed is asserted."""

import json

import pytest

from tests.conftest import run_inside


@pytest.mark.slow
def test_the_command_writes_its_report(tmp_path):
    words = ["--preset", "demo", "--workers", "1", "--images", "2", "--steps", "2", "--rounds", "2"]
    done = run_inside("bench", "feed", *words, "--out", tmp_path)
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "feed.json").read_text())
    assert result["settings"]["workers"] == 1
    for turns in result["turns"].values():
        assert len(turns) == 2
        assert all(turn["crops_per_second"] > 0 and 0 <= turn["waited"] < 1 for turn in turns)
    page = (tmp_path / "feed.md").read_text()
    assert "| from memory |" in page
    assert "100.0 | 100.0 - 100.0 |" in page
    assert "fed by the loader" in done.out


def test_an_unknown_variant_is_named(tmp_path):
    done = run_inside("bench", "feed", "--variant", "nothing", "--out", tmp_path)
    assert done.code == 2
    assert "nothing" in done.one_error()
