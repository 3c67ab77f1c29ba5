from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import trees
import yaml

from mmseg_cli import paths as places
from mmseg_cli import provenance
from mmseg_cli.ablation import costs, report, verify
from mmseg_cli.errors import MmsegError
from mmseg_cli.evaluation import evidence as counted
from mmseg_cli.files import sha256, write_json
from mmseg_cli.params import load, parse_yaml, read_yaml
from tests import evidence as made
from tests.conftest import REPOSITORY, edit, make_project


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A project with a report, and a dvc.lock as `dvc repro` would have left it."""
    root = make_project(tmp_path_factory.mktemp("verify") / "project")
    edit(
        root / "params.yaml",
        lambda p: p["ablate"].update(variants=["residual", "mbconv", "mmbconv"], seeds=[0, 1, 2]),
    )
    found = places.find(preset="demo", root=root)
    params = load(found.params)
    made.make(found, params, skill={"mmbconv": 0.85})
    report.build(found, params)
    (found.reports / "data-cityscapes.md").write_text("# a data card\n\n| split | images |\n| train | 48 |\n")
    lock(found)
    return root


@pytest.fixture
def paths(built, tmp_path, monkeypatch):
    """A copy of it, which is the current folder."""
    root = shutil.copytree(built, tmp_path / "project")
    monkeypatch.chdir(root)
    return places.find(preset="demo")


def lock(paths) -> None:
    """dvc.lock with the hashes of what is there; of stages as in dvc.yaml."""

    def outs(*files: Path) -> list[dict[str, str]]:
        return [
            {"path": str(file.relative_to(paths.root)), "hash": "md5", "md5": verify.dvc_hash(file)} for file in files
        ]

    runs = {path.name: path for path in sorted(paths.evidence.iterdir()) if path.is_dir()}
    stages = {f"evaluate@{name}": {"outs": outs(*sorted(folder.iterdir()))} for name, folder in runs.items()}
    stages["cost"] = {"outs": outs(paths.evidence / "cost.json")}
    stages["prepare@cityscapes"] = {"outs": outs(paths.reports / "data-cityscapes.md")}
    page = sorted(path for path in paths.reports.iterdir() if path.name not in ("evidence", "data-cityscapes.md"))
    stages["ablate"] = {"outs": outs(*page)}
    (paths.root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


def test_what_was_just_written_is_as_it_should_be(paths, mmseg):
    found = verify.level_0(paths)
    assert (found.faults, found.notes) == ([], [])
    assert found.count > 20
    assert found.done == f"{found.count} files are as they should be"
    done = mmseg("verify")
    assert (done.code, done.err) == (0, "")
    assert "reports/demo/ablation.md" in done.out


def test_dvc_s_own_hashes(paths, tmp_path):
    """Of a file, and of a folder, as a real DVC computes them."""
    folder = tmp_path / "other"
    (folder / "out" / "b").mkdir(parents=True)
    for name in ("out/a.txt", "out/b/c.txt", "out/B.txt", "file.txt"):
        (folder / name).write_text(name)
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "add", "-q", "out", "file.txt"]):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    for name in ("out", "file.txt"):
        said = yaml.safe_load((folder / f"{name}.dvc").read_text())["outs"][0]["md5"]
        assert verify.dvc_hash(folder / name) == said


@pytest.mark.parametrize("seed", range(50))
def test_any_digit_that_is_changed_anywhere_is_caught(paths, seed):
    """50 random edits: a digit of a table, csv, LaTeX, certificate, metrics file, cost or data card."""
    rng = random.Random(seed)
    files = [path for path in paths.reports.rglob("*") if path.suffix in (".md", ".csv", ".tex", ".json")]
    file = rng.choice(sorted(files))
    text = file.read_text()
    place = rng.choice([match.start() for match in re.finditer(r"\d", text)])
    other = rng.choice([digit for digit in "0123456789" if digit != text[place]])
    file.write_text(text[:place] + other + text[place + 1 :])
    faults = verify.level_0(paths).faults
    assert faults, f"{file}: {text[max(0, place - 30) : place + 30]!r} with {other}"
    assert all("\n" not in fault for fault in faults)


def test_a_fault_says_where_it_is(paths, mmseg):
    page = paths.reports / "ablation.md"
    text = page.read_text()
    shown = re.search(r"\d+\.\d\d \[", text).group()
    page.write_text(text.replace(shown, "99.99 [", 1))
    done = mmseg("verify", "reports/demo/ablation.md")
    assert done.code == 2
    assert "fault: reports/demo/ablation.md: line 5 holds" in done.err
    assert "99.99" in done.err
    assert done.one_error().startswith("mmseg: error: mmseg verify: 1 fault in 1 report: ")


@pytest.mark.parametrize(
    "harm",
    [
        lambda paths: (paths.reports / "figures" / "pareto.png").write_bytes(b"another"),
        lambda paths: (paths.reports / "figures" / "pareto.png").unlink(),
        lambda paths: (paths.reports / "figures" / "more.png").write_bytes(b"more"),
        lambda paths: (paths.reports / "certificates" / "other.json").write_text("{}"),
        lambda paths: (paths.reports / "certificates" / "mbconv.json").unlink(),
        lambda paths: (paths.reports / "ablation.csv").unlink(),
        lambda paths: (paths.reports / "data-cityscapes.md").unlink(),
        lambda paths: (paths.evidence / "mbconv-s1" / "metrics.json").unlink(),
    ],
)
def test_what_is_missing_or_too_much_is_a_fault(paths, harm):
    harm(paths)
    assert verify.level_0(paths).faults


def test_a_forger_who_writes_the_tables_anew_is_caught_by_the_lock(paths):
    cost = json.loads((paths.evidence / "cost.json").read_text())
    cost["variants"]["mmbconv"]["step_seconds"] = [0.05, 0.05, 0.05]
    (paths.evidence / "cost.json").write_text(json.dumps(cost))
    report.build(paths, load(paths.params))
    faults = verify.level_0(paths).faults
    assert [fault for fault in faults if "cost.json: is not what its stage wrote" in fault]


@pytest.fixture
def another_scipy(monkeypatch):
    """Student's t with other last digits."""
    import scipy.special

    ours = scipy.special.stdtrit
    monkeypatch.setattr(scipy.special, "stdtrit", lambda *args: ours(*args) * (1 + 1e-12))


def test_last_digits_of_another_scipy_are_no_fault(paths, another_scipy):
    found = verify.level_0(paths)
    assert found.faults == []
    assert found.notes == [verify.OTHER_DIGITS]


@pytest.mark.parametrize("seed", range(10))
def test_with_another_scipy_a_changed_digit_is_caught_as_well(paths, another_scipy, seed):
    """Even the last one of a number that scipy's last digits are in."""
    rng = random.Random(seed)
    file = rng.choice([paths.reports / "details.csv", *sorted((paths.reports / "certificates").iterdir())])
    text = file.read_text()
    place = rng.choice([match.end() - 1 for match in re.finditer(r"\d\.\d{10,}", text)])
    other = rng.choice([digit for digit in "0123456789" if digit != text[place]])
    file.write_text(text[:place] + other + text[place + 1 :])
    assert [fault for fault in verify.level_0(paths).faults if file.name in fault]


def test_with_another_scipy_and_no_lock_last_digits_are_a_fault(paths, another_scipy):
    (paths.root / "dvc.lock").unlink()
    faults = verify.level_0(paths).faults
    assert [fault for fault in faults if "details.csv: line" in fault]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a,1.00000000001\n", "a,1.0\n", True),
        ("a,1.0000001\n", "a,1.0\n", False),
        ("a,-1.5e-05,2\n", "a,-1.500000000001e-05,2\n", True),
        ("a,1e-17\n", "a,-0.0\n", True),  # a limit near 0
        ("a,10000000000001\n", "a,10000000000000\n", False),  # an integer has no last digits
        ("a,1.5\n", "b,1.5\n", False),
        ("a,1.5,\n", "a,1.5,2.5\n", False),
        ("1.5x\n", "x1.5\n", False),
    ],
)
def test_what_last_digits_are(one, other, same):
    assert verify.but_for_last_digits(one, other) == same


def test_costs_that_do_not_fit_together_are_one_fault(paths, monkeypatch):
    cost = json.loads((paths.evidence / "cost.json").read_text())
    cost["variants"]["mbconv"]["step_seconds"].pop()
    (paths.evidence / "cost.json").write_text(json.dumps(cost))
    for _ in ("whoever sees it first", "the second guard"):
        (fault,) = verify.level_0(paths).faults
        assert "reports/demo/evidence" in fault
        assert "\n" not in fault
        monkeypatch.setattr(verify.grid, "_cost", lambda file, **_: json.loads(file.read_text()))
    assert "reports/demo/evidence: does not hold what it should (ValueError: " in fault


def test_without_a_lock_this_is_said(paths, mmseg):
    (paths.root / "dvc.lock").unlink()
    done = mmseg("verify")
    assert done.code == 0
    assert "dvc.lock is missing" in done.err


def test_runs_and_stages_outside_the_grid_are_not_looked_at(paths, change_params):
    change_params(lambda p: p["ablate"].update(variants=["residual", "mbconv"]))
    report.build(paths, load(paths.params))
    for file in (paths.evidence / "mmbconv-s0").iterdir():
        file.unlink()
    lock_file = yaml.safe_load((paths.root / "dvc.lock").read_text())
    (paths.root / "dvc.lock").write_text(yaml.safe_dump(lock_file))
    assert not [fault for fault in verify.level_0(paths).faults if "mmbconv" in fault]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["reports/demo/nothing.md"], "is no report of this project"),
        (["params.yaml"], "is no report of this project"),
        (["--only", "mbconv-s0"], "is for levels 1 and 2"),
        (["--level", "1", "--only", "mbconv-s9"], "is no run of demo"),
    ],
)
def test_wrong_questions(paths, mmseg, arguments, said):
    done = mmseg("verify", *arguments)
    assert done.code == 2
    assert said in done.one_error()


def test_a_report_without_its_page_is_a_fault(paths, mmseg):
    (paths.reports / "ablation.md").unlink()
    assert verify.pages(paths.root) == [paths.reports / "ablation.md"]
    for _ in ("without its page", "without anything"):
        done = mmseg("verify")
        assert done.code == 2
        assert "fault: reports/demo/" in done.err
        assert done.one_error().startswith("mmseg: error: mmseg verify: 1 fault in 1 report")
        shutil.rmtree(paths.reports, ignore_errors=True)  # dvc.lock still says that it is to be there


def test_a_report_s_folder_is_the_report(paths, mmseg):
    assert mmseg("verify", "reports/demo").code == 0


def test_what_dvc_lock_does_not_know_is_said(paths, mmseg):
    file = paths.root / "dvc.lock"
    content = yaml.safe_load(file.read_text())
    del content["stages"]["cost"]
    content["stages"]["ablate"]["outs"] = [
        out for out in content["stages"]["ablate"]["outs"] if not out["path"].endswith("figures")
    ]
    file.write_text(yaml.safe_dump(content))
    (paths.reports / "notes.md").write_text("mine")
    done = mmseg("verify")
    assert done.code == 0, done.err
    for name in ("evidence/cost.json", "figures", "notes.md"):
        assert f"reports/demo/{name}: dvc.lock does not know it, so it was held against nothing" in done.err


def test_a_lock_of_other_files_is_a_fault(paths, mmseg):
    content = yaml.safe_load((paths.root / "dvc.lock").read_text())
    content["stages"] = {"ablate": content["stages"]["ablate"]}
    (paths.root / "dvc.lock").write_text(yaml.safe_dump(content))
    done = mmseg("verify")
    assert done.code == 2
    assert "fault: dvc.lock: knows no file of this evidence" in done.err


@pytest.mark.parametrize("content", ["stages: {cost: 3}", "stages: {cost: {outs: [{hash: md5}]}}", "[]", "stages: 3"])
def test_a_lock_of_another_form_is_named(paths, mmseg, content):
    (paths.root / "dvc.lock").write_text(content)
    done = mmseg("verify")
    assert done.code == 2
    assert "fault: dvc.lock: does not hold what it should" in done.err


@pytest.fixture
def real(trained, change_params):
    """A report of one run that was really trained and evaluated."""
    change_params(lambda p: p["ablate"].update(variants=["mmbconv"], seeds=[0]))
    found = places.find(preset="demo")
    params = load(found.params)
    made.write_cost(found, params)
    cost = json.loads((found.evidence / "cost.json").read_text())
    network = {"mmbconv": params.network_of("mmbconv")}
    whole, _ = costs.counted(network, **{key: cost[key] for key in ("classes", "height", "width")})["mmbconv"]
    cost["variants"]["mmbconv"] |= {"parameters": whole.parameters, "macs": whole.macs}
    write_json(found.evidence / "cost.json", cost)
    report.build(found, params)
    return found


def test_levels_1_and_2_make_the_same_again(real, mmseg):
    done = mmseg("verify", "--level", 1)
    assert done.code == 0, done.err
    assert "mmbconv-s0: the same counts, to the bit" in done.out
    assert "files are as they should be; 1 run was evaluated again" in done.out
    assert "dvc.lock is missing" in done.err
    before = trees.contents(real.reports)
    done = mmseg("verify", "reports/demo/ablation.md", "--level", 2, "--only", "mmbconv-s0")
    assert done.code == 0, done.err
    assert "mmbconv-s0: the same weights and counts, to the bit" in done.out
    assert "files are as they should be; 1 run was trained again" in done.out
    assert done.out.count("reports/demo/ablation.md") == 1
    assert trees.contents(real.reports) == before


@pytest.fixture
def sittings(monkeypatch):
    """The sittings of the training behind each evaluation of `mmseg verify`."""
    found = []
    run = verify._run

    def spy(arguments, project):
        if arguments[0] == "evaluate":
            file = project / "runs" / "demo" / "train" / "mmbconv-s0" / "provenance.json"
            found.append(list(provenance.sittings(json.loads(file.read_text()))))
            if len(found) == 1:
                raise MmsegError("mmseg evaluate", "is stopped", "go on")
        run(arguments, project)

    monkeypatch.setattr(verify, "_run", spy)
    return found


@pytest.mark.slow
def test_level_2_goes_on_where_it_was_stopped_and_trains_every_time(real, mmseg, sittings):
    assert mmseg("verify", "--level", 2).code == 2  # stopped between training and evaluation
    for _ in range(2):
        done = mmseg("verify", "--level", 2)
        assert done.code == 0, done.err
    stopped, resumed, again = sittings
    assert stopped == resumed
    reported = json.loads((real.evidence / "mmbconv-s0" / "certificate.json").read_text())["training"]
    for other in (resumed, list(provenance.sittings(reported))):
        assert [one["stage"] for one in again] == [one["stage"] for one in other]
        assert all(one["from_step"] == 0 and one not in other for one in again)
    left = [path.name for path in (real.root / ".work" / "verify").rglob("*mmbconv-s0*") if path.suffix != ".lock"]
    assert left == []


@pytest.mark.slow
def test_a_training_that_level_2_has_not_done_is_refused(real, mmseg):
    project = real.root / ".work" / "verify" / "level-2"
    shutil.copytree(real.root / "runs", project / "runs")
    done = mmseg("verify", "--level", 2)
    assert done.code == 2
    assert "was not trained again: a finished training was taken over" in done.one_error()


@pytest.mark.slow
def test_a_forged_digest_of_weights_is_told_by_level_2(real, mmseg):
    """Of weights that never were: all other digests follow, and the counts are the true ones."""
    folder = real.evidence / "mmbconv-s0"
    for name in ("metrics.json", "certificate.json"):
        content = json.loads((folder / name).read_text()) | {"weights_sha256": "0" * 64}
        if name == "certificate.json":
            content["metrics_sha256"] = sha256(folder / "metrics.json")
        (folder / name).write_text(json.dumps(content))
    report.build(real, load(real.params))
    assert verify.level_0(real).faults == []
    assert mmseg("verify", "--level", 1).code == 2
    done = mmseg("verify", "--level", 2)
    assert done.code == 2
    assert "fault: mmbconv-s0: other weights on the same kind of machine" in done.err
    assert "cannot be made again" in done.one_error()


@pytest.mark.slow
def test_verifying_tracks_nothing_and_reads_the_same_parameters(real, mmseg, change_params):
    def change(params):
        params["tracking"].update(enabled=True, uri="http://127.0.0.1:9", experiment="no")
        params["train"]["learning_rate"] = 1e-05

    change_params(change)
    read = parse_yaml(verify.without_tracking(real.params))
    assert read.pop("tracking") == {"enabled": False, "uri": "http://127.0.0.1:9", "experiment": "no"}
    before = read_yaml(real.params)
    assert before.pop("tracking")["enabled"]
    assert read == before
    assert isinstance(read["train"]["learning_rate"], float)
    change_params(lambda p: p["train"].update(learning_rate=0.01))
    done = mmseg("verify", "--level", 1)
    assert done.code == 0, done.err
    assert load(real.root / ".work" / "verify" / "level-1" / "params.yaml").tracking.enabled is False


@pytest.mark.parametrize("file", sorted(REPOSITORY.glob("pipelines/*/params.yaml")), ids=lambda file: file.parent.name)
def test_every_preset_is_read_back_as_it_was(file):
    read = parse_yaml(verify.without_tracking(file))
    assert read.pop("tracking")["enabled"] is False
    before = read_yaml(file)
    del before["tracking"]
    assert read == before


def training(**changes):
    """What is kept of a training, in one sitting."""
    environment = {"python": "3.11", "torch": "2", "numpy": "2", "processor": "P", "cores": 2}
    sitting = {"began": "now", "environment": environment, "device": "cpu", "accelerator": None, "processes": 1}
    sitting |= {"seconds": 1.0}
    environment |= {key: changes.pop(key) for key in list(changes) if key in environment}
    return {"stage": "train", "sessions": [{**sitting, **changes}], "before": None}


GPU = {"device": "cuda:0", "accelerator": "H100"}


@pytest.mark.parametrize(
    ("reported", "now", "deterministic", "fault", "said"),
    [
        (training(), training(), False, True, "other weights on the same kind of machine (the report's are of P)"),
        (training(), training(processor="Q"), False, False, "inside the prediction interval"),
        (training(), training(cores=4), False, False, "inside the prediction interval"),
        (training(), training(torch="3"), False, False, "inside the prediction interval"),
        (training(), training(threads=4), False, False, "inside the prediction interval"),
        (training(threads=2), training(threads=2), False, True, "other weights on the same kind of machine"),
        (training(), training(**GPU), True, False, "inside the prediction interval"),
        (training(**GPU), training(**{**GPU, "device": "cuda:1"}), True, True, "(the report's are of H100)"),
        (training(**GPU), training(**GPU), False, False, "inside the prediction interval"),  # bits differ every time
        (None, training(), False, False, "where the report's were trained is not known"),
    ],
)
def test_other_weights_are_a_fault_on_the_same_kind_of_machine(
    project, tmp_path, reported, now, deterministic, fault, said
):
    edit(project / "params.yaml", lambda p: p["ablate"].update(variants=["mbconv"], seeds=[0, 1, 2]))
    found = places.find(preset="demo")
    params = load(found.params)
    for seed in range(3):
        counts = made.confusions(images=6, skill=0.8, noise=0.01, seed=seed)
        made.write_run(found, params, variant="mbconv", seed=seed, counts=counts, training=reported)
    made.write_cost(found, params)
    new = places.Paths(tmp_path / "new", "demo")
    shutil.copytree(found.evidence, new.evidence)
    metrics = new.evidence / "mbconv-s1" / "metrics.json"
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"weights_sha256": "1" * 64}))
    write_json(new.run("train", "mbconv-s1") / "provenance.json", now)
    evidence = report.collect(found, params)
    outcome = verify.compared(
        evidence, new, old=found, variant="mbconv", seed=1, trained=True, deterministic=deterministic
    )
    assert outcome.fault == fault
    assert outcome.judged
    assert said in outcome.line
    edit(project / "params.yaml", lambda p: p["ablate"].update(seeds=[0, 1]))
    evidence = report.collect(found, load(found.params))
    outcome = verify.compared(
        evidence, new, old=found, variant="mbconv", seed=1, trained=True, deterministic=deterministic
    )
    assert (outcome.fault, outcome.judged) == (fault, fault)  # so few seeds give no interval to judge others by


def test_other_weights_than_the_report_s_are_told(real, mmseg, change_params):
    """Evidence of one training beside the weights of another."""
    weights = real.run("train", "mmbconv-s0") / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-4] + b"\0\0\0\0")
    done = mmseg("verify", "--level", 1)
    assert done.code == 2
    assert "are other weights than the report's" in done.one_error()
    weights.unlink()
    assert "missing, as weights are not in git: run `dvc checkout`" in mmseg("verify", "--level", 1).one_error()


def fewer(found, figures):
    for counts in found.counts.values():
        counts.values[counts.values > 100] -= 50


def exchanged(found, figures):
    """Two classes change places in every count: mIoU and pixel accuracy stay as they are."""
    for kind, counts in found.counts.items():
        dense = counts.dense()
        axes = (-1,) if kind in ("boundaries", "sizes") else (-2, -1)
        for axis in axes:
            other = [1, 0, *range(2, dense.shape[axis])]
            dense = np.take(dense, other, axis=axis)
        found.counts[kind] = made.collected(dense)


def blurred(found, figures):
    """One kind of count alone, which is in a table of its own."""
    counts = found.counts["boundaries"]
    counts.values[counts.values > 3] -= 1


@pytest.mark.parametrize(
    ("forged", "said"),
    [
        (fewer, "of what was counted as"),
        pytest.param(exchanged, "of what was counted as", marks=pytest.mark.slow),
        pytest.param(blurred, "counted as boundaries moved", marks=pytest.mark.slow),
    ],
)
def test_counts_that_the_weights_do_not_give_are_a_fault(real, mmseg, forged, said):
    """The forger has changed counts, figures, certificate and tables alike; the weights know better."""
    folder = real.evidence / "mmbconv-s0"
    found = counted.load(folder / "confusion.npz")
    figures = json.loads((folder / "metrics.json").read_text())
    forged(found, figures)
    params = load(real.params)
    made.forge(real, params, found, figures, variant="mmbconv", seed=0)
    report.build(real, params)
    assert verify.level_0(real).faults == []
    done = mmseg("verify", "--level", 1)
    assert done.code == 2
    assert "fault: mmbconv-s0: " in done.err
    assert "`mmseg evaluate` counts anew" in done.one_error()
    assert said in done.err


def test_what_a_training_did_not_say_is_a_fault(real, mmseg):
    """Top-1 of a rung is in a table, and no count gives it: the run's own record does."""
    file = real.evidence / "mmbconv-s0" / "metrics.json"
    figures = json.loads(file.read_text())
    figures["run"]["rungs"][0]["figures"]["top1"] = 0.9
    figures["run"]["rungs"][2]["data"] = {"1": "00"}
    made.rewrite(file, figures)
    report.build(real, load(real.params))
    assert verify.level_0(real).faults == []
    done = mmseg("verify", "--level", 1)
    assert done.code == 2
    assert "another pretrain_imagenet.figures, train.data of their training than the report says" in done.err


@pytest.mark.slow
def test_counted_costs_that_the_network_does_not_have_are_a_fault(real, mmseg):
    file = real.evidence / "cost.json"
    cost = json.loads(file.read_text())
    cost["variants"]["mmbconv"]["parameters"] += 1
    file.write_text(json.dumps(cost))
    report.build(real, load(real.params))
    assert verify.level_0(real).faults == []
    done = mmseg("verify", "--level", 1)
    assert done.code == 2
    assert "fault: reports/demo/evidence/cost.json: says parameters " in done.err


def test_a_category_s_figure_is_computed_again(real):
    """It is in no table, but in metrics.json."""
    file = real.evidence / "mmbconv-s0" / "metrics.json"
    figures = json.loads(file.read_text())
    figures["category_iou"]["flat"] += 1e-6
    made.rewrite(file, figures)
    (fault,) = verify.level_0(real).faults
    assert "says category_iou of flat" in fault


def test_hashes_are_of_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"x\r\ny")
    assert verify.dvc_hash(tmp_path / "a") == hashlib.md5(b"x\r\ny").hexdigest()
