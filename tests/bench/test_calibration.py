from __future__ import annotations

import json

import numpy as np
import pytest

from mmseg_cli.ablation import estimates, statistics
from mmseg_cli.ablation.statistics import NEW_IMAGES, THIS_SET
from mmseg_cli.bench import calibration

TINY = calibration.Size(trials=40, bootstrap_trials=10, replicates=40, populations=3)


@pytest.fixture(scope="module")
def result():
    calls = calibration.plan(
        TINY,
        counts_of_seeds=(2, 3),
        counts_of_blocks=(8,),
        noises=("seeds 1 : images 1", "no image noise"),
        shapes=("normal", "exponential"),
    )
    done = []
    found = calibration.run(calls, TINY, advance=lambda: done.append(1))
    assert len(done) == len(calls)
    return found


def test_the_result_is_plain_and_says_how_it_came_about(result):
    assert json.loads(json.dumps(result))["rows"] == result["rows"]
    assert result["settings"]["trials"] == 40
    assert {"numpy", "scipy", "python"} <= set(result["environment"])
    worlds = [row["world"] for row in result["rows"]]
    assert {world: worlds.count(world) for world in worlds} == {"linear": 12, "confusion": 4, "alike": 4}
    for row in result["rows"]:
        shares = {name: value for name, value in row.items() if name.startswith(("coverage", "false", "power"))}
        assert shares
        assert all(0 <= value <= 1 for value in shares.values())


def test_the_same_seed_gives_the_same_numbers():
    arguments = {"noise": "seeds 1 : images 1", "shape": "t3", "of": calibration.OF_RUNS, "seeds": 3, "blocks": 8}
    one, again, other = (calibration.linear(TINY, **arguments, bootstrap=True, stream=stream) for stream in (1, 1, 2))
    assert one == again != other


def test_the_report_tells_every_group_and_what_is_outside(result):
    text = calibration.markdown(result)
    assert "40 simulated ablations of each of 20 configurations, seed 0" in text
    for group in ("normal", "exponential, of runs", "exponential, of differences", "mIoU of the confusion world"):
        assert f"| {group} |" in text
    assert calibration.headings(result) == ("noise", "2 seeds", "3 seeds")
    for rows in calibration.tables(result).values():
        assert all(len(row) == 3 for row in rows)
    changed = json.loads(json.dumps(result))
    row = next(row for row in changed["rows"] if row["seeds"] == 3 and row["world"] == "linear")
    row["coverage this-set"], row["power new-images 0.8"], row["false new-images"] = 0.5, 0.3, 0.4
    certain = [miss for miss in calibration.missed(changed) if miss.beyond_chance]
    told = [(miss.kind, miss.value) for miss in certain if miss.row is row]
    assert told == [("coverage", 0.5), ("false verdicts", 0.4), ("power where theory says 80 %", 0.3)]
    where = "seeds 1 : images 1; 3 seeds, 8 images"
    assert f"- normal; new-images; false verdicts: 40.0 % ({where})" in calibration.markdown(changed)
    row["seeds"] = 2  # is told, and not judged
    assert not [miss for miss in calibration.missed(changed) if miss.row is row]


@pytest.mark.parametrize("shape", list(calibration.SHAPES))
def test_noise_has_mean_0_and_variance_1(shape):
    drawn = calibration.SHAPES[shape](np.random.default_rng(0), (400_000,))
    assert drawn.mean() == pytest.approx(0, abs=0.01)
    assert drawn.var() == pytest.approx(1, abs=0.15 if shape == "t3" else 0.02)  # of t3 it hardly converges


def test_holm_of_many_is_holm_of_each():
    p_TD = np.random.default_rng(1).random((20, 4)) ** 3
    for found, p_values in zip(calibration._holm(p_TD), p_TD, strict=True):
        assert found == pytest.approx(statistics.holm(list(p_values)))


@pytest.mark.parametrize("kind", calibration.BOOTSTRAPS)
def test_every_bootstrap_draws_as_many_cells_as_there_are(kind):
    weights_RSB = calibration._weights(np.random.default_rng(2), kind, seeds=3, blocks=5, replicates=50)
    assert (weights_RSB.sum(axis=(1, 2)) == 15).all()
    of_seeds = weights_RSB.sum(axis=2) / 5
    assert (of_seeds == of_seeds.round()).all()
    seen_alike = (weights_RSB * of_seeds[:, ::-1, None] == (weights_RSB * of_seeds[:, ::-1, None])[:, ::-1]).all()
    assert seen_alike == (kind != "nested")


def test_normal_noise_is_covered_as_promised():
    """A wide net, that a wrong formula does not pass: 600 trials have a standard error of 0.9 points."""
    size = calibration.Size(trials=600, bootstrap_trials=0)
    for noise in ("seeds 4 : images 1", "seeds 1 : images 4"):
        arguments = {"shape": "normal", "of": calibration.OF_RUNS, "seeds": 5, "blocks": 16}
        row = calibration.linear(size, noise=noise, **arguments, bootstrap=False, stream=3)
        assert row["coverage this-set"] == pytest.approx(0.95, abs=0.03)
        assert row["coverage new-images"] == pytest.approx(0.95, abs=0.03)
        assert max(row["false this-set"], row["false new-images"]) < 0.08
        for estimand in (THIS_SET, NEW_IMAGES):
            assert row[f"power {estimand} 0.8"] == pytest.approx(0.8, abs=0.1)


# ------------------------------------------------------------------------------------------------ confusion world


def test_runs_are_drawn_as_counts_of_their_images():
    rng = np.random.default_rng(4)
    world = calibration.world_of("seeds 1 : images 1", blocks=6, effect=0.1)
    images = calibration.draw_images(rng, world, trials=2, variants=3, blocks=6)
    parts = calibration.draw_runs(rng, world, images, seeds=4, mirrored=False)
    assert parts.shape == (2, 3, 4, 6, 2, calibration.CLASSES)
    hits, union = np.moveaxis(parts, -2, 0)
    pixels = images.pixels_TBK[:, None, None]
    assert (parts == parts.round()).all()
    assert ((hits >= 0) & (hits <= pixels) & (union >= pixels)).all()
    wrong = (pixels - hits).sum(axis=-1)
    assert (union - pixels).sum(axis=-1) == pytest.approx(wrong, abs=calibration.CLASSES)  # each is somewhere


def test_the_truth_of_the_population_agrees_with_plain_draws():
    """Mirrored draws only make it surer; by other seeds and images without them, it is the same within errors."""
    world = calibration.world_of("seeds 1 : images 1", blocks=4, effect=0.3)
    truth_F, error_F = calibration.population(np.random.default_rng(5), world, sets=60, images=300, seeds=2)
    rng = np.random.default_rng(6)
    found = []
    for _ in range(60):
        images = calibration.draw_images(rng, world, trials=1, variants=2, blocks=300)
        parts = calibration.draw_runs(rng, world, images, seeds=2, mirrored=False)
        whole = estimates.jackknife(calibration.MIOU, parts.sum(axis=-3, keepdims=True))[0][0, ..., 0].mean(axis=1)
        found.append(whole[1] - whole[0])
    error = np.hypot(np.std(found, ddof=1) / np.sqrt(60), error_F[0])
    assert truth_F[0] > 0.02
    assert abs(np.mean(found) - truth_F[0]) < 4 * error
    assert error_F[0] < np.std(found, ddof=1) / np.sqrt(60)
