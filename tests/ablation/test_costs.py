"""cost.json: what is measured and written, and what is computed from it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmseg_cli import energy
from mmseg_cli.ablation import costs
from tests import networks

NETWORK = networks.NETWORK | {"width": 8, "activation": "relu"}
NETWORKS = {
    "residual": {**NETWORK, "block": "residual"},
    "mbconv": {**NETWORK, "block": "mbconv"},
    "mbconv-scratch": {**NETWORK, "block": "mbconv"},
}
SIZES = {"batch": 2, "height": 16, "width": 32, "inference": (32, 48), "repeats": 3, "warmup": 1}


@pytest.fixture
def no_processes(monkeypatch):
    """Peak memory is measured in a process of its own, which takes seconds; tests/models/test_cost.py looks at it."""
    from mmseg_cli.models import cost

    asked = []
    monkeypatch.setattr(
        cost, "peak_training_bytes", lambda make, arguments, work: asked.append((arguments, work)) or len(asked) * 2**20
    )
    return asked


def measured(networks=NETWORKS):
    total, advanced = [], []
    found = costs.measure(
        networks,
        dataset="toy",
        classes=5,
        **SIZES,
        device="cpu",
        threads=1,
        channels_last=True,
        begin=total.append,
        advance=lambda: advanced.append(None),
    )
    assert total == [len(advanced)]
    return found


def test_the_file_holds_all_that_was_measured_and_how(no_processes):
    found = measured()
    assert json.loads(json.dumps(found)) == found
    environment = found["environment"]
    assert {"python", "torch", "numpy", "processor", "cores"} < set(environment)
    assert {key: environment[key] for key in list(environment)[5:]} == {
        "threads": 1,
        "device": "cpu",
        "accelerator": None,
        "memory_format": "channels_last",
        "precision": "float32",
        "training_tf32": None,
        "optimizer": "SGD with momentum",
    }
    assert {key: value for key, value in found.items() if key not in ("environment", "variants")} == {
        "dataset": "toy",
        "classes": 5,
        "batch": 2,
        "height": 16,
        "width": 32,
        "inference_height": 32,
        "inference_width": 48,
        "repeats": 3,
        "warmup": 1,
        "no_energy": "not measured: only NVIDIA's GPUs tell",
    }
    assert list(found["variants"]) == list(NETWORKS)
    counts = costs.counted(NETWORKS, classes=5, height=16, width=32)
    for variant, row in found["variants"].items():
        whole, _ = counts[variant]
        assert row["network"] == NETWORKS[variant]
        assert (row["parameters"], row["macs"], row["activation_bytes"]) == (
            whole.parameters,
            whole.macs,
            whole.activation_bytes,
        )
        assert list(row)[5:] == ["peak_bytes", "step_seconds", "inference_seconds", "step_joules"]
        assert len(row["step_seconds"]) == len(row["inference_seconds"]) == 3
        assert row["step_joules"] is None


def test_a_network_that_two_variants_have_is_measured_once(no_processes):
    found = measured()["variants"]
    assert [row["same_as"] for row in found.values()] == [None, None, "mbconv"]
    assert {**found["mbconv-scratch"], "same_as": None} == found["mbconv"]
    assert [arguments["block"] for arguments, _ in no_processes] == ["residual", "mbconv"]
    arguments, work = no_processes[0]
    assert arguments == {"task": "segmentation", "num_classes": 5, **NETWORKS["residual"]}
    assert (work.batch, work.height, work.width, work.device) == (2, 16, 32, "cpu")


def test_what_is_the_same_to_python_is_the_same_network():
    assert costs.first_of_each({"a": {"expansion": 2}, "b": {"expansion": 2.0}, "c": {"expansion": 3}}) == {
        "a": "a",
        "b": "a",
        "c": "c",
    }


def test_energy_where_the_device_tells(no_processes, monkeypatch):
    read = []
    monkeypatch.setattr(energy, "meter", lambda device: lambda: read.append(0) or 7.0 * len(read))
    monkeypatch.setattr(costs, "JOULE_SECONDS", 0.0)
    found = measured()
    assert found["no_energy"] is None
    assert [row["step_joules"] for row in found["variants"].values()] == [[7.0] * 3] * 3


def test_the_command_writes_the_file_and_shows_it(no_processes, project, change_params, raw, mmseg):
    change_params(lambda p: p["variants"].update({"again": {"block": "mbconv", "train": {"steps": 2}}}))
    change_params(lambda p: p["ablate"].update(variants=["residual", "mbconv", "again"]))
    change_params(lambda p: p["cost"].update(inference=[32, 64]))
    assert mmseg("prepare", "cityscapes", "--root", raw["cityscapes"], "--preset", "demo").code == 0
    done = mmseg("cost", "--measure")
    assert done.code == 0, done.err
    found = json.loads(Path("reports/demo/evidence/cost.json").read_text())
    assert [row["same_as"] for row in found["variants"].values()] == [None, None, "mbconv"]
    assert (found["classes"], found["inference_height"], found["inference_width"]) == (19, 32, 64)
    assert "a training step of 2 crops, and one image of 32x64, on cpu" in done.out
    assert "not measured: only NVIDIA's GPUs tell" in done.out
    assert "again is mbconv" in done.out
    assert "mmseg ablate" in done.out


# ------------------------------------------------------------------------------------------------ derived


def content(**steps):
    """cost.json of variants whose step, prediction and energy take so many times their list's numbers."""
    rows = {
        name: {
            "parameters": 10,
            "macs": 20,
            "peak_bytes": int(100 * values[0]),
            "step_seconds": values,
            "inference_seconds": [value / 10 for value in values],
            "step_joules": [5 * value for value in values],
        }
        for name, values in steps.items()
    }
    return {"batch": 4, "variants": rows}


def test_ratios_are_medians_within_rounds():
    found = costs.compared(content(a=[1.0, 2.0, 4.0], b=[2.0, 6.0, 4.0]), variants=["a", "b"])
    assert found["b"].step == costs.Timing(median=4.0, ratio=2.0, low=None, high=None)  # of 2, 3 and 1
    assert found["b"].inference == costs.Timing(median=0.4, ratio=2.0, low=None, high=None)
    assert found["b"].joules == costs.Timing(median=20.0, ratio=2.0, low=None, high=None)
    assert (found["b"].parameters, found["b"].macs, found["b"].peak_bytes) == (10, 20, 200)
    assert (found["b"].memory_ratio, found["b"].images_per_second) == (2.0, 1.0)
    assert found["a"].step == costs.Timing(median=2.0, ratio=1.0, low=None, high=None)
    assert list(costs.compared(content(a=[1.0], b=[2.0], c=[3.0]), variants=["c", "a"])) == ["c", "a"]


def test_no_energy_has_no_ratio():
    cost = content(a=[1.0], b=[2.0])
    for row in cost["variants"].values():
        row["step_joules"] = None
    assert [row.joules for row in costs.compared(cost, variants=["a", "b"]).values()] == [None, None]


def test_the_interval_is_between_two_of_the_ratios():
    ratios = [1.5, 1.1, 1.9, 1.2, 1.8, 1.3, 1.7, 1.4, 1.6, 9.0]
    found = costs.versus(ratios, [1.0] * 10)
    assert (found.low, found.high) == (1.2, 1.9)  # the second and the last but one of ten
    assert math.isclose(found.ratio, 1.55)


def test_the_baseline_and_its_like_have_no_interval():
    rounds = [1.0, 2.0, 3.0] * 5
    found = costs.compared(content(a=rounds, b=list(rounds)), variants=["a", "b"])
    assert found["b"].step == costs.Timing(median=2.0, ratio=1.0, low=None, high=None)


def test_places_are_those_of_the_tables():
    """The limits for the median in table A.7 of textbooks, counted from 0: x(1), x(2), ... of n values."""
    tabled = {5: None, 6: 0, 8: 0, 9: 1, 11: 1, 12: 2, 14: 2, 15: 3, 16: 3, 17: 4, 19: 4, 20: 5}
    assert {count: costs._place(count) for count in tabled} == tabled
    assert [costs._place(count) for count in range(6)] == [None] * 6


@pytest.mark.parametrize("count", [6, 7, 25, 100, 1500])
def test_the_interval_is_the_shortest_that_holds(count):
    place = costs._place(count)
    assert place is not None

    def missed(place):
        return 2 * sum(math.comb(count, number) for number in range(place + 1)) / 2**count

    assert missed(place) <= 0.05 < missed(place + 1)


def test_series_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="shorter|longer"):
        costs.compared(content(a=[1.0, 2.0], b=[1.0]), variants=["a", "b"])


def test_reading_needs_no_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')\n")
    code = f"""
from mmseg_cli.ablation import costs, match
print(costs.compared({content(a=[1.0], b=[3.0])}, variants=["a", "b"])["b"].step.ratio)
"""
    path = os.pathsep.join([str(tmp_path), str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "3.0"), done.stderr
