"""`mmseg bench growth`: exponents, roofline and the page, of a tiny run and of numbers made by hand."""

import json

import numpy as np
import pytest
import torch

from mmseg_cli.bench import growth, growth_report, machine, on_paper, peers, roofline
from mmseg_cli.models import cost
from tests.conftest import run_inside
from tests.networks import NETWORK

TINY = growth.Plan(
    heights=(16, 32),
    widths=(4, 8),
    depths=(1, 2),
    batches=(2, 4),
    curve=(4, 8),
    items=(2, 4),
    height=16,
    width=4,
    batch=4,
    rounds=6,
)


@pytest.fixture
def quick(monkeypatch):
    """Memory and several processes are not measured: each takes a process that loads torch."""
    monkeypatch.setattr(cost, "peak_training_bytes", lambda make, arguments, *, work: 1000 * work.batch * work.height)
    monkeypatch.setattr(machine, "STREAM_BYTES", 2**20)
    processes = {1: {"seconds": [2.0]}, 2: {"seconds": [1.0]}}

    def shared(setting, *, rounds, advance):
        for _ in processes:
            advance()
        return processes

    monkeypatch.setattr(growth, "_processes", shared)


def counted():
    return on_paper.count("paper", NETWORK, classes=3, batch=16, size=(32, 64))


@pytest.mark.slow
def test_everything_is_turned_and_read(quick, tmp_path):
    totals, advanced = [], []
    result = growth.run(
        TINY,
        network=NETWORK,
        classes=3,
        on_paper=counted(),
        device=torch.device("cpu"),
        threads=1,
        begin=totals.append,
        advance=lambda: advanced.append(1),
    )
    assert totals == [len(advanced)]
    result = json.loads(json.dumps(result))
    assert {name: list(rows) for name, rows in result["axes"].items()} == {
        "crop height": ["16", "32"],
        "width": ["4", "8"],
        "depth": ["1", "2"],
        "batch": ["2", "4"],
    }
    assert all(len(row["seconds"]) == 6 for rows in result["axes"].values() for row in rows.values())
    macs = {name: [row["macs"] for row in rows.values()] for name, rows in result["axes"].items()}
    assert macs["batch"][1] == 2 * macs["batch"][0]
    assert macs["crop height"][1] == pytest.approx(4 * macs["crop height"][0], rel=1e-3)
    assert [(row["block"], row["width"]) for row in result["curve"]] == [
        ("mbconv", 4), ("mmbconv", 4), ("mbconv", 8), ("mmbconv", 8),
    ]  # fmt: skip
    assert all(row["roofline_seconds"] > 0 for row in result["curve"])
    assert list(result["data"]) == ["2", "4"]
    for headings, rows in growth_report.tables(result).values():
        assert rows
        assert all(len(row) == len(headings) for row in rows)
    rows = {row[0]: row for row in growth_report.exponents(result)}
    assert rows["crop height"][3:5] == ("1.00", "2.00")
    assert rows["processes, one thread each"][2] == "-1.00 (-1 is ideal)"
    text = growth_report.markdown(result)
    assert "## mmbconv against mbconv, training" in text
    growth_report.figure(result, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes()[:4] == b"\x89PNG"


def test_a_power_is_found_with_its_error():
    x = np.array([1.0, 2.0, 4.0, 8.0])
    exact = growth_report.power(x.tolist(), (3 * x**1.5).tolist())
    assert (exact.exponent, exact.worst) == pytest.approx((1.5, 1))
    assert exact.error == pytest.approx(0, abs=1e-12)
    assert growth_report.power([1, 2], [1, 4]).error is None
    # y = x, the third point twice as large: slope and its error by the textbook's formulas.
    off = growth_report.power(x.tolist(), [1.0, 2.0, 8.0, 8.0])
    log_x, log_y = np.log(x), np.log([1.0, 2.0, 8.0, 8.0])
    from_mean = log_x - log_x.mean()
    slope = (from_mean * log_y).sum() / (from_mean**2).sum()
    residuals = log_y - log_y.mean() - slope * from_mean
    assert off.exponent == pytest.approx(slope)
    assert off.error == pytest.approx(np.sqrt((residuals**2).sum() / 2 / (from_mean**2).sum()))


def test_the_roofline_by_hand():
    """Bound by arithmetic alone, and by traffic alone."""
    size, batch = (32, 48), 2
    macs = batch * peers.macs_of(NETWORK, size=size, classes=3)
    arithmetic = roofline.step_seconds(
        NETWORK, classes=3, batch=batch, size=size, device=roofline.Device(flops=1e9, bandwidth=1e30)
    )
    assert arithmetic == pytest.approx(3 * 2 * macs / 1e9, rel=1e-6)
    # A network of one level is a stem, a block and a head: written down, and added up.
    one = {**NETWORK, "levels": 1, "se_ratio": 0.0}
    pixels, hidden = batch * 16 * 24, 8
    convs = [  # (numbers read, numbers written, weights)
        (batch * 3 * 32 * 48, pixels * 4, 3 * 4 * 9),
        (pixels * 4, pixels * hidden, 4 * hidden * 9),
        (pixels * hidden, pixels * hidden, hidden * 9),
        (pixels * hidden, pixels * 4, hidden * 4 * 9),
        (pixels * 4, pixels * 3, 4 * 3),
    ]
    moved = sum(
        4 * (3 * (read + written + weights) + roofline.NORM_TRAFFIC * written) for read, written, weights in convs
    )
    moved -= 4 * roofline.NORM_TRAFFIC * convs[-1][1]  # behind the head, which has a bias, there is no norm
    traffic = roofline.step_seconds(
        one, classes=3, batch=batch, size=size, device=roofline.Device(flops=1e30, bandwidth=1e9)
    )
    assert traffic == pytest.approx(moved / 1e9)


def test_the_curve_says_where_the_paper_s_figures_hold():
    def row(block, width, *, seconds, peak, macs, ideal):
        measured = {"seconds": seconds, "peak_bytes": peak, "macs": macs, "roofline_seconds": ideal}
        return {"block": block, "width": width, **measured}

    rows = []
    for width, time, memory in ((16, 1.31, 1.12), (32, 2.0, 1.5)):
        seconds = [time - 0.02 + 0.01 * number for number in range(7)]
        rows += [
            row("mbconv", width, seconds=[1.0] * 7, peak=100, macs=1, ideal=1),
            row("mmbconv", width, seconds=seconds, peak=100 * memory, macs=8, ideal=3),
        ]
    result = {"curve": rows}
    assert growth_report.where_the_paper_holds(result).endswith(
        "Here +30 % time lies in the interval at width 16, and memory is within 5 points of +10 % at width 16."
    )
    once = {"curve": [each | {"seconds": each["seconds"][:1]} for each in rows]}
    assert "+30 % time cannot be judged, as one round has no interval, and" in growth_report.where_the_paper_holds(once)
    table = growth_report.curve(result)
    assert table[1][:2] == ("32", "2.01")
    assert table[1][3:6] == ("3.00", "8.00", "1.50")


def test_a_step_on_paper_by_hand():
    row = {"macs": 10**12, "parameters": 10**8, "norms": 100, "norm_channels": 10**4, "batch": 16}
    link = on_paper.Link("x", bandwidth=1e9, latency=1e-5)
    step = on_paper._step(row, gpus=2, batch=4, link=link)
    compute = 2 * 3 * 1e12 * 2 / on_paper.SUSTAINED
    assert step["compute"] == pytest.approx(compute)
    assert step["gradients"] == pytest.approx(4e8 / 1e9)  # a ring of two: each sends half of them twice
    assert step["norms"] == pytest.approx(200 * 1e-5 + 4e4 * (2 + 2) / 1e9)
    waited = step["gradients"] - on_paper.OVERLAPPED * compute + step["norms"]
    assert step["efficiency"] == pytest.approx(compute / (compute + waited))
    assert step["crops"] == pytest.approx(2 / (compute + waited))


def test_the_paper_page_counts_our_network():
    found = counted()
    network = peers.build_ours(network=NETWORK, classes=3)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert (found["parameters"], found["norms"]) == (cost.parameters(network), len(norms))
    assert found["norm_channels"] == sum(norm.num_features for norm in norms)
    rows = on_paper.rows(found)
    assert [row[0] for row in rows] == ["8", "16", "64", "64"]
    assert all(len(row) == len(on_paper.HEADINGS) for row in rows)
    assert "What breaks first is the batch: 16 images" in "\n".join(on_paper.text(found))


@pytest.mark.slow
def test_processes_share_a_batch():
    setting = growth.Setting(NETWORK, 16, 4, 3)
    found = growth._processes(setting, rounds=2, advance=lambda: None)
    assert next(iter(found)) == 1
    assert all(len(row["seconds"]) == 2 for row in found.values())


def test_an_unknown_preset_is_said(project):
    ended = run_inside("bench", "growth", "--preset", "nowhere")
    assert ended.code == 2
    assert ended.err.count("\n") == 1
