"""`mmseg bench gains`: all ways train the same and take turns; no speed is asserted."""

import json
import signal

import pytest
import torch

from mmseg_cli.bench import gains
from mmseg_cli.errors import Interrupted
from mmseg_cli.models import lean
from mmseg_cli.models.unet import DecoderLevel
from tests.conftest import run_inside
from tests.networks import NETWORK

ON_A_CPU = tuple(way for way in gains.WAYS if way != gains.GRAPH)


def compared(blocks=("mmbconv", "residual"), ways=ON_A_CPU, warn=lambda text: None):
    *_, found = gains.run(
        blocks,
        ways,
        network=NETWORK,
        size=(32, 48),
        batch=2,
        classes=3,
        rounds=6,
        threads=1,
        device=torch.device("cpu"),
        precision="float32",
        advance=lambda: None,
        warn=warn,
    )
    return json.loads(json.dumps(found))


def test_every_way_of_every_block_is_checked_and_timed(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda network: network)
    result = compared()
    assert list(result["blocks"]) == ["mmbconv", "residual"]
    for parts in result["blocks"].values():
        ways = parts["ways"]
        assert list(ways) == list(ON_A_CPU)
        assert all(len(row["images_per_second"]) == 6 for row in ways.values())
        kept = [ways[name]["kept_bytes"] for name in ("plain", "loss", "decoder", "ours", "recompute")]
        assert kept == sorted(kept, reverse=True)
        assert kept[3] < 0.6 * kept[0]
        assert 0 < ways["bfloat16"]["loss_differs"] < 0.03
        assert ways["ours"]["loss_differs"] < 1e-5
    for rows in gains.tables(result).values():
        assert all(len(row) == len(gains.HEADINGS) for row in rows)
        assert rows[0][2] == "1.00"
    macs, peak = result["blocks"]["residual"]["macs"], sorted(result["matrix_peak"])[len(result["matrix_peak"]) // 2]
    rates = sorted(result["blocks"]["residual"]["ways"]["plain"]["images_per_second"])
    mfu = 100 * 6 * macs * (rates[2] + rates[3]) / 2 / peak
    assert float(gains.tables(result)["residual"][0][4]) == pytest.approx(mfu, abs=0.06)
    text = gains.markdown(result)
    assert "MFU: a step's operations" in text
    del result["matrix_peak"]
    assert "MFU" not in gains.markdown(result)
    assert all(f"- `{name}`" in text for name in ON_A_CPU)


def test_the_plain_way_is_gone_after_it():
    forward = DecoderLevel.forward
    with gains._as("plain"):
        assert lean._plain
        assert DecoderLevel.forward is not forward
    assert not lean._plain
    assert DecoderLevel.forward is forward


def test_a_way_that_trains_something_else_is_not_timed(monkeypatch):
    monkeypatch.setattr(
        gains, "_plain_cross_entropy", lambda logits, target: 2 * gains.cost.mean_cross_entropy(logits, target)
    )
    with pytest.raises(RuntimeError, match="loss: its losses differ from the plain way's"):
        compared(["mmbconv"], ["loss"])


def test_a_compiler_that_fails_is_left_out_and_said(monkeypatch):
    def broken(network):
        raise RuntimeError("no C++ compiler\nwas found")

    monkeypatch.setattr(torch, "compile", broken)
    warned = []
    result = compared(["residual"], ["compile"], warn=warned.append)
    assert list(result["blocks"]["residual"]["ways"]) == ["plain"]
    assert warned == ["residual: compile is left out: no C++ compiler was found"]
    assert "Left out: `compile` (no C++ compiler was found)." in gains.markdown(result)


def test_the_command_writes_its_report(project):
    ended = run_inside(
        "bench", "gains", "--blocks", "mbconv", "--ways", "ours", "--preset", "demo", "--height", 32, "--width", 64,
        "--batch", 2, "--rounds", 1, "--threads", 1, "--out", "there",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    result = json.loads((project / "there" / "gains.json").read_text())
    assert list(result["blocks"]["mbconv"]["ways"]) == ["plain", "ours"]
    assert (project / "there" / "gains.md").read_text() == gains.markdown(result)


def test_what_is_stopped_leaves_the_blocks_that_were_done(project, monkeypatch):
    block = gains._block

    def stopped(network, *arguments, **given):
        if network["block"] == "mbconv":
            raise Interrupted("mmseg bench", signal.SIGTERM, "stopped by SIGTERM")
        return block(network, *arguments, **given)

    monkeypatch.setattr(gains, "_block", stopped)
    ended = run_inside(
        "bench", "gains", "--blocks", "residual,mbconv", "--ways", "ours", "--preset", "demo", "--height", 32,
        "--width", 64, "--batch", 2, "--rounds", 1, "--threads", 1, "--out", "there",
    )  # fmt: skip
    assert ended.code == 143, ended.err
    result = json.loads((project / "there" / "gains.json").read_text())
    assert list(result["blocks"]) == ["residual"]
    assert (project / "there" / "gains.md").read_text() == gains.markdown(result)


def test_an_unknown_way_is_said(project):
    ended = run_inside("bench", "gains", "--ways", "our")
    assert ended.code == 2
    assert "--ways: unknown name 'our'" in ended.err


def test_graphs_without_a_gpu_are_refused(project):
    ended = run_inside("bench", "gains", "--ways", "graph", "--preset", "demo")
    assert ended.code == 2
    assert ended.one_error() == "mmseg: error: --ways: graph needs a GPU: leave it out, or give --device cuda"
