from __future__ import annotations

import io
import itertools
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from mmseg_cli.ablation import estimates, figures, rows, statistics, tables
from mmseg_cli.ablation.grid import Evidence, Wanted
from mmseg_cli.evaluation.evidence import Collector

CLASSES = ["road", "building", "car", "nowhere"]
BLOCKS = ["residual", "mbconv", "mmbconv", "mmbconv-expand", "mmbconv-project"]
NINE = [*BLOCKS, "mmbconv-grouped", "mmbconv-separable", "mbconv-k7", "fused-mbconv"]
DISTANCES = [1, 3, 5, 9]
RUNGS = {"scratch": (), "imagenet": ("pretrain_imagenet",), "mapillary": ("pretrain_imagenet", "pretrain_mapillary")}


def counted(rng, right, *, images, kinds):
    """Counts of a few images in which a share of every class's pixels is right; the last class is nowhere."""
    classes = len(right)
    collector = Collector()
    for _ in range(images):
        bands = np.zeros((4, classes, classes), dtype=np.int64)
        for band, k in itertools.product(range(4), range(classes - 1)):
            wrong = np.full(classes, (1 - right[k]) / (classes - 2))
            wrong[k], wrong[-1] = right[k], 0
            bands[band, k] = rng.multinomial(2000, wrong)
        pixels = bands.sum(axis=(0, 2))
        counts = {"confusion": bands.sum(axis=0)}
        if kinds:
            share = np.clip(right, 0, 1)
            part = rng.binomial(pixels, share, (4, 3, classes))
            boundaries = np.stack([part, np.broadcast_to(pixels, part.shape)], axis=2).reshape(4, 6, classes)
            hits = rng.binomial(pixels, share * np.array([0.7, 0.9, 1])[:, None])
            sizes = np.stack([np.broadcast_to(pixels, hits.shape), hits] * 2, axis=1)
            counts |= {"boundaries": boundaries, "sizes": sizes, "rows": bands}
        collector.add(counts)
    return collector.counts()


def made(
    variants, seeds, *, images=6, kinds=True, estimand="this-set", image_blocks="image", prefix="", classes=CLASSES
):
    """Evidence of variants whose classes are the better the later they stand; `block+start` names what it starts from.

    The second class is the noisiest.
    """
    names = [f"{prefix or number}_{number}" for number in range(images)]
    blocks = estimates.blocks_of(names, image_blocks)
    runs, wanted, cost = {}, {}, {}
    for place, variant in enumerate(variants):
        block, _, start = variant.partition("+")
        rungs = {stage: {} for stage in (*RUNGS[start or "mapillary"], "train")}
        changes = {"block": block} | ({"start": start} if start else {})
        wanted[variant] = Wanted(network={"block": block}, rungs=rungs, changes=changes, match=None)
        cost[variant] = {
            "parameters": 1_000_000 * (place + 1),
            "macs": 2_000_000,
            "peak_bytes": (5 + place % 3) * 2**26,
            "step_seconds": [0.1 * (1 + 0.2 * place)] * 3,
            "inference_seconds": [0.1, 0.1, 0.1],
            "step_joules": None,
        }
        for seed in seeds:
            rng = np.random.default_rng([seed, place])
            right = np.linspace(0.8, 0.6, len(classes)) + 0.02 * place
            right += rng.normal(0, 0.001, len(classes))
            right[1] += rng.normal(0, 0.03)
            counts = counted(rng, right, images=images, kinds=kinds)
            described = estimates.figures_of({kind: one.shape for kind, one in counts.items()}, distances=DISTANCES)
            runs[variant, seed] = estimates.of_run(counts, described, classes=list(classes), blocks_N=blocks)
    return Evidence(
        preset="toy",
        variants=list(variants),
        seeds=list(seeds),
        wanted=wanted,
        estimand=estimand,
        image_blocks=image_blocks,
        names=names,
        runs={run: {"rows": [{}] * 4 if kinds else []} for run in runs},
        figures=runs,
        files={},
        certificates={},
        cost={"batch": 8, "variants": cost},
    )


@pytest.fixture(scope="module")
def three():
    return made(BLOCKS[:3], [0, 1, 2])


@pytest.fixture(scope="module")
def nine():
    return made(NINE, [0, 1, 2], images=3, classes=[f"class number {k}" for k in range(19)])


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, in order."""
    found = []
    print_png = FigureCanvasAgg.print_png

    def noted(own, *args, **kwargs):
        found.append(own.figure)
        return print_png(own, *args, **kwargs)

    monkeypatch.setattr(FigureCanvasAgg, "print_png", noted)
    return found


def draw(evidence):
    return figures.draw(evidence, rows.rows(evidence))


# ------------------------------------------------------------------------------------------------ which, and that


@pytest.mark.parametrize(
    ("variants", "seeds", "kinds", "expected"),
    [
        (BLOCKS[:2], [0, 1], True, {"pareto", "classes", "anatomy"}),
        (BLOCKS[:2], [0, 1, 2], False, {"pareto", "classes"}),
        (BLOCKS[:1], [0, 1, 2], True, {"pareto"}),
        (["residual", "residual+scratch"], [0, 1, 2], False, {"pareto", "classes", "ladder"}),
        (BLOCKS[:2], [0], True, {"pareto", "classes", "anatomy"}),
    ],
    ids=["all kinds", "confusions alone", "no comparison", "two rungs", "one seed"],
)
def test_a_chart_is_drawn_where_there_is_something_for_it(variants, seeds, kinds, expected):
    found = draw(made(variants, seeds, kinds=kinds))
    assert set(found) == {f"{name}.png" for name in expected}
    for content in found.values():
        with Image.open(io.BytesIO(content)) as picture:
            assert picture.format == "PNG"
            assert picture.width == figures.WIDTH * figures.DPI
            assert set(picture.info) <= {"dpi"}


def test_equal_evidence_gives_equal_bytes_whatever_the_readers_settings(three):
    expected = draw(three)
    with matplotlib.rc_context({"font.size": 25, "axes.facecolor": "black", "lines.linewidth": 9}):
        assert draw(made(BLOCKS[:3], [0, 1, 2])) == expected
    other = draw(made(BLOCKS[:3], [0, 1, 3]))
    assert all(other[name] != content for name, content in expected.items())


def texts(figure):
    return [text.get_text() for text in figure.texts]


ONE_BLOCK = {"estimand": "new-images", "image_blocks": "prefix", "prefix": "city"}


@pytest.mark.parametrize(
    ("seeds", "changes", "reason"),
    [
        ([0], {}, "no intervals (one seed tells nothing of its noise)"),
        ([0, 1, 2], ONE_BLOCK, "no intervals (one block of images tells nothing of others)"),
    ],
    ids=["one seed", "one block"],
)
def test_points_without_intervals_say_why(seeds, changes, reason, drawn):
    draw(made(BLOCKS[:2], seeds, **changes))
    assert len(drawn) == 3
    for figure in drawn:
        assert reason in texts(figure)[1].replace("\n", " ")


# ------------------------------------------------------------------------------------------------ readable


@pytest.fixture
def words(monkeypatch):
    """The place of every text that was drawn, by its figure."""
    found = {}
    draw_text = Text.draw

    def noted(own, renderer, *args, **kwargs):
        if own.get_visible() and own.get_text().strip():
            found.setdefault(own.get_figure(), {})[own] = own.get_window_extent(renderer)
        draw_text(own, renderer, *args, **kwargs)

    monkeypatch.setattr(Text, "draw", noted)
    return found


@pytest.mark.parametrize("name", ["nine", "three"])
def test_no_words_leave_the_picture_or_lie_on_each_other(name, request, words):
    draw(request.getfixturevalue(name))
    assert len(words) == 3
    for figure, boxes in words.items():
        for text, box in boxes.items():
            assert 0 <= box.x0 < box.x1 <= figure.bbox.x1, text
            assert 0 <= box.y0 < box.y1 <= figure.bbox.y1, text
        for (text, box), (other, place) in itertools.combinations(boxes.items(), 2):
            assert not box.overlaps(place), (text, other)


def test_many_variants_have_a_panel_each_and_few_share_one(three, nine, drawn):
    draw(three)
    draw(nine)
    panels = [len(figure.axes) for figure in drawn]
    assert panels == [3, 1, 3, 3, 8, 3]
    titles = [axes.get_title(loc="left").replace("\n", "") for axes in drawn[4].axes]
    assert titles == NINE[1:]


def test_styles_tell_many_variants_apart():
    variants = [str(number) for number in range(72)]
    assert len(set(figures.styles(variants).values())) == 72


# ------------------------------------------------------------------------------------------------ pareto


def test_the_front_is_what_nothing_beats():
    rng = np.random.default_rng(0)
    for _ in range(200):
        costs, values = rng.integers(0, 6, (2, 7)).tolist()
        expected = {
            (cost, value)
            for cost, value in zip(costs, values, strict=True)
            if not any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in zip(costs, values, strict=True))
        }
        found = figures.front(costs, values)
        assert [costs[place] for place in found] == sorted(costs[place] for place in found)
        assert {(costs[place], values[place]) for place in found} == expected


def test_every_seed_and_its_cost_is_in_the_chart(three, drawn):
    draw(three)
    by_time, by_memory, by_parameters = drawn[0].axes
    for variant, dots, time, bytes_, parameters in zip(
        three.variants,
        [collection for collection in by_time.collections if len(collection.get_offsets()) == 3],
        (100, 120, 140),
        (320, 384, 448),
        (1, 2, 3),
        strict=True,
    ):
        assert dots.get_offsets()[:, 0].tolist() == pytest.approx([time] * 3)
        assert dots.get_offsets()[:, 1].tolist() == three.sample(variant, "iou").plain_S.tolist()
        for axes, x in ((by_memory, bytes_), (by_parameters, parameters)):
            places = [line.get_xdata() for line in axes.lines]
            assert any(len(place) == 1 and place[0] == pytest.approx(x) for place in places)


def test_costs_of_many_sizes_have_a_logarithmic_axis(drawn):
    evidence = made(BLOCKS[:2], [0, 1], kinds=False)
    evidence.cost["variants"]["mbconv"]["parameters"] = 400_000_000
    draw(evidence)
    assert [axes.get_xscale() for axes in drawn[0].axes] == ["linear", "linear", "log"]
    assert drawn[0].axes[2].get_xlabel() == "parameters (millions, log)"


# ------------------------------------------------------------------------------------------------ differences


def marks(table):
    """Whether every difference of a markdown table is marked, in the order of its lines."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {line[0]: [cell.endswith(("▲", "▼")) for cell in line[2:]] for line in lines}


def test_classes_are_marked_as_in_the_table(three):
    found = rows.judged(three, [("iou", name) for name in three.classes])
    own = {name: [one.verdict.word in figures.FILLED for one in line.values()] for (_, name), line in found.items()}
    assert own == marks(tables.class_table(three))
    assert list(own) == CLASSES[:-1]
    every = [mark for line in own.values() for mark in line]
    assert any(every)
    assert not all(every)


def test_places_are_marked_as_in_the_table(three):
    titles = {name: title for title, name in tables.anatomy(three)}
    found = rows.judged(three, [(name, None) for name in titles])
    own = {
        titles[name]: [one.verdict.word in figures.FILLED for one in line.values()] for (name, _), line in found.items()
    }
    assert own == marks(tables.anatomy_table(three))


def test_what_is_marked_is_filled(three, drawn):
    draw(three)
    found = rows.judged(three, [("iou", name) for name in three.classes])
    paper = matplotlib.colors.to_hex(figures.LIGHT.paper)
    markers = [line for line in drawn[1].axes[0].lines if len(line.get_xdata()) == 1]
    assert len(markers) == 2 * (len(CLASSES) - 1)
    drawn_marks = {
        round(float(line.get_xdata()[0]), 9): matplotlib.colors.to_hex(line.get_markerfacecolor()) != paper
        for line in markers
    }
    assert drawn_marks == {
        round(one.interval.estimate, 9): one.verdict.word in figures.FILLED
        for line in found.values()
        for one in line.values()
    }


def test_two_seeds_mark_nothing(drawn):
    evidence = made(BLOCKS[:2], [0, 1])
    found = rows.judged(evidence, [("iou", name) for name in evidence.classes])
    assert not any(one.verdict.word in figures.FILLED for line in found.values() for one in line.values())
    draw(evidence)
    assert "no verdict with fewer than 3 seeds" in texts(drawn[1])[1]


def test_an_interval_that_is_far_too_long_is_cut_and_marked():
    def one(estimate, half):
        return statistics.Interval("this-set", 3, 9, estimate, low=estimate - half, high=estimate + half)

    usual = [one(value, 1) for value in np.linspace(-2, 2, 40)]
    low, high = figures._limits(usual)
    assert low < -3
    assert high > 3
    assert not figures._any_cut(usual, (low, high))
    with_long = [*usual, one(2.5, 40)]
    low, high = figures._limits(with_long)
    assert low > -10
    assert 2.5 < high < 10
    assert figures._any_cut(with_long, (low, high))
    assert figures._limits([one(3, 1)])[0] < 0  # no difference is in view too


# ------------------------------------------------------------------------------------------------ the ladder


def test_a_ladder_joins_what_is_the_same_but_for_its_start():
    evidence = made(
        ["residual", "mbconv", "residual+imagenet", "residual+scratch", "mmbconv+scratch"], [0], kinds=False
    )
    wanted = dict(evidence.wanted)
    full, part, none = "ImageNet + Mapillary", "ImageNet", "scratch"
    expected = {full: "residual", part: "residual+imagenet", none: "residual+scratch"}
    assert figures.ladders(wanted) == [expected]
    wider = wanted["mbconv"]
    wanted["wide"] = replace(wider, changes=wider.changes | {"width": 32, "start": "scratch"}, rungs={"train": {}})
    assert figures.ladders(wanted) == [expected]
    wanted["mbconv+scratch"] = replace(wider, changes=wider.changes | {"start": "scratch"}, rungs={"train": {}})
    assert figures.ladders(wanted) == [expected, {full: "mbconv", none: "mbconv+scratch"}]
    assert figures.ladders({"residual": wanted["residual"]}) == []


def test_the_ladder_shows_means_over_its_rungs(drawn):
    evidence = made(["residual", "mbconv", "residual+scratch", "mbconv+scratch"], [0, 1, 2], kinds=False)
    draw(evidence)
    (axes,) = drawn[-1].axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["scratch", "ImageNet + Mapillary"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["residual", "mbconv"]
    heights = [line.get_ydata().tolist() for line in axes.lines]
    assert heights == [
        [evidence.mean(variant, "iou").estimate for variant in (f"{block}+scratch", block)]
        for block in ("residual", "mbconv")
    ]
