"""Makes hostile checkpoints and loads them, in a process that may be lost; `python hostile.py FOLDER NAME...`.

Each has a manifest whose hashes fit, as far as it has one. Prints a line of JSON for each.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import sys
import zipfile
from pathlib import Path

import torch

from mmseg_cli.training import checkpoint

DEFINITION = {"seed": 0}
FILES = ("model.safetensors", "training.safetensors", "training.json")
MIB = 2**20
SECONDS = 15  # before a case that does not come back is ended


def save(work, number):
    network = {"weight": torch.full((4, 4), float(number))}
    training = {"optimizer": {"state": {0: network["weight"] * 2}}, "best": None}
    checkpoint.save_checkpoint(
        work, step=number, definition=DEFINITION, network=network, training=training, best_step=None
    )
    return work / f"step-{number:09d}"


def vouch(folder, **changes):
    """Write the manifest that fits the files."""
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
    manifest = {"step": int(folder.name.removeprefix("step-")), "sha256": hashes} | changes
    (folder / "manifest.json").write_text(json.dumps(manifest))


def put(name, content):
    """A case: one file with other content, and the hash that fits."""

    def change(folder):
        (folder / name).write_bytes(content() if callable(content) else content)
        vouch(folder)

    return change


class Payload:
    """Unpickling it leaves a file."""

    def __reduce__(self):
        return (Path.touch, (Path(os.environ["MARKER"]),))


def torch_zip():
    buffer = io.BytesIO()
    torch.save({"weight": Payload()}, buffer)
    return buffer.getvalue()


def zip_bomb():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            archive.writestr(f"archive/data/{number}", bytes(32 * MIB))
    return buffer.getvalue()


def safetensors(header, body=b"", *, claimed=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + body


def tensor(begin, end, shape):
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


def values(text):
    """A training.json of this state, given as JSON, with the definition that fits."""
    return f'{{"definition": {json.dumps(DEFINITION)}, "training": {text}}}'.encode()


def manifest_text(text):
    return lambda folder: (folder / "manifest.json").write_text(text(folder) if callable(text) else text)


def real_manifest(folder):
    return (folder / "manifest.json").read_text()


def replaced(name, make):
    """A case: something that is no plain file in the place of one; the manifest stays."""

    def change(folder):
        (folder / name).unlink()
        make(folder / name)

    return change


def traversal(name):
    def change(folder):
        manifest = json.loads(real_manifest(folder))
        outside = (folder / name).resolve()
        if not outside.exists():
            outside.write_bytes((folder / "model.safetensors").read_bytes())
        manifest["sha256"][name] = manifest["sha256"].pop("model.safetensors")
        (folder / "model.safetensors").unlink()
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return change


def extra(folder):
    (folder / "extra.py").write_text("import os, pathlib; pathlib.Path(os.environ['MARKER']).touch()")
    manifest = json.loads(real_manifest(folder))
    manifest["sha256"]["extra.py"] = hashlib.sha256((folder / "extra.py").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


CASES = {
    "a pickle named model.safetensors": put("model.safetensors", lambda: pickle.dumps(Payload())),
    "a torch zip with a pickle": put("training.safetensors", torch_zip),
    "a zip bomb": put("model.safetensors", zip_bomb),
    "a gzip bomb": put("training.json", lambda: gzip.compress(bytes(128 * MIB))),
    "a header that claims 2**60 bytes": put("model.safetensors", safetensors({}, claimed=2**60)),
    "a tensor that claims 2**60 bytes": put(
        "model.safetensors", safetensors({"weight": tensor(0, 2**60, [2**29, 2**29])}, bytes(64))
    ),
    "a shape whose product is beyond 2**64": put(
        "model.safetensors", safetensors({"weight": tensor(0, 64, [2**33, 2**33, 4])}, bytes(64))
    ),
    "tensors that overlap": put(
        "model.safetensors", safetensors({"a": tensor(0, 64, [16]), "b": tensor(32, 96, [16])}, bytes(96))
    ),
    "a tensor beyond the end": put("model.safetensors", safetensors({"a": tensor(0, 640, [160])}, bytes(64))),
    "100,000 tensors on the same bytes": put(
        "training.safetensors",
        lambda: safetensors({f"{number}": tensor(0, 64, [16]) for number in range(100_000)}, bytes(64)),
    ),
    "a header of 100 MB": put("model.safetensors", lambda: safetensors(b"{}" + b" " * (100_000_000 - 2))),
    "a header of 90 MB of names": put(
        "model.safetensors",
        lambda: safetensors({"__metadata__": {f"{number:080d}": "" for number in range(1_000_000)}}),
    ),
    "JSON nested 100,000 deep": put("training.json", lambda: values("[" * 100_000 + "]" * 100_000)),
    "state nested 400 deep": put("training.json", lambda: values('{"list": [' * 400 + "]}" * 400)),
    "a number of a million digits": put("training.json", lambda: values("9" * 1_000_000)),
    "a number beyond all floats": put("training.json", lambda: values('{"dict": [["best", 1e999999999]]}')),
    "60 MB of empty lists": put("training.json", lambda: values("[" + "[]," * (20 * MIB) + "[]]")),
    "60 MB of empty lists as the manifest": manifest_text(lambda folder: "[" + "[]," * (20 * MIB) + "[]]"),
    "a JSON file of 100 MB": put("training.json", lambda: values(" " * 100_000_000 + "null")),
    "a state of a class": put("training.json", values('{"object": "os.system", "arguments": ["touch x"]}')),
    "a state that names no tensor": put("training.json", values('{"dict": [["a", {"tensor": "../../x"}]]}')),
    "a state whose keys are lists": put("training.json", values('{"dict": [[[1], 2]]}')),
    "a definition that is a list": put("training.json", b'{"definition": [], "training": {"dict": []}}'),
    "a state that is a list": put("training.json", values('{"list": []}')),
    "a manifest that names ../../x": traversal("../../x"),
    "a manifest that names an absolute path": traversal("/etc/passwd"),
    "a manifest that names a further file": extra,
    "a link to /etc/passwd": replaced("training.json", lambda path: path.symlink_to("/etc/passwd")),
    "a link to /dev/zero": replaced("model.safetensors", lambda path: path.symlink_to("/dev/zero")),
    "a manifest that is a link to /dev/zero": replaced("manifest.json", lambda path: path.symlink_to("/dev/zero")),
    "a pipe": replaced("training.safetensors", os.mkfifo),
    "a manifest that is a pipe": replaced("manifest.json", os.mkfifo),
    "a device": replaced("model.safetensors", lambda path: os.mknod(path, 0o020666, os.makedev(1, 5))),
    "a manifest that is a device": replaced("manifest.json", lambda path: os.mknod(path, 0o020666, os.makedev(1, 5))),
    "a step that is NaN": manifest_text(lambda folder: real_manifest(folder).replace('"step": 2', '"step": NaN')),
    "a step that is negative": manifest_text(lambda folder: real_manifest(folder).replace('"step": 2', '"step": -2')),
    "a step that is 2.0": manifest_text(lambda folder: real_manifest(folder).replace('"step": 2', '"step": 2.0')),
    "keys that come twice": manifest_text(
        lambda folder: real_manifest(folder).replace('"step": 2', '"step": 2, "step": 3')
    ),
    "a folder of another name": lambda folder: folder.rename(folder.with_name("step-zzz")),
    "a file named as a checkpoint": lambda folder: (shutil.rmtree(folder), folder.write_text("x")),
    "a link to a folder without end": lambda folder: (shutil.rmtree(folder), folder.symlink_to(folder)),
}


HEAVY = (  # tens of megabytes each
    "a header of 100 MB",
    "a header of 90 MB of names",
    "60 MB of empty lists",
    "60 MB of empty lists as the manifest",
    "a JSON file of 100 MB",
)


class TooLong(BaseException):
    """The time of a case is over."""


def _give_up(*_):
    raise TooLong


def peak():
    """The most memory that this process has held since `reset`, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM")


def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def reset():
    Path("/proc/self/clear_refs").write_text("5")


def size(folder):
    """Bytes of the plain files of a checkpoint, or of what lies in its place."""
    files = folder.iterdir() if folder.is_dir() else []
    return sum(path.stat().st_size for path in files if path.is_file() and not path.is_symlink())


def load(work):
    """What happened, as JSON."""
    used, warnings = [], []

    def try_on(saved):
        """As a training state does: it has its own names and shapes, and kinds of values."""
        if saved.network.keys() != {"weight"} or saved.training.keys() != {"optimizer", "best"}:
            raise ValueError("it holds something else")
        if saved.training["best"] is not None or saved.network["weight"].shape != (4, 4):
            raise TypeError("of another kind")
        used.append(saved)

    signal.alarm(SECONDS)
    try:
        step = checkpoint.load_checkpoint(work, definition=DEFINITION, try_on=try_on, warn=warnings.append)
    except TooLong:
        return {"end": "it hangs"}
    except BaseException as error:
        return {"end": f"{type(error).__name__}: {error}"[:300]}
    finally:
        signal.alarm(0)
    weight = float(used[-1].network["weight"][0, 0]) if used else None
    return {"end": "loaded", "step": step, "type": type(step).__name__, "weight": weight, "warnings": warnings}


def main(place, names):
    signal.signal(signal.SIGALRM, _give_up)
    limit = 4 * 2**30  # so that a case without bound ends as MemoryError
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    save(place / "warm", 1)
    load(place / "warm")
    for number, name in enumerate(names):
        work = place / str(number) / "run" / "work"
        save(work, 1)
        folder = save(work, 2)
        CASES[name](folder)
        size_in_bytes = size(folder)
        reset()
        before = held()
        result = load(work)
        grown = max(0, peak() - before)
        print(json.dumps({"name": name, "bytes": size_in_bytes, "grown": grown, **result}), flush=True)
        shutil.rmtree(place / str(number))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
