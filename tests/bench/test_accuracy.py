"""`mmseg bench accuracy`: equal time, crops and trials for all, resumed run by run; no accuracy is asserted."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import torch

from mmseg_cli import runtime
from mmseg_cli.bench import accuracy, accuracy_report, held_out, peers
from mmseg_cli.data.store import open_store
from mmseg_cli.errors import MmsegError
from mmseg_cli.evaluation import metrics
from mmseg_cli.params import load
from tests.conftest import run_inside
from tests.networks import Small

CPU = torch.device("cpu")
STEPS = {"mbconv": 0.010, "mmbconv": 0.020, "small": 0.005}  # seconds that a step is said to take


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(peers.PEERS, "small", peers.Peer("Small", "torch", "dense", Small))
    real = accuracy.step_seconds

    def steps(builders, recipe, images):
        measured = [values for found in real(builders, recipe, images).values() for values in found.values()]
        assert len(measured) == 2 * len(builders)
        assert all(len(values) == accuracy.ROUNDS * accuracy.STEPS_A_ROUND for values in measured)
        assert all(value > 0 for values in measured for value in values)
        slower = {name: [2 * STEPS[name]] for name in builders}
        return {name: {"channels_last": slower[name], "contiguous": [STEPS[name]]} for name in builders}

    monkeypatch.setattr(accuracy, "step_seconds", steps)
    monkeypatch.setattr(accuracy, "ROUNDS", 1)


def store_of(project):
    params = load(project / "params.yaml")
    dataset = params.train.dataset
    return params, open_store(project / "data" / "demo" / dataset, parameters=params.datasets[dataset].content())


def compared(project, *, begin=lambda total: None, advance=lambda: None, note=lambda text: None, **changes):
    params, store = store_of(project)
    arguments = {
        "params": params,
        "store": store,
        "variants": ["mbconv", "mmbconv"],
        "names": ["small"],
        "seconds": 0.1,
        "trial_seconds": 0.04,
        "rates": [0.001, 0.01],
        "seeds": 3,
        "points": 2,
        "hold_out": None,
        "report": None,
        "device": CPU,
        "begin": begin,
        "advance": advance,
        "note": note,
    }
    return json.loads(json.dumps(accuracy.run(project / "kept", **arguments | changes)))


def test_all_get_the_same_time_trials_and_points(prepared, small):
    totals, advanced, notes = [], [], []
    result = compared(prepared, begin=totals.append, advance=lambda: advanced.append(1), note=notes.append)
    assert totals == [len(advanced)] == [1 + 3 * (2 + 3)]
    assert len(notes) == 3 * (2 + 3)
    assert result["ours"] == ["mbconv", "mmbconv"]
    for name, runs in result["runs"].items():
        steps = int(0.1 / STEPS[name])
        assert [run["seed"] for run in runs] == [0, 1, 2]
        assert [[point["step"] for point in run["points"]] for run in runs] == 3 * [[round(steps / 2), steps]]
        assert [row["learning_rate"] for row in result["trials"][name]] == [0.001, 0.01]
        assert {row["steps"] for row in result["trials"][name]} == {int(0.04 / STEPS[name])}
    settings = result["settings"]
    assert (settings["training_images"], settings["judged_images"], settings["held_out_images"]) == (5, 3, 1)

    rows = accuracy_report.rows(result)
    assert all(len(row) == len(accuracy_report.HEADINGS) for row in rows)
    assert sum(row[6] == "best of ours, by the held-out images" for row in rows) == 1
    assert {row[2] for row in rows} == {"contiguous"}
    text = accuracy_report.markdown(result, picture="x.png")
    assert "| ours: mbconv |" in text
    assert "| Small (torch) |" in text
    accuracy_report.figure(result, prepared / "x.png")
    assert (prepared / "x.png").read_bytes()[:4] == b"\x89PNG"


def test_what_is_done_is_not_done_again(prepared, small, monkeypatch):
    first = compared(prepared)
    (prepared / "kept").rename(prepared / "gone")
    assert compared(prepared) == first  # another time gives the same digits: threads and seeds are fixed
    (prepared / "gone").rename(prepared / "kept-before")

    def again(*arguments, **named):
        raise AssertionError("trained again")

    monkeypatch.setattr(accuracy, "one_run", again)
    assert compared(prepared) == first
    with pytest.raises(AssertionError, match="trained again"):
        compared(prepared, seeds=4)


def test_another_machine_trains_what_a_report_s_machine_would(prepared, small, monkeypatch):
    first = compared(prepared)
    report = prepared / "accuracy.json"
    report.write_text(json.dumps(first))
    monkeypatch.setattr(accuracy, "step_seconds", None)  # nothing is timed

    def elsewhere(device):
        return {"processor": "Another", "torch": "1.0"}

    monkeypatch.setattr(accuracy, "environment_of", elsewhere)
    later = compared(prepared, report=report, hold_out="not looked at", rates=[1.0], trial_seconds=9.0)
    for name, runs in later["runs"].items():
        assert [run["points"] for run in runs] == [run["points"] for run in first["runs"][name]]
        assert {run["by"]["environment"]["processor"] for run in runs} == {"Another"}
    assert {key: later[key] for key in later if key != "runs"} == {key: first[key] for key in first if key != "runs"}
    assert accuracy_report.trained_elsewhere(first) == ""
    said = f"The 9 runs were trained for as many steps as that machine takes: 9 by {torch.get_num_threads()} thread"
    assert said in accuracy_report.markdown(later, picture="x.png")
    longer = compared(prepared, report=report, seconds=0.2, variants=["mmbconv"], seeds=1)
    assert [run["steps"] for run in longer["runs"]["mmbconv"]] == [10]

    with pytest.raises(MmsegError, match=r"accuracy.json: has no torchvision-lraspp: leave them out"):
        compared(prepared, report=report, names=["torchvision-lraspp"])
    report.write_text(json.dumps(first | {"settings": first["settings"] | {"preset": "paper"}}))
    with pytest.raises(MmsegError, match=r"accuracy.json: was made with another preset: name the"):
        compared(prepared, report=report)
    report.write_text("{}")
    with pytest.raises(MmsegError, match=r"accuracy.json: is no report of `mmseg bench accuracy`"):
        compared(prepared, report=report)


def test_processes_share_the_work_and_none_is_done_twice(prepared, small):
    first = compared(prepared)
    kept = [file for file in (prepared / "kept").iterdir() if json.loads(file.read_text())["what"] == "run"]
    taken, *others = kept
    taken.unlink()
    before = {file: file.stat().st_mtime_ns for file in others}
    lines = []
    with (
        runtime.only_one(taken.with_suffix(".lock")),
        pytest.raises(MmsegError, match="1 run was left to other processes that train, and the report needs all"),
    ):
        compared(prepared, note=lines.append)
    assert len(lines) == len(first["trials"]) * 2 + len(others)  # it went on with the rest
    assert compared(prepared) == first
    assert taken.is_file()
    assert before == {file: file.stat().st_mtime_ns for file in others}
    assert not list((prepared / "kept").glob("*.lock"))


def test_a_part_of_a_split_holds_its_items_and_survives_a_worker(prepared):
    _, store = store_of(prepared)
    whole = store.split("train")
    part = held_out.Part(whole.folder, whole.split, (3, 1))
    for each in (part, pickle.loads(pickle.dumps(part))):
        assert len(each) == 2
        for mine, theirs in ((0, 3), (1, 1)):
            assert each.size(mine) == whole.size(theirs)
            assert each.label_size(mine) == whole.label_size(theirs)
            assert each.class_pixels(mine) == whole.class_pixels(theirs)
            assert np.array_equal(each.image(mine), whole.image(theirs))
            assert np.array_equal(each.label(mine), whole.label(theirs))


def test_what_is_held_out_is_not_trained_on(prepared):
    _, store = store_of(prepared)
    names = store.split("train").names()
    images = held_out.held_out(store, names[2])
    assert (images.train.kept, images.judged.kept) == ((0, 1, 3, 4), (2,))
    pixels = np.zeros(images.classes, dtype=int)
    for item in (0, 1, 3, 4):
        for index, count in store.split("train").class_pixels(item).items():
            if index < images.classes:
                pixels[index] += count
    assert images.class_pixels == pixels.tolist()
    last = max(range(5), key=lambda item: names[item])
    assert held_out.held_out(store, None).judged.kept == (last,)
    for prefix, count in (("nothing", 0), ("", 5)):
        with pytest.raises(MmsegError, match=f"--hold-out: holds out {count} of 5 training images"):
            held_out.held_out(store, prefix)


def test_the_last_point_is_the_network_s_own_score(prepared, monkeypatch):
    params, store = store_of(prepared)
    images = held_out.whole(store)
    recipe = accuracy.Recipe(params.section_of("mbconv", "train"), params, CPU)
    network = peers.build_ours(network=params.network_of("mbconv"), classes=images.classes)
    work = {"learning_rate": 0.01, "steps": 3, "points": 1, "seed": 0, "channels_last": True}
    rows = accuracy.one_run(lambda: network, recipe, images, **work)
    assert [row["step"] for row in rows] == [3]
    network.eval()
    matrix = 0
    for item in range(len(images.judged)):
        x_BCHW = torch.from_numpy(images.judged.image(item)).permute(2, 0, 1)[None]
        with torch.no_grad():
            predicted = network(accuracy.inference.normalise(x_BCHW, device=CPU)).argmax(1)[0].numpy().astype(np.uint8)
        matrix = matrix + metrics.confusion(images.judged.label(item), predicted, classes=images.classes)
    assert rows[-1]["miou"] == pytest.approx(100 * metrics.mean_iou(matrix), abs=1e-9)


def test_a_training_that_breaks_down_counts_0_and_is_no_traceback(prepared):
    params, store = store_of(prepared)
    images = held_out.whole(store)
    recipe = accuracy.Recipe(params.section_of("mbconv", "train"), params, CPU)

    class Broken(Small):
        def forward(self, x_BCHW):
            return super().forward(x_BCHW) * float("nan")

    work = {"learning_rate": 0.01, "steps": 3, "points": 2, "seed": 0, "channels_last": True}
    rows = accuracy.one_run(lambda: Broken(images.classes), recipe, images, **work)
    assert rows == [{"step": step, "miou": 0.0, "broken": "the loss is nan at step 1"} for step in (2, 3)]


def made(scores):
    """A result whose val mIoU of each network and seed is given."""
    runs = {
        name: [
            {"seed": seed, "steps": 10, "points": [{"step": 10, "miou": value}]} for seed, value in enumerate(values)
        ]
        for name, values in scores.items()
    }
    trials = {name: [{"learning_rate": 0.01, "steps": 5, "miou": 50.0 + (name == "mbconv")}] for name in scores}
    return {
        "ours": ["mmbconv", "mbconv"],
        "runs": runs,
        "trials": trials,
        "layouts": dict.fromkeys(scores, "channels_last"),
        "step_seconds": {name: [0.1] for name in scores},
        "settings": {"seconds": 1.0, "rates": [0.001, 0.01]},
    }


def test_the_best_of_ours_is_chosen_without_a_look_at_val():
    result = made({"mmbconv": [60, 61, 62], "mbconv": [50, 51, 52.5], "torchvision-lraspp": [40, 41, 42]})
    assert accuracy_report.best_of_ours(result) == "mbconv"
    against = {row.name: row for row in accuracy_report.differences(result)}
    # Differences of 10, 10, 10.5: mean 10.1667, sd 0.288675, t(2) at 97.5 % 4.302653, half width 0.717109.
    interval = against["torchvision-lraspp"].difference
    assert (interval.estimate, interval.low, interval.high) == pytest.approx((10.166667, 9.449558, 10.883776), abs=1e-5)
    assert against["torchvision-lraspp"].verdict.word == "better"
    assert against["mmbconv"].verdict.word == "worse"


def test_the_report_names_the_verdicts_of_ours():
    rows = {row[0]: row for row in accuracy_report.rows(made({"mmbconv": [60, 61, 62], "mbconv": [50, 51, 52.5]}))}
    assert rows["ours: mmbconv"][7] == "ours is worse"
    assert rows["ours: mmbconv"][1] == "0.01*"  # the highest that was tried
    assert list(rows) == ["ours: mmbconv", "ours: mbconv"]


def test_one_seed_has_no_interval():
    result = made({"mmbconv": [60], "mbconv": [50], "torchvision-lraspp": [40]})
    rows = {row[0]: row for row in accuracy_report.rows(result)}
    assert rows["LRASPP, MobileNetV3-Large (torchvision)"][5:] == ("40.00", "+10.00", "no verdict")
    broken = copy.deepcopy(result)
    broken["runs"]["mbconv"][0]["points"][0]["miou"] = 0.0
    assert accuracy_report.curve(broken, "mbconv")[0][1].estimate == 0


def test_the_command_goes_to_its_report(prepared, small):
    options = {"seconds": 0.1, "trial-seconds": 0.1, "learning-rates": "0.01", "seeds": 2, "points": 1, "out": "there"}
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    ended = run_inside("bench", "accuracy", "--preset", "demo", "--variants", "mbconv", "--peers", "small", *arguments)
    assert ended.code == 0, ended.err
    result = json.loads((prepared / "there" / "accuracy-0.1s.json").read_text())
    text = (prepared / "there" / "accuracy-0.1s.md").read_text()
    assert text == accuracy_report.markdown(result, picture="accuracy-0.1s.png")
    assert (prepared / "there" / "accuracy-0.1s.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--learning-rates", "0.1,fast"], "--learning-rates: '0.1,fast' is no list of numbers above 0"),
        (["--learning-rates", "-1"], "--learning-rates: '-1' is no list of numbers above 0"),
        (["--variants", ","], "--variants: is empty"),
        (["--variants", "nobody"], "nobody"),
        (["--peers", "nobody"], "--peers: unknown name 'nobody'"),
        (["--hold-out", "a", "--budgets", "b.json"], "--hold-out: is for trials, of which --budgets has none"),
        (["--budgets", "none.json", "--peers", "none"], "none.json: missing"),
        (["--hold-out", "nothing", "--peers", "none"], "--hold-out: holds out 0 of 5 training images"),
    ],
)
def test_wrong_options_are_said_in_one_line(prepared, arguments, said):
    ended = run_inside("bench", "accuracy", "--preset", "demo", *arguments)
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert said in ended.err


@pytest.mark.parametrize(
    ("section", "changes", "said"),
    [
        ("train", {"ema": {"decay": 0.9}}, "train.ema: of preset demo is not for every network here"),
        ("train", {"deep_supervision": 0.4}, "train.deep_supervision: of preset demo"),
        ("train", {"stochastic_depth": 0.1}, "train.stochastic_depth: of preset demo"),
        ("train", {"norm_batch": 1}, "train.norm_batch: of preset demo"),
        ("runtime", {"workers": 1}, "runtime.workers: of preset demo"),
        (
            "variants",
            {"mmbconv": {"block": "mmbconv", "train": {"steps": 7}}},
            "--variants: the variants are trained by",
        ),
    ],
)
def test_a_recipe_that_is_not_for_all_is_refused(prepared, change_params, section, changes, said):
    change_params(lambda content: content[section].update(changes))
    ended = run_inside("bench", "accuracy", "--preset", "demo", "--variants", "mbconv,mmbconv", "--peers", "none")
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert said in ended.err


def test_a_package_that_is_missing_is_said_before_anything_is_trained(prepared, monkeypatch):
    missing = peers.Peer("Missing", "no-such-package", "dense", Small)
    monkeypatch.setitem(peers.PEERS, "missing", missing)
    monkeypatch.setattr(accuracy, "one_run", None)
    ended = run_inside("bench", "accuracy", "--preset", "demo", "--variants", "mbconv", "--peers", "missing")
    assert ended.code == 2
    assert "missing: needs the package no-such-package" in ended.err


def test_data_that_are_not_prepared_are_said(project):
    ended = run_inside("bench", "accuracy", "--preset", "demo")
    assert ended.code == 2
    assert "manifest.json" in ended.err
