"""`mmseg bench predict`: the same labels by all, timed in turn; no speed is asserted."""

import json
import sys

import numpy as np
import pytest
import torch

from mmseg_cli.bench import predict
from mmseg_cli.errors import MmsegError
from mmseg_cli.evaluation import on_torch
from tests import networks
from tests.conftest import run_inside

NETWORK = networks.NETWORK | {"block": "mbconv"}


@pytest.fixture
def no_compiler(monkeypatch):
    """torch.compile gives the network as it is: what it makes takes a minute to make."""
    monkeypatch.setattr(torch, "compile", lambda network: network)


CPU = torch.device("cpu")


def compared(
    contestants=None, *, warn=lambda text: None, advance=lambda: None, precision="float32", ways=None, size=(48, 80)
):
    return predict.run(
        contestants or {"tiny": predict.untrained(NETWORK, classes=3)},
        ways=predict.ways_of(CPU, precision) if ways is None else ways,
        precision=precision,
        size=size,
        rounds=2,
        calls=1,
        threads=1,
        device=CPU,
        advance=advance,
        warn=warn,
    )


@pytest.mark.slow
def test_every_way_of_every_network_is_timed_against_eager(no_compiler):
    advanced, warned = [], []
    result = compared(
        {name: predict.untrained({**NETWORK, "block": name}, classes=3) for name in ("residual", "mbconv")},
        advance=lambda: advanced.append(1),
        warn=warned.append,
    )
    assert (len(advanced), warned) == (4, [])
    assert list(result["networks"]) == ["residual", "mbconv"]
    for name, network in result["networks"].items():
        assert network["network"]["block"] == name
        assert list(network["timings"]) == ["eager", "folded", "compiled", "onnx"]
        assert all(0.999 <= share <= 1 for share in network["agreement"].values())
        assert network["timings"]["eager"]["ratios"] == [1, 1]
        assert all(rate > 0 for timing in network["timings"].values() for rate in timing["rates"])
    result = json.loads(json.dumps(result))  # what the report is made of must survive being written
    tables = predict.tables(result)
    assert list(tables) == ["residual, 48x80", "mbconv, 48x80"]
    assert all(len(row) == len(predict.HEADINGS) for rows in tables.values() for row in rows)
    text = predict.markdown(result)
    assert "One image of 48x80 after the other" in text
    assert "1 threads, device cpu" in text
    assert "onnxruntime" in text
    assert "Left out" not in text


def test_a_random_network_is_the_same_each_time():
    one, other = (predict.untrained(NETWORK, classes=3).build().state_dict() for _ in range(2))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_what_a_machine_cannot_do_is_left_out_and_said(monkeypatch):
    def broken(network):
        raise RuntimeError("no C++ compiler\nwas found")

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    warned = []
    result = compared(warn=warned.append)
    (network,) = result["networks"].values()
    assert list(network["timings"]) == ["eager", "folded"]
    assert network["left_out"]["compiled"] == "no C++ compiler was found"
    assert "onnxruntime: is not installed" in network["left_out"]["onnx"]
    assert len(warned) == 2
    text = predict.markdown(result)
    assert "Left out: `compiled` (no C++ compiler was found)." in text
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert "onnxruntime" not in result["environment"]


@pytest.mark.parametrize(
    ("where", "error"),
    [((on_torch, "fold_norms"), RuntimeError("a bug")), ((torch, "compile"), MemoryError())],
    ids=["a bug", "memory"],
)
def test_what_is_no_matter_of_the_machine_is_not_passed_over(monkeypatch, no_compiler, where, error):
    def broken(network):
        raise error

    monkeypatch.setattr(*where, broken)
    with pytest.raises(type(error)):
        compared()


def test_a_way_that_gives_other_labels_is_not_timed(monkeypatch, no_compiler):
    right = on_torch.fold_norms

    def wrong(network):
        folded = right(network)
        with torch.no_grad():
            folded.head.classifier.bias[0] += 100
        return folded

    monkeypatch.setattr(on_torch, "fold_norms", wrong)
    with pytest.raises(RuntimeError, match="tiny, folded: only .* get the label that eager gives"):
        compared()


def test_ways_and_precisions_are_those_of_the_device(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert predict.ways_of(torch.device("cuda"), "bfloat16") == ("eager", "folded", "compiled", "graph")
    result = compared(ways=["folded"], precision="bfloat16")
    (network,) = result["networks"].values()
    assert list(network["timings"]) == ["eager", "folded"]
    text = predict.markdown(result)
    assert "at one scale, in\nbfloat16; " in text
    assert "by onnxruntime" not in text
    for way in ("graph", "onnx"):
        with pytest.raises(MmsegError, match=f"--ways: {way} is not to be had on cpu in bfloat16"):
            compared(ways=[way], precision="bfloat16")


def test_a_label_in_a_thousand_may_differ():
    expected_HW = np.zeros((100, 100), dtype=np.uint8)
    found_HW = expected_HW.copy()
    found_HW[0, :10] = 1
    assert predict.check_labels(found_HW, expected_HW, name="x") == 0.999
    found_HW[1, 0] = 1
    with pytest.raises(RuntimeError, match="99.89"):
        predict.check_labels(found_HW, expected_HW, name="x")


def test_the_command_writes_both_reports(trained, no_compiler, tmp_path):
    small = ("--height", 48, "--width", 64, "--rounds", 1, "--threads", 1, "--out", tmp_path / "report")
    done = run_inside("bench", "predict", "--run", "runs/demo/train/mmbconv-s0", *small)
    assert done.code == 0, done.err
    assert "mmbconv-s0, trained" in done.out
    done = run_inside("bench", "predict", "--variants", "residual", *small)
    assert done.code == 0, done.err
    done = run_inside("bench", "predict", "--variants", "mbconv", "--precision", "bfloat16", "--ways", "folded", *small)
    assert done.code == 0, done.err
    found = sorted(path.name for path in (tmp_path / "report").iterdir())
    assert found == ["predict-bfloat16.json", "predict-bfloat16.md", "predict.json", "predict.md"]
    result = json.loads((tmp_path / "report" / "predict.json").read_text())
    assert list(result["networks"]) == ["residual of demo, untrained"]
    assert result["networks"]["residual of demo, untrained"]["network"]["block"] == "residual"
    assert (tmp_path / "report" / "predict.md").read_text() == predict.markdown(result)


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["--run", "runs/demo/train/mmbconv-s0", "--variants", "residual"], "--variants: stands beside --run"),
        (["--run", "runs/demo/train/mmbconv-s0", "--classes", "3"], "--classes: stands beside --run"),
        (["--run", "runs/demo/train/mmbconv-s0", "--preset", "demo"], "--preset: stands beside --run"),
        (["--variants", "nothing"], "nothing"),
        (["--variants", ","], "--variants: is empty"),
        (["--run", "runs/demo/pretrain_imagenet/mmbconv-s0"], "is not a segmentation network"),
        (["--device", "nothing"], "--device: 'nothing' is not usable here (Expected one of cpu, cuda"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_line_and_writes_nothing(trained, args, match):
    done = run_inside("bench", "predict", *args)
    assert done.code == 2
    assert match in done.one_error()
    assert not list(trained.glob("reports/bench/*/*"))
