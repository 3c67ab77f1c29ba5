from __future__ import annotations

import functools
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from mmseg_cli.ablation import axes, claims, costs, estimates, grid, rows, statistics
from mmseg_cli.ablation.grid import Evidence
from mmseg_cli.models.cost import Cost
from mmseg_cli.params import Params, load, read_yaml
from tests.conftest import REPOSITORY

CITIES = [f"{city}_{image:06d}_000019" for city, count in claims.VAL_CITIES.items() for image in range(count)]
BLOCKS = {name: {"block": name} for name in ("residual", "mbconv", "mmbconv")}
STARTS = {
    "scratch": {"block": "mmbconv", "start": "scratch"},
    "imagenet": {"block": "mmbconv", "start": "imagenet"},
    "whole": {"block": "mmbconv"},
}
PYRAMID = {"uniform": {"block": "mmbconv"}, "pyramid": {"block": "mmbconv", "layout": "pyramid"}}


# ------------------------------------------------------------------------------------------------ made evidence


def preset(variants, *, seeds=3, network=None) -> Params:
    """The demo's parameters with other rows."""
    content = read_yaml(REPOSITORY / "params.yaml")
    content["network"].update({"width": 8, "levels": 3} | (network or {}))
    content["variants"] = variants
    content["ablate"].update(variants=list(variants), seeds=list(range(seeds)), estimand="this-set")
    return Params.model_validate(content)


def figure(name, value, blocks) -> estimates.Estimate:
    """A figure of one run, in percent: its mean and one class, which is the mean."""
    whole = np.array([value, value]) / 100
    without = whole + np.linspace(-1e-3, 1e-3, blocks)[:, None] * [1, 1]
    sums, labels = np.zeros((blocks, 2, 1), dtype=int), np.ones(1, dtype=int)
    return estimates.Estimate(estimates.iou(name, "confusion"), sums, labels, whole, without)


@functools.cache
def counted(network: tuple[tuple[str, object], ...]) -> Cost:
    """What a network has, built once."""
    return costs.counted({"it": dict(network)}, classes=11, height=64, width=64)["it"][0]


def of_preset(
    params: Params,
    means: dict[str, list[float]],
    *,
    augmented: dict[str, list[float]] | None = None,
    cityscapes: bool = False,
    dataset: str | None = None,
    accelerator: str | None = None,
    steps: dict[str, list[float]] | None = None,
    inference: dict[str, list[float]] | None = None,
    peaks: dict[str, int] | None = None,
    name: str = "made",
) -> Evidence:
    """Evidence in which mIoU (in percent) of every seed is as given, and so are times; parameters are counted."""
    wanted = grid.wanted(params)
    names = CITIES if cityscapes else [f"seq{image % 4}_{image}" for image in range(20)]
    blocks = len({one.partition("_")[0] for one in names})
    first = {
        "dataset": dataset or ("cityscapes" if cityscapes else "camvid"),
        "split": "val",
        "label_space": "cityscapes-19" if cityscapes else "camvid-11",
    }
    grid_ = [(variant, seed) for variant in wanted for seed in params.ablate.seeds]
    networks = {variant: found.network for variant, found in wanted.items()}
    count = {variant: counted(tuple(network.items())) for variant, network in networks.items()}
    seconds = {variant: [1.0 + 0.01 * turn for turn in range(8)] for variant in wanted}
    cost = {
        "environment": {"processor": "a processor", "threads": 2, "accelerator": accelerator, "torch": "2.x"},
        "batch": 4,
        "height": 64,
        "width": 64,
        "variants": {
            variant: {
                "network": network,
                "parameters": count[variant].parameters,
                "macs": count[variant].macs,
                "peak_bytes": (peaks or {}).get(variant, 2**20),
                "step_seconds": (steps or seconds).get(variant, seconds[variant]),
                "inference_seconds": (inference or seconds).get(variant, seconds[variant]),
                "step_joules": None,
            }
            for variant, network in networks.items()
        },
    }

    def run(variant: str, seed: int) -> estimates.Run:
        found = {"iou": figure("iou", means[variant][seed], blocks)}
        if augmented is not None:
            found["iou_augmented"] = figure("iou_augmented", augmented[variant][seed], blocks)
        return estimates.Run(["road"], found)

    return Evidence(
        preset=name,
        variants=list(wanted),
        seeds=params.ablate.seeds,
        wanted=wanted,
        estimand=params.ablate.estimand,
        image_blocks="prefix",
        names=names,
        runs=dict.fromkeys(grid_, first),
        figures={one: run(*one) for one in grid_},
        files={},
        certificates={},
        cost=cost,
    )


def evidence_of(variants, means, *, seeds=3, network=None, **rest) -> Evidence:
    return of_preset(preset(variants, seeds=seeds, network=network), means, **rest)


def of(evidence, title) -> claims.Claim:
    """One claim of a sheet."""
    (found,) = [one for one in claims.claims(evidence, rows.rows(evidence)) if one.title == title]
    return found


def statuses(evidence) -> dict[str, str]:
    return {one.title: one.status for one in claims.claims(evidence, rows.rows(evidence))}


FAR_APART = {"residual": [70.0, 70.2, 69.9], "mbconv": [70.1, 70.1, 70.0], "mmbconv": [73.0, 73.2, 72.8]}


# ------------------------------------------------------------------------------------------------ what is better


def test_on_cityscapes_val_a_verdict_decides():
    found = statuses(evidence_of(BLOCKS, FAR_APART, cityscapes=True))
    assert found["MMBConv against MBConv"] == claims.REPRODUCED
    assert found["MMBConv against residual blocks"] == claims.REPRODUCED
    assert found["MBConv against residual blocks"] == claims.REPRODUCED
    assert found["Uniform against pyramid layout"] == claims.NOT_ATTEMPTED


def test_the_opposite_is_contradicted():
    turned = {"residual": FAR_APART["mmbconv"], "mbconv": FAR_APART["mbconv"], "mmbconv": FAR_APART["residual"]}
    found = statuses(evidence_of(BLOCKS, turned, cityscapes=True))
    assert found["MMBConv against residual blocks"] == claims.CONTRADICTED
    assert found["MBConv against residual blocks"] == claims.CONTRADICTED
    assert found["MMBConv against MBConv"] == claims.NO_EVIDENCE


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_decide_nothing(seeds):
    found = statuses(evidence_of(BLOCKS, FAR_APART, seeds=seeds, cityscapes=True))
    assert found["MMBConv against MBConv"] == claims.NO_EVIDENCE
    assert found["MBConv against residual blocks"] == claims.NO_EVIDENCE
    claim = of(evidence_of(BLOCKS, FAR_APART, seeds=seeds, cityscapes=True), "MMBConv against MBConv")
    assert "no verdict" in claim.why
    assert "seed" in claim.why


def test_elsewhere_there_is_a_direction_and_no_status():
    evidence = evidence_of(BLOCKS, FAR_APART)
    found = statuses(evidence)
    assert {found[question.title] for question in claims.QUESTIONS} == {claims.NOT_ATTEMPTED}
    claim = of(evidence, "MMBConv against MBConv")
    assert "this is camvid (20 val images), not Cityscapes val; direction on camvid: **better**" in claim.why
    assert claim.direction == "better"
    assert claim.ours.startswith("+2.93 [")
    assert claim.ours.endswith("] on camvid")
    assert "GPU hours" in claim.attempt


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "generated cityscapes"},
        {"label_space": "vistas-65"},
        {"split": "train"},
    ],
)
def test_only_the_real_val_split_is_the_claimed_data(change):
    evidence = evidence_of(BLOCKS, FAR_APART, cityscapes=True)
    assert claims.is_cityscapes_val(evidence)
    assert not claims.is_cityscapes_val(replace(evidence, names=evidence.names[:-1]))
    changed = replace(evidence, runs={run: {**evidence.first, **change} for run in evidence.runs})
    assert not claims.is_cityscapes_val(changed)
    assert statuses(changed)["MMBConv against MBConv"] == claims.NOT_ATTEMPTED


MARGINAL = {  # differences of MBConv to residual blocks by seed, in points
    (0.1, 0.3, 0.2): claims.REPRODUCED,
    (-0.1, 0.1, 0.05): claims.REPRODUCED,  # as good as equal
    (-0.4, -0.3, -0.35): claims.CONTRADICTED,  # worse, though by little
    (2.0, 2.2, 2.1): claims.CONTRADICTED,  # better by much
    (-1.0, 1.5, 0.4): claims.NO_EVIDENCE,
    (0.9, 1.1, 1.0): claims.NO_EVIDENCE,  # across the margin
}


@pytest.mark.parametrize(("differences", "status"), MARGINAL.items(), ids=str)
def test_marginally_better_is_an_interval_within_a_margin(differences, status):
    means = FAR_APART | {"mbconv": [base + d for base, d in zip(FAR_APART["residual"], differences, strict=True)]}
    evidence = evidence_of(BLOCKS, means, cityscapes=True)
    assert statuses(evidence)["MBConv against residual blocks"] == status


def test_holm_is_over_all_comparisons_of_the_sheet():
    evidence = evidence_of(BLOCKS, FAR_APART, cityscapes=True)
    found = claims.comparisons(evidence)
    assert [one.title for one in found] == [question.title for question in claims.QUESTIONS[:3]]
    p = sorted(one.difference.p for one in found)
    adjusted = sorted(one.verdict.adjusted_p for one in found)
    assert adjusted == pytest.approx([3 * p[0], max(3 * p[0], 2 * p[1]), max(3 * p[0], 2 * p[1], p[2])])


# ------------------------------------------------------------------------------------------------ pairs


def pairs(evidence, title) -> list[tuple[str, str]]:
    return [(one.better, one.other) for one in claims.comparisons(evidence) if one.title == title]


def flat(variants) -> dict[str, list[float]]:
    """Some means for every row, each a point better than the one before, with some noise."""
    return {name: [60.0 + place, 60.3 + place, 60.1 + 1.02 * place] for place, name in enumerate(variants)}


def test_rows_are_found_by_what_they_are():
    variants = {"a": {"block": "mmbconv"}, "mmbconv": {"block": "residual"}, "mbconv": {"block": "mbconv", "width": 12}}
    evidence = evidence_of(variants, flat(variants))
    assert pairs(evidence, "MMBConv against residual blocks") == [("a", "mmbconv")]
    assert pairs(evidence, "MMBConv against MBConv") == []  # of another width
    claim = of(evidence, "MMBConv against MBConv")
    assert (claim.ours, claim.why) == ("–", "no two rows of this grid differ in that alone")


def test_all_pairs_are_compared_and_the_plainest_decides():
    variants = {
        "far": {"block": "mmbconv", "se_ratio": 0},
        "far-mbconv": {"block": "mbconv", "se_ratio": 0},
        **BLOCKS,
        "late": {"block": "mbconv", "train": {"learning_rate": 0.5}},
    }
    evidence = evidence_of(variants, flat(variants))
    assert pairs(evidence, "MMBConv against MBConv") == [("mmbconv", "mbconv"), ("far", "far-mbconv")]


def test_starts_differ_in_one_rung_each():
    evidence = evidence_of(STARTS, flat(STARTS), cityscapes=True)
    assert pairs(evidence, "Pretraining on ImageNet") == [("imagenet", "scratch")]
    assert pairs(evidence, "Pretraining on Mapillary Vistas") == [("whole", "imagenet")]
    found = statuses(evidence)
    assert found["Pretraining on ImageNet"] == found["Pretraining on Mapillary Vistas"] == claims.REPRODUCED


def test_other_parameters_of_a_rung_make_no_pair():
    variants = STARTS | {"imagenet": {**STARTS["imagenet"], "train": {"steps": 7, "warmup_steps": 1}}}
    evidence = evidence_of(variants, flat(variants))
    assert pairs(evidence, "Pretraining on ImageNet") == []
    assert pairs(evidence, "Pretraining on Mapillary Vistas") == []


def test_layouts_of_equal_width_and_of_equal_cost():
    matched = {"block": "mmbconv", "layout": "pyramid", "width": 5, "expansion": 2.5, "match": "macs"}
    variants = {
        "residual": {"block": "residual"},
        "residual-pyramid": {"block": "residual", "layout": "pyramid"},
        **PYRAMID,
        "matched": matched,
        "of-residual": {**matched, "width": 3, "expansion": 2.0},
        "narrow": {"block": "mmbconv", "layout": "pyramid", "width": 6},
    }
    evidence = evidence_of(variants, flat(variants))
    macs = {name: evidence.cost["variants"][name]["macs"] for name in ("uniform", "matched", "of-residual")}
    assert macs["matched"] / macs["uniform"] == pytest.approx(1, abs=0.1)
    assert macs["of-residual"] / macs["uniform"] < 0.8  # solved for the table's baseline, another row than `uniform`
    assert pairs(evidence, "Uniform against pyramid layout") == [
        ("uniform", "pyramid"),
        ("uniform", "matched"),
        ("residual", "residual-pyramid"),
    ]


def test_the_paper_preset_has_a_pair_for_every_question():
    wanted = grid.wanted(load(REPOSITORY / "pipelines" / "paper" / "params.yaml"))
    for question, pair in zip(
        claims.QUESTIONS,
        [
            ("mbconv", "residual"),
            ("mmbconv", "mbconv"),
            ("mmbconv", "residual"),
            ("uniform", "pyramid"),
            ("mmbconv-imagenet", "mmbconv-scratch"),
            ("mmbconv", "mmbconv-imagenet"),
            ("mmbconv", "mmbconv-plain-crops"),
            ("mmbconv", "mmbconv-no-lookahead"),
            ("mmbconv", "mmbconv-norm-8"),
        ],
        strict=True,
    ):
        better, other = (wanted[name] for name in pair)
        assert question.fits(better, other), question.title
        assert not question.fits(other, better), question.title


def test_the_commands_that_are_proposed_give_the_pairs():
    params = load(REPOSITORY / "pipelines" / "paper" / "params.yaml")
    found = axes.rows(
        params, blocks=["mmbconv"], layouts=None, starts=["scratch", "imagenet", "mapillary"], settings=[]
    )
    content = params.model_dump(by_alias=True)
    content |= {"variants": found, "ablate": {**content["ablate"], "variants": list(found)}}
    wanted = list(grid.wanted(Params.model_validate(content)).values())
    assert claims.QUESTIONS[4].fits(wanted[1], wanted[0])
    assert claims.QUESTIONS[5].fits(wanted[2], wanted[1])


# ------------------------------------------------------------------------------------------------ the numbers


def test_a_prediction_interval_by_hand():
    low, high = statistics.of_one_more([83.0, 84.0, 85.0])  # mean 84, s 1, t(2) at 97.5 % is 4.30265
    assert (low, high) == pytest.approx((84 - 4.30265 * math.sqrt(4 / 3), 84 + 4.30265 * math.sqrt(4 / 3)), abs=1e-4)
    assert statistics.of_one_more([83.0, 84.0]) is None
    assert statistics.of_one_more([84.0, 84.0, 84.0]) is None


WHOLE = {"mmbconv": {"block": "mmbconv"}}
REACHED = [
    ([83.9, 84.1, 84.0], claims.REPRODUCED),
    ([83.0, 85.0, 84.0], claims.NO_EVIDENCE),  # too wide to say
    ([80.0, 80.1, 80.2], claims.CONTRADICTED),
    ([86.0, 86.1, 86.2], claims.CONTRADICTED),
    ([84.0, 84.0, 84.0], claims.NO_EVIDENCE),  # no noise to judge by
]


@pytest.mark.parametrize(("values", "status"), REACHED, ids=str)
def test_84_of_val_is_held_against_one_training_more(values, status):
    claim = of(evidence_of(WHOLE, {"mmbconv": values}, cityscapes=True), "mIoU on Cityscapes val")
    assert claim.status == status
    assert (claim.attempt is None) == (status != claims.NOT_ATTEMPTED)
    assert claim.ours.startswith(f"single scale {np.mean(values):.2f}")


def test_the_claimed_number_is_rounded():
    spread = 4.30265 * 0.1 * math.sqrt(4 / 3)  # of 0.1
    for side in (-1, 1):
        for off, status in ((0.04, claims.REPRODUCED), (0.06, claims.CONTRADICTED)):
            mean = 84 + side * (spread + off)
            values = {"mmbconv": [mean - 0.1, mean, mean + 0.1]}
            assert statuses(evidence_of(WHOLE, values, cityscapes=True))["mIoU on Cityscapes val"] == status


def test_one_protocol_suffices_and_all_must_contradict():
    low, near = {"mmbconv": [82.0, 82.1, 82.2]}, {"mmbconv": [84.0, 84.1, 83.9]}
    for augmented, status in ((near, claims.REPRODUCED), (low, claims.CONTRADICTED)):
        claim = of(evidence_of(WHOLE, low, augmented=augmented, cityscapes=True), "mIoU on Cityscapes val")
        assert claim.status == status
        assert "; augmented 8" in claim.ours


def test_another_network_or_ladder_is_no_attempt_at_84():
    for variants in ({"mmbconv": {"block": "mbconv"}}, {"a": PYRAMID["pyramid"]}, {"a": STARTS["imagenet"]}):
        means = {name: [84.0, 84.1, 83.9] for name in variants}
        claim = of(evidence_of(variants, means, cityscapes=True), "mIoU on Cityscapes val")
        assert claim.status == claims.NOT_ATTEMPTED
        assert "GPU hours" in claim.attempt


def test_84_elsewhere_is_not_attempted():
    claim = of(evidence_of(WHOLE, {"mmbconv": [84.0, 84.1, 83.9]}), "mIoU on Cityscapes val")
    assert (claim.status, claim.ours) == (claims.NOT_ATTEMPTED, "–")
    assert claim.why == "this is camvid (20 val images), not Cityscapes val"


def test_the_test_split_is_never_in_the_evidence():
    claim = of(evidence_of(WHOLE, {"mmbconv": [84.5, 84.6, 84.4]}, cityscapes=True), "mIoU on Cityscapes test")
    assert (claim.status, claim.ours) == (claims.NOT_ATTEMPTED, "–")
    assert "mmseg submit cityscapes" in claim.attempt


# ------------------------------------------------------------------------------------------------ the cost


def times(ratio, spread=0.01) -> list[float]:
    return [ratio * (1 + spread * math.sin(turn)) for turn in range(12)]


COSTS = {"residual": times(0.9), "mbconv": [1.0] * 12}
OTHER = {"mmbconv": times(2.5), "mbconv": [1.0] * 12, "residual": times(1)}  # of prediction


@pytest.mark.parametrize(
    ("step", "prediction", "status"),
    [
        (times(1.3), times(2.5), claims.REPRODUCED),
        (times(1.05), times(1.2), claims.REPRODUCED),  # one suffices
        (times(3.2), times(2.5), claims.CONTRADICTED),
        (times(1.02), times(2.5), claims.CONTRADICTED),
        (times(1.45, spread=0.2), times(2.5), claims.NO_EVIDENCE),
        ([1.3] * 3, [1.3] * 3, claims.NO_EVIDENCE),  # three rounds have no interval
    ],
)
def test_about_30_percent_more_time(step, prediction, status):
    rounds = len(step)
    steps = {name: values[:rounds] for name, values in COSTS.items()} | {"mmbconv": step}
    inference = {name: values[:rounds] for name, values in OTHER.items()} | {"mmbconv": prediction}
    evidence = evidence_of(
        BLOCKS, FAR_APART, steps=steps, inference=inference, cityscapes=True, accelerator="NVIDIA H100"
    )
    claim = of(evidence, "Time of MMBConv over MBConv")
    assert claim.status == status
    assert claim.ours.endswith(" on NVIDIA H100")
    assert re.match(r"training step \d\.\d\dx.*; prediction \d\.\d\dx", claim.ours)


@pytest.mark.parametrize(
    ("peak", "status"),
    [(1.1, claims.REPRODUCED), (1.14, claims.REPRODUCED), (1.2, claims.CONTRADICTED), (1.0, claims.CONTRADICTED)],
)
def test_about_10_percent_more_memory(peak, status):
    peaks = {"mbconv": 10**9, "mmbconv": round(peak * 10**9)}
    evidence = evidence_of(BLOCKS, FAR_APART, peaks=peaks, cityscapes=True, accelerator="NVIDIA H100")
    claim = of(evidence, "Memory of MMBConv over MBConv")
    assert (claim.status, claim.ours) == (status, f"training step {peak:.2f}x on NVIDIA H100")


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({"cityscapes": True}, "not measured on a GPU"),
        ({"accelerator": "NVIDIA H100"}, "this is camvid (20 val images), not Cityscapes val"),
        ({}, "not measured on a GPU"),
    ],
)
def test_a_ratio_elsewhere_is_said_and_decides_nothing(where, said):
    peaks = {"mbconv": 10**9, "mmbconv": 11 * 10**8}
    claim = of(evidence_of(BLOCKS, FAR_APART, peaks=peaks, **where), "Memory of MMBConv over MBConv")
    assert claim.status == claims.NOT_ATTEMPTED
    assert said in claim.why
    assert claim.why.endswith("by the same rule here: reproduced")
    assert "mmseg cost --preset paper --measure" in claim.attempt


@pytest.mark.parametrize("layout", ["uniform", "pyramid"])
@pytest.mark.parametrize("sizes", [{}, {"depth": 2, "expansion": 2.6, "levels": 4, "width": 5, "se_ratio": 0}], ids=str)
def test_nine_times_the_weights_is_counted(layout, sizes):
    evidence = evidence_of(BLOCKS, FAR_APART, network={"layout": layout, **sizes})
    claim = of(evidence, "Weights of the changed convolutions")
    assert claim.status == claims.REPRODUCED
    assert claim.ours.startswith("9.00 times; the whole network ")
    before = claims.pointwise(evidence.wanted["mbconv"].network)
    assert f"counted: {before:,} weights" in claim.why


def test_pointwise_convolutions_of_a_real_network():
    """Counted in the modules themselves."""
    from mmseg_cli.models.unet import UNet, blocks_of

    for layout in ("uniform", "pyramid"):
        params = preset(BLOCKS, network={"layout": layout, "expansion": 1.7, "depth": 2})
        network = params.network_of("mbconv")
        found = sum(
            convolution.weight.numel()
            for block in blocks_of(UNet(**network))
            for convolution in (block.expand.conv, block.project)
        )
        assert claims.pointwise(network) == found


def test_without_the_two_blocks_nothing_is_counted_or_measured():
    variants = {"mmbconv": {"block": "mmbconv"}, "mbconv": {"block": "mbconv", "width": 6}}
    evidence = evidence_of(variants, flat(variants))
    for title in (
        "Memory of MMBConv over MBConv",
        "Time of MMBConv over MBConv",
        "Weights of the changed convolutions",
    ):
        claim = of(evidence, title)
        assert (claim.status, claim.ours) == (claims.NOT_ATTEMPTED, "–")
        assert claim.attempt


# ------------------------------------------------------------------------------------------------ the sheet


def test_the_sheet_has_every_claim_and_the_rules():
    evidence = evidence_of(BLOCKS, FAR_APART, name="camvid-small")
    text = claims.sheet(evidence, rows.rows(evidence))
    assert text.startswith("# The paper's claims: camvid-small\n")
    assert "camvid, 20 val images, seeds 0, 1, 2" in text
    for place, claim in enumerate(claims.claims(evidence, rows.rows(evidence)), start=1):
        assert f"\n## {place}. {claim.title}\n" in text
        assert f"- **Status**: *{claim.status}*: {claim.why}." in text
        assert claim.attempt is None or f"- **To attempt it**: {claim.attempt}." in text
    assert all(f"- {rule}\n" in text for rule in claims.RULES)
    lines = [line for line in text.splitlines() if re.match(r"\| 7 +\| MMBConv against MBConv +\| better +\|", line)]
    assert len(lines) == 1
    assert re.search(r"\| not attempted \| better +\|$", lines[0])
    assert "direction on camvid" in text
    assert text.endswith("do not edit.\n")
    assert claims.sheet(evidence, rows.rows(evidence)) == text


def test_a_sheet_of_the_claimed_data_has_no_directions():
    evidence = evidence_of(BLOCKS, FAR_APART, cityscapes=True)
    found = claims.claims(evidence, rows.rows(evidence))
    assert [one.direction for one in found] == [None] * len(found)
    assert "direction on" not in claims.sheet(evidence, rows.rows(evidence))


def test_a_grid_of_one_row_has_a_sheet_too():
    evidence = evidence_of({"mine": {"block": "mbconv-k7"}}, {"mine": [50.0, 51.0, 52.0]})
    text = claims.sheet(evidence, rows.rows(evidence))
    assert "No two rows of this grid differ in what a claim is about alone." in text
    assert set(statuses(evidence).values()) == {claims.NOT_ATTEMPTED}


def test_a_sheet_is_made_without_torch(tmp_path):
    import subprocess
    import sys

    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')\n")
    done = subprocess.run(
        [sys.executable, "-c", "from mmseg_cli.ablation import claims, compare; print(len(claims.RULES))"],
        env={"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------------ what it takes


def test_the_hours_of_a_claim_are_those_of_its_rows():
    assert "about 790 GPU hours for 3 seeds" in claims.VAL_TAKES  # 3 x (154.7 + 91.1 + 18.2)
    by_title = {question.title: question.attempt for question in claims.QUESTIONS}
    assert "about 570 GPU hours" in by_title["Pretraining on ImageNet"]  # 3 x (154.7 + 2 x 18.2)
    assert "about 850 GPU hours" in by_title["Pretraining on Mapillary Vistas"]  # ImageNet once
    assert "about 1,020 GPU hours" in by_title["MMBConv against MBConv"]


@pytest.mark.slow
def test_the_hours_are_those_of_the_plan(monkeypatch):
    """The constants against `mmseg plan paper --gpus 8x80GB`, and the two rows of the layouts."""
    from mmseg_cli import paths as places
    from mmseg_cli.cli.plan import TFLOPS
    from mmseg_cli.planning import plan
    from mmseg_cli.planning.machine import parse_gpus

    paths = places.find(preset="paper", root=REPOSITORY)
    params = load(paths.params)
    content = params.model_dump(by_alias=True)
    content["ablate"] |= {"variants": [*claims.HOURS, *claims.LAYOUT_HOURS]}
    params = Params.model_validate(content)
    made = plan.estimate(params, paths, machine=parse_gpus("8x80GB"), teraflops=TFLOPS)
    for row in made.rows:
        expected = (claims.HOURS | claims.LAYOUT_HOURS)[row.case.variant][row.case.stage]
        assert row.fits
        assert row.hours * row.setting.devices == pytest.approx(expected, rel=0.02), (row.case.stage, row.case.variant)
    networks = {name: params.network_of(name) for name in ("uniform", "pyramid")}
    found = costs.counted(networks, classes=19, height=512, width=1024)
    assert found["pyramid"][0].macs == pytest.approx(found["uniform"][0].macs, rel=0.05)
