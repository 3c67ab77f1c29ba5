"""`mmseg bench train`: pairs at equal cost, timed in turns; no speed is asserted."""

import json

import pytest
import torch

from mmseg_cli.bench import peers, train
from mmseg_cli.errors import NotCaptured
from mmseg_cli.models import cost
from tests.conftest import run_inside
from tests.networks import NETWORK, Small


@pytest.fixture
def small(monkeypatch):
    """A peer that takes milliseconds; its memory is not measured, for that takes a process of its own."""
    monkeypatch.setitem(peers.PEERS, "small", peers.Peer("Small", "torch", "dense", Small))
    monkeypatch.setattr(cost, "peak_training_bytes", lambda make, arguments, *, work: 1000 * work.batch)


def compared(names, **changes):
    warned = []
    arguments = {
        "network": NETWORK,
        "size": (32, 48),
        "batch": 2,
        "classes": 3,
        "rounds": 6,
        "threads": 1,
        "device": torch.device("cpu"),
        "precision": "float32",
        "advance": lambda: None,
        "warn": warned.append,
    }
    *_, result = train.run(names, **arguments | changes)
    return json.loads(json.dumps(result)), warned


@pytest.mark.slow
def test_a_pair_is_compared_at_equal_cost(small):
    advanced = []
    result, warned = compared(["small"], advance=lambda: advanced.append(1))
    assert (len(advanced), warned) == (2 * 6 + 2, [])
    pair = result["pairs"]["small"]
    assert pair["network"] == peers.at_equal_macs(NETWORK, pair["small"]["macs"], size=(32, 48), classes=3)
    assert pair["small"]["macs"] == 32 * 48 * (3 * 8 * 9 + 8 * 3)
    for side in ("ours", "small"):
        assert pair[side]["folded"]
        for what in ("training", "inference"):
            assert len(pair[side][what]["images_per_second"]) == 6
            assert pair[side][what]["layout"] in train.LAYOUTS
    assert result["environment"]["torch"] == torch.__version__.split("+")[0]
    assert all(rate > 0 for rate in result["matrix_peak"])
    ratios, speeds = train.tables(result).values()
    assert len(ratios) == 1
    assert ratios[0][:2] == ("Small", "dense")
    assert ratios[0][-1] == "1.00"
    assert len(speeds) == 2
    for title, rows in train.tables(result).items():
        assert all(len(row) == len(train.headings(title)) for row in rows)
    text = train.markdown(result)
    assert "| Small | dense |" in text
    assert "Batch norms are left" not in text


def test_figures_of_a_row_by_hand():
    row = {
        "parameters": 2_500_000,
        "macs": 10**9,
        "peak_bytes": 400 * 10**6,
        "training": {"images_per_second": [1.0, 2.0, 3.0]},
        "inference": {"images_per_second": [8.0]},
    }
    cells = train._speeds({"settings": {"batch": 4}, "matrix_peak": [1e11, 0.0, 3e11]}, "x", row)
    # 2 images/s x 1 GMAC x 2 operations x 3 passes = 12 GFLOP/s, of 100; 100 MB an image, 100 bytes for 1000 MACs.
    assert cells == ("x", "2.50", "1.000", "2", "0.012", "12.0", "100", "100.0", "8")


def test_folding_a_peer_changes_no_output():
    torch.manual_seed(0)
    network = peers.build_peer(name="torchvision-lraspp", classes=3)
    network(torch.rand(2, 3, 64, 64))  # statistics that are not the initial ones
    network.eval()
    folded = train._by_fx(network)
    assert train.has_norms(network)
    assert not train.has_norms(folded)
    x_BCHW = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(folded(x_BCHW), network(x_BCHW), rtol=1e-3, atol=1e-4)


def test_what_cannot_be_traced_is_left_as_it_is():
    class Branching(Small):
        def forward(self, x_BCHW):
            return super().forward(x_BCHW) if x_BCHW.sum() > 0 else x_BCHW

    network = Branching(3)
    assert train._by_fx(network) is network


def test_a_peer_that_cannot_be_made_is_left_out_and_said(small, monkeypatch):
    def missing(*, name, classes):
        raise peers.MmsegError(name, "needs the package x", "install it")

    monkeypatch.setattr(peers, "build_peer", missing)
    result, warned = compared(["small"])
    assert result["pairs"] == {}
    assert warned == ["left out: small: needs the package x: install it"]
    assert "Left out: small (small: needs the package x: install it)." in train.markdown(result)


def test_after_a_failed_capture_nothing_is_measured(small, monkeypatch):
    """As torch may be unable to draw on a GPU then."""

    def failed(*given, **named):
        raise NotCaptured("cuda", "the network cannot be captured as a CUDA graph", "set runtime.compile")

    monkeypatch.setattr(train, "_pair", failed)
    with pytest.raises(NotCaptured):
        compared(["small"])


@pytest.mark.slow
def test_a_peer_that_the_memory_does_not_suffice_for_costs_no_other(small, monkeypatch):
    class Large(Small):
        def forward(self, x_BCHW):
            if not x_BCHW.is_meta:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().forward(x_BCHW)

    monkeypatch.setitem(peers.PEERS, "large", peers.Peer("Large", "torch", "dense", Large))
    result, warned = compared(["small", "large"])
    assert list(result["pairs"]) == ["small"]
    assert result["left_out"] == {"large": "large: not enough memory"}
    assert warned == ["left out: large: not enough memory"]


def test_the_command_writes_its_report(project, small):
    ended = run_inside(
        "bench", "train", "--peers", "small", "--preset", "demo", "--height", 32, "--width", 48, "--batch", 2,
        "--classes", 3, "--rounds", 1, "--threads", 1, "--out", "there",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    result = json.loads((project / "there" / "train.json").read_text())
    assert (project / "there" / "train.md").read_text() == train.markdown(result)
    assert "mmseg bench accuracy" in ended.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--peers", "nobody"], "--peers: unknown name 'nobody'"),
        (["--precision", "float8"], "--precision: unknown name 'float8'"),
        (["--peers", " , "], "--peers: is empty"),
    ],
)
def test_wrong_names_are_said_in_one_line(project, arguments, said):
    ended = run_inside("bench", "train", "--preset", "demo", *arguments)
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert said in ended.err
