"""kill -9 anywhere, started again until done: the final weights are those of a run that nobody touched."""

from __future__ import annotations

import json
import random
import time

import pytest

from tests.chaos.harm import EVERY, STEPS, Start, checkpoints, forget, last_step, outcome, stage, unreadable, wait_until

# In saving a checkpoint, and in putting the finished run in its place: each but the last leaves something half done.
SAVING = (
    "save:between_files",
    "save:between_files:2",
    "save:before_manifest",
    "save:before_replace",
    "save:before_replace:2",
    "save:after_replace",
    "save:after_remove:2",
    "finish:before",
    "finish:before_record",
    "finish:after",
)
RANDOM_KILLS = 5  # a run, beside the forced one


def no_damage(text):
    assert "cannot be used" not in text, text
    assert "does not fit" not in text, text
    assert "mmseg: warning" not in text, text
    assert "Traceback" not in text, text


@pytest.mark.slow
@pytest.mark.parametrize("points", [("save:before_replace:2", "finish:before_record")])
def test_a_run_killed_in_saving_and_in_finishing_ends_as_if_untouched(rung, whole, points):
    for point in points:
        code, text = Start(rung, failpoint=point).wait()
        assert code == -9, text
        no_damage(text)
        assert checkpoints()
        assert not unreadable(checkpoints())
    stage()
    assert outcome() == whole.outcome


class Killer:
    """Kills and starts again, and keeps count."""

    def __init__(self, project, *, through_dvc, seed):
        self.project, self.through_dvc = project, through_dvc
        self.random = random.Random(f"kill {seed}")
        self.killed, self.results = [], []

    def start(self, failpoint=None):
        return self.project.start(through_dvc=self.through_dvc, failpoint=failpoint)

    def kill_at(self, failpoint):
        return self.over(self.start(failpoint), failpoint)

    def kill_at_a_step(self, left):
        """Before one of the next steps, so that all kills that are left have room."""
        done = last_step(self.project.root)
        ahead = max(EVERY, (STEPS - done) // left)
        return self.kill_at(f"step:{self.random.randint(done + 1, min(STEPS, done + ahead))}" if done < STEPS else None)

    def kill_by_the_clock(self, left):
        """At any moment: one in four while the program starts, the others from the first step on."""
        running = self.start()
        whom = self.random.choice(["group", "leader", "trainer"]) if self.through_dvc else "group"
        if self.random.random() < 0.25:
            end = time.monotonic() + self.random.uniform(0, self.project.seconds_to_start)
        else:
            wait_until(lambda: running.trains() or running.ended())
            share = min(1.0, 1.5 * (STEPS - last_step(self.project.root)) / STEPS / left)
            end = time.monotonic() + self.random.uniform(0, share * self.project.seconds_to_train)
        wait_until(lambda: running.ended() or time.monotonic() > end)
        running.kill(whom)
        return self.over(running, f"the clock, {whom}")

    def over(self, running, how):
        """Whether it was killed; where it had come to its end before, that is compared, and all begins again."""
        code, text = running.wait()
        no_damage(text)
        assert not unreadable(checkpoints(self.project.root))
        if code == 0:
            self.compare()
            return False
        assert code in ((-9, 255) if self.through_dvc else (-9,)), text
        self.killed.append(f"{how} -> {last_step(self.project.root)}")
        return True

    def compare(self):
        found = outcome(self.project.root)
        assert found[0] == self.project.expected[0], self.killed
        steps = [row["step"] for row in map(json.loads, found[1].splitlines()) if "loss" in row]
        assert steps == list(range(1, STEPS + 1))
        self.results.append(found[0])
        forget(self.project.root)

    def run_until_done(self):
        code, text = self.start().wait()
        assert code == 0, text
        no_damage(text)
        self.compare()


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_killed_anywhere_and_started_again_until_done(pipeline, number):
    """Six kills each, five of them at random: sixty in all. Every other run goes through `dvc repro`."""
    forget(pipeline.root)
    killer = Killer(pipeline, through_dvc=number % 2 == 1, seed=number)
    kinds = ["step", "clock"] * 2 + ["step" if number % 2 else "clock"]
    killer.random.shuffle(kinds)
    last = SAVING[number].startswith("finish")
    kinds.insert(len(kinds) if last else killer.random.randrange(4), "saving")
    while kinds:
        kind, left = kinds[0], len(kinds)
        if kind == "saving":
            killed = killer.kill_at(SAVING[number])
        elif kind == "step":
            killed = killer.kill_at_a_step(left)
        else:
            killed = killer.kill_by_the_clock(left)
        if killed:
            kinds.pop(0)
    killer.run_until_done()
    print(f"killed {len(killer.killed)} times: {'; '.join(killer.killed)}; {len(killer.results)} equal ends")
    assert len(killer.killed) == RANDOM_KILLS + 1


@pytest.mark.slow
def test_what_killed_saves_have_left_is_gone_when_the_run_is_done(rung):
    """Half a checkpoint is as large as the network; a run that is killed often must not fill the disk with them."""
    for point in ("save:before_manifest", "save:before_replace", "finish:before_record"):
        code, text = Start(rung, failpoint=point).wait()
        assert code == -9, text
    stage()
    assert [str(path) for path in rung.rglob(".step-*")] == []
    assert [str(path) for path in (rung / "runs").rglob(".*")] == []
