from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmseg_cli.errors import MmsegError
from mmseg_cli.evaluation import evidence
from mmseg_cli.evaluation.evidence import Collector, Evidence


def collected(images, shape=(3, 3)):
    collector = Collector()
    for image in images:
        collector.add({"confusion": np.array(image, np.int64).reshape(shape)})
    return collector.counts()


ARRAYS = st.lists(
    st.lists(st.sampled_from([0, 0, 0, 1, 7, 2**21, 2**32 - 1]), min_size=9, max_size=9), min_size=1, max_size=6
)


@given(images=ARRAYS)
def test_what_was_counted_comes_back(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("evidence") / "confusion.npz"
    names = [f"bé/{number}" for number in range(len(images))]
    evidence.save(path, Evidence(["a", "b", "ü"], names, collected(images)))
    found = evidence.load(path)
    assert (found.classes, found.names) == (["a", "b", "ü"], names)
    expected = np.array(images, np.int64).reshape(-1, 3, 3)
    counts = found.counts["confusion"]
    assert len(counts) == len(images)
    np.testing.assert_array_equal(counts.dense(), expected)
    np.testing.assert_array_equal(counts.total(), expected.sum(0))
    np.testing.assert_array_equal(counts.image(len(images) - 1), expected[-1])
    assert counts.total().dtype == counts.dense().dtype == np.int64


def test_equal_counts_are_equal_bytes(tmp_path):
    for name in ("a", "b"):
        evidence.save(tmp_path / name, Evidence(["x"], ["i"], collected([[5]], (1, 1))))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_total_of_many_images_is_exact(tmp_path):
    """20,000 frames of Cityscapes have more pixels than 32 bits count."""
    pixels = 1024 * 2048 - 3
    counts = collected([[pixels]] * 20_000, (1, 1))
    path = tmp_path / "confusion.npz"
    evidence.save(path, Evidence(["x"], [str(number) for number in range(20_000)], counts))
    assert evidence.load(path).counts["confusion"].total().item() == 20_000 * pixels > 2**32
    assert path.stat().st_size < 300_000


def test_hundreds_of_classes_take_little_room(tmp_path):
    rng = np.random.default_rng(0)
    images = np.zeros((200, 150, 150), np.int64)
    for image in images:
        shown = rng.choice(150, 10, replace=False)
        image[np.ix_(shown, shown)] = rng.integers(0, 10**4, (10, 10))
    path = tmp_path / "confusion.npz"
    evidence.save(
        path, Evidence([str(k) for k in range(150)], [str(n) for n in range(200)], collected(images, (150, 150)))
    )
    assert path.stat().st_size < 200 * 500
    np.testing.assert_array_equal(evidence.load(path).counts["confusion"].dense(), images)


def test_images_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="confusion is"):
        collector = Collector()
        collector.add({"confusion": np.zeros((2, 2), np.int64)})
        collector.add({"confusion": np.zeros((3, 3), np.int64)})


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "missing"), (b"", "cannot be read"), (b"PK\x03\x04 and more", "cannot be read"), ("other", "no confusion")],
)
def test_what_is_no_evidence_is_one_line(tmp_path, content, words):
    path = tmp_path / "confusion.npz"
    if content == "other":
        np.savez_compressed(path, classes=np.array(["a"]), names=np.array(["b"]))
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(MmsegError, match=words):
        evidence.load(path)
