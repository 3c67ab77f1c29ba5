"""Stages on the machines of a Ray cluster, which share the project's folder or have clones of it.

What Ray does that this has to know (2.60): its workers block SIGINT, which processes that they start inherit; a task
that waits in `ray.get` gives its CPUs to another one meanwhile; a task that is given to a node between its death and
the moment when Ray notices (up to 15 s later) is lost without a word; the memory that a task asks for is counted, not
enforced.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmseg_cli.errors import MmsegError
from mmseg_cli.execution import clone, dvc, progress, stage
from mmseg_cli.execution.engine import Ended, News
from mmseg_cli.execution.jobs import Job
from mmseg_cli.execution.local import THREADS, Local, threads_of
from mmseg_cli.params import Params
from mmseg_cli.params import load as load_params
from mmseg_cli.paths import Paths

SETTLE_SECONDS = 20.0  # after a loss, before anything is handed over again: Ray may not have noticed the node's death
STUCK_SECONDS = 120.0  # in which nothing of ours is begun though there is room: it is lost
TELL_SECONDS = 2.0  # between two reports of a task
CONNECT_SECONDS = 5.0
GIB = 2**30


@dataclass(frozen=True)
class Work:
    """What a task needs to know, on another machine."""

    paths: Paths
    stage: str
    log: Path
    save_seconds: float
    threads: str
    parcel: clone.Parcel | None  # where the machine has a clone of its own


@dataclass(frozen=True)
class Outcome:
    """What a task returns."""

    machine: str
    code: int
    why: str
    log: bytes
    parcel: clone.Parcel | None


class Told:
    """An actor beside the driver: where stages run and how far they are, and which are to stop."""

    def __init__(self) -> None:
        self.news: dict[str, News] = {}
        self.stopping = False

    def tell(self, stage: str, news: News) -> bool:
        """Take news of a stage; whether it is to stop."""
        self.news[stage] = news
        return self.stopping

    def heard(self) -> dict[str, News]:
        """The newest news of all."""
        return self.news

    def forget(self, stage: str) -> None:
        """It ended, or is tried again."""
        self.news.pop(stage, None)

    def stop(self) -> None:
        """Have all that runs save and end."""
        self.stopping = True


def work(of: Work, told: Any) -> Outcome:
    """The task: run a stage on this machine, in the shared folder or in a clone."""
    machine = platform.node()
    answer = told.tell.remote(of.stage, News(machine)).future()  # never waited for: see the head of this module
    paths, log, begun = of.paths, of.log, time.time()
    if of.parcel is not None:
        try:
            paths = clone.unpack(of.parcel)
        except MmsegError as error:
            return Outcome(machine, error.exit_code, f"{error} (on {machine})", b"", None)
        log = paths.root / of.log.relative_to(of.paths.root)
    log.parent.mkdir(parents=True, exist_ok=True)
    start = log.stat().st_size if log.is_file() else 0
    environment = dict(os.environ) if of.parcel is None else clone.environment(paths.root)
    process = subprocess.Popen(
        stage.command(paths.root, of.stage, log=log),
        cwd=paths.root,
        env=environment | {THREADS: of.threads},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        params = load_params(paths.params)
        asked: float | None = None
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(TELL_SECONDS if asked is None else 0.2)
            if asked is not None:
                if time.monotonic() - asked > of.save_seconds:
                    process.send_signal(signal.SIGTERM)  # the second one kills the stage
            elif answer.done():
                if answer.result():
                    asked = time.monotonic()
                    process.send_signal(signal.SIGTERM)
                found = progress.of(paths, params, of.stage, since=begun)
                answer = told.tell.remote(of.stage, News(machine, found)).future()
        code = process.wait()
    except BaseException:  # the task was cancelled, or the driver's node is gone
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(of.save_seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # the second one kills the stage
        raise
    why = f"{said} (on {machine})" if (said := stage.why(log, start=start, code=code)) else ""
    parcel = None
    if code == 0 and of.parcel is not None:
        try:
            parcel = clone.pack(paths, of.parcel, of.stage)
        except MmsegError as error:
            code, why = error.exit_code, f"{error} (on {machine})"
    return Outcome(machine, code, why, log.read_bytes()[start:], parcel)


class OnRay:
    """An engine on a Ray cluster.

    Args:
        jobs: the most that are handed over at once; None leaves it to the cluster's room.
        address: of the cluster; None takes the one of RAY_ADDRESS or of this machine, else makes one of this machine.

    Raises:
        MmsegError: Ray is not installed, or there is no such cluster.
    """

    name = "ray"

    def __init__(self, paths: Paths, params: Params, *, jobs: int | None, address: str | None) -> None:
        try:
            import ray
        except ImportError:
            raise MmsegError("--executor ray", "ray is not installed", "run `pip install mmseg-cli[ray]`") from None
        _require_reachable(address or os.environ.get("RAY_ADDRESS"))
        self.paths, self.params, self.jobs = paths, params, jobs
        self.ours = not ray.is_initialized()  # a test has begun one in this process
        if self.ours:
            _hush()
            handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                what = f"no cluster can be reached ({' '.join(str(error).split())[:160]})"
                todo = "start one by `ray start --head`; where Ray asks for a token, set RAY_AUTH_MODE for both alike"
                raise MmsegError("--address", what, todo) from None
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        self.folder = params.execution.clones
        self.source = clone.source_of(paths) if self.folder is not None else None
        self.home = Local(paths.root, jobs=1, gpus=[])  # where there are clones: see clone.SMALL_KINDS
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self.told: Any = ray.remote(Told).options(num_cpus=0, scheduling_strategy=here).remote()
        self.task = ray.remote(work)
        self.refs: dict[Any, Job] = {}
        self.heard: dict[str, News] = {}
        self.made: list[str] = []  # in clones
        self.quiet_until = 0.0
        self.moved = time.monotonic()  # when a task was last seen to run, or there was no room

    def gpus(self) -> int:
        """How many the cluster has."""
        import ray

        return int(ray.cluster_resources().get("GPU", 0))

    def require(self, job: Job) -> None:
        """Raise MmsegError where no node of the cluster has what a stage needs."""
        if self._at_home(job) or self._fitting(job):
            return
        needs, nodes = job.needs, _nodes()
        told = ", ".join(
            f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs, {node.get('memory', 0) / GIB:.1f} GiB"
            for node in nodes
        )
        what = f"{job.stage} needs {needs.cpus} CPUs, {needs.gpus} GPUs and {needs.memory_gib:g} GiB, no node has them"
        raise MmsegError("execution.needs", f"{what} ({told})", "lower them, or add a machine")

    def takes(self, job: Job) -> bool:
        """Ray has a queue of its own; one is kept from what is handed over just after a loss."""
        if self._at_home(job):
            return not self.home.running
        return time.monotonic() >= self.quiet_until and (self.jobs is None or len(self.refs) < self.jobs)

    def _fitting(self, job: Job) -> list[dict[str, float]]:
        """The nodes that have what a stage needs."""
        return [node for node in _nodes() if _fits(job, node)]

    def _at_home(self, job: Job) -> bool:
        return self.source is not None and dvc.kind_of(job.stage) in clone.SMALL_KINDS

    def submit(self, job: Job) -> None:
        """Hand a task over."""
        if self._at_home(job):
            job.needs = job.needs.model_copy(update={"gpus": 0})  # data and tables need none
            self.home.submit(job)
            return
        needs = job.needs
        cpus: float = needs.cpus
        if needs.alone:  # all that the largest node has, so that nothing runs beside it
            cpus = max((node.get("CPU", 0) for node in self._fitting(job)), default=cpus)
        parcel = None
        if self.source is not None and self.folder is not None:
            parcel = clone.parcel_for(
                self.paths, job.stage, before=sorted(job.inputs), source=self.source, folder=self.folder
            )
        seconds = 60.0 * self.params.execution.save_minutes
        given = Work(self.paths, job.stage, Path(job.log), seconds, threads_of(job), parcel)
        if not self.refs:
            self.moved = time.monotonic()  # from now on something can be stuck
        options = {"num_cpus": cpus, "num_gpus": int(needs.gpus), "memory": int(needs.memory_gib * GIB)}
        self.refs[self.task.options(max_retries=0, **options).remote(given, self.told)] = job

    def ended(self) -> list[Ended]:
        """Ask Ray which tasks are done, for a fraction of a second."""
        import ray

        at_home = self.home.ended() if self.home.running or not self.refs else []
        if not self.refs:
            return at_home
        done, _ = ray.wait(list(self.refs), num_returns=len(self.refs), timeout=0.2, fetch_local=True)
        found = at_home
        for ref in done:
            job = self.refs.pop(ref)
            self._forget(job)
            found.append(self._outcome(ref, job))
        return found + self._stuck()

    def _outcome(self, ref: Any, job: Job) -> Ended:
        import ray

        try:
            outcome: Outcome = ray.get(ref)
        except ray.exceptions.RayTaskError as error:  # the task itself: no such folder there, a full disk
            cause = getattr(error, "cause", None) or error
            return Ended(job.stage, 1, f"{type(cause).__name__}: {' '.join(str(cause).split())[:200]}")
        except ray.exceptions.RayError as error:
            self.quiet_until = time.monotonic() + SETTLE_SECONDS
            return Ended(job.stage, None, f"its machine was lost ({type(error).__name__})")
        if self.source is not None:
            log = Path(job.log)
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as file:
                file.write(outcome.log)
            if outcome.parcel is not None:
                clone.receive(self.paths, outcome.parcel)
                self.made.append(job.stage)
        return Ended.by_code(job.stage, outcome.code, outcome.why, machine=outcome.machine)

    def _stuck(self) -> list[Ended]:
        """All that was handed over, where none of it has begun for long though the cluster has room: Ray lost it."""
        import ray

        waiting = [job for job in self.refs.values() if job.stage not in self.heard]
        room = ray.available_resources()
        if len(waiting) < len(self.refs) or not any(_fits(job, room) for job in waiting):
            self.moved = time.monotonic()
        if time.monotonic() - self.moved < STUCK_SECONDS:
            return []
        for ref in self.refs:
            ray.cancel(ref, force=True)
        found = [Ended(job.stage, None, "the cluster did not begin it", unbegun=True) for job in self.refs.values()]
        self.refs.clear()
        return found

    def _forget(self, job: Job) -> None:
        self.heard.pop(job.stage, None)
        _asked(self.told.forget.remote(job.stage))

    def news(self) -> Mapping[str, News]:
        """What the tasks told."""
        self.heard = dict(_asked(self.told.heard.remote()))
        waiting = {job.stage: News("") for job in self.refs.values()}
        heard = {name: news for name, news in self.heard.items() if name in waiting}
        return waiting | heard | self.home.news()

    def stop(self, *, seconds: float) -> None:
        """Cancel what waits, tell what runs, and wait for it."""
        import ray

        self.home.stop(seconds=seconds)
        with suppress(MmsegError, ray.exceptions.RayError):  # where the cluster is gone nothing runs
            _asked(self.told.stop.remote())
            self.news()
            for ref, job in self.refs.items():
                if job.stage not in self.heard:
                    ray.cancel(ref, force=True)
            if self.refs:
                ray.wait(list(self.refs), num_returns=len(self.refs), timeout=seconds)

    def close(self) -> None:
        """Leave the cluster, which goes on; what was made in clones is laid out here as well."""
        import ray

        self.home.close()
        try:
            if self.made:
                clone.pull(self.paths, self.made)
        finally:
            if self.ours:
                ray.shutdown()
            else:
                ray.kill(self.told)


def _fits(job: Job, room: Mapping[str, float]) -> bool:
    """Whether what a stage needs is there, by Ray's names."""
    least = {"CPU": job.needs.cpus, "GPU": int(job.needs.gpus), "memory": job.needs.memory_gib * GIB}
    return all(room.get(name, 0) >= value for name, value in least.items())


def _hush() -> None:
    """Keep Ray from printing a node's last state, a hundred lines of it, on our screen; it has no switch for that."""
    from ray._private import worker

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda *arguments, **named: None


def _asked(ref: Any) -> Any:
    """The answer of the actor beside the driver.

    Raises:
        MmsegError: the cluster has gone.
    """
    import ray

    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:
        what = f"the cluster is gone ({type(error).__name__})"
        raise MmsegError("--executor ray", what, "start it again, then the same command: it goes on") from None


def _require_reachable(address: str | None) -> None:
    """Raise MmsegError where nobody answers at HOST:PORT; Ray itself would ask for minutes."""
    if address in (None, "auto", "local"):
        return
    host, colon, port = str(address).rpartition(":")
    if not colon or not port.isdigit() or "/" in host:
        raise MmsegError(
            "--address", f"{address!r} is not of the form HOST:PORT", "give what `ray start --head` printed"
        )
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        what = f"nobody answers at {address} ({error})"
        raise MmsegError("--address", what, "start a cluster by `ray start --head`, or leave --address out") from None


def _nodes() -> list[dict[str, float]]:
    """What each living node of the cluster has in all."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
