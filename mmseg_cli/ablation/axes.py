"""The rows of a grid from its axes: blocks, layouts, what training starts from, and any parameter.

A row is an entry of `variants`, and its name says how it differs from the preset: `mmbconv-pyramid-scratch`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import yaml
from pydantic import ValidationError

from mmseg_cli.errors import MmsegError
from mmseg_cli.names import BLOCK_NAMES, LADDER, LAYOUT_NAMES, unknown_name
from mmseg_cli.params import Network, Params, Section, Variant, parse_yaml

MATCHES = {"parameters": "params", "macs": "macs", "time": "time"}  # and how a row's name ends
STARTS = ("scratch", "imagenet", "mapillary")
SECTIONS = ("network", *LADDER)
_ABSENT, _NO_MAPPING = object(), object()  # in place of a value, which may be None

Entry = dict[str, Any]  # of `variants`, as it stands in a params.yaml


@dataclass(frozen=True)
class Setting:
    """One `--set KEY=VALUE,VALUE`: a parameter and the values that it takes.

    Attributes:
        path: such as ("train", "augment", "flip").
        values: at least one.
    """

    path: tuple[str, ...]
    values: list[Any]


def setting(text: str) -> Setting:
    """Read `train.learning_rate=0.01,0.02`; values are YAML, such as `{k: 5, alpha: 0.5}` or null.

    Raises:
        MmsegError: it is no key with values, or the key is of no section that a variant may change.
    """
    key, equals, values = text.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or len(path) < 2 or not all(path):
        todo = "write it as --set SECTION.KEY=VALUE, such as --set train.learning_rate=0.01,0.02"
        raise MmsegError("--set", f"{text!r} is no key with values", todo)
    if path[0] not in SECTIONS:
        raise unknown_name("--set", path[0], SECTIONS)
    if path[0] == "network" and path[1] in ("layout", "block"):
        raise MmsegError("--set", f"{key} has an option of its own", f"use --{path[1]}s")
    if path[0] == "network" and path[1] not in Network.model_fields:
        raise unknown_name("--set network", path[1], [name for name in Network.model_fields if name != "layout"])
    try:
        found = parse_yaml(f"[{values}]")
    except yaml.YAMLError:
        found = None
    if not isinstance(found, list) or not found:
        raise MmsegError("--set", f"the values of {key}, {values!r}, are not YAML", "separate them by commas")
    return Setting(path, found)


def rows(
    params: Params,
    *,
    blocks: Sequence[str],
    layouts: Sequence[str] | None,
    starts: Sequence[str] | None,
    settings: Sequence[Setting],
) -> dict[str, Entry]:
    """The entries of `variants` for every combination, by name, in order; the last axis varies fastest.

    Args:
        params: the preset.
        blocks: names of its variants, of blocks, or `blocks.module:Class`.
        layouts, starts: None leaves them as they are.
        settings: further axes.

    Raises:
        MmsegError: a name that is not known, the same parameter or row twice, or a row's name that stands for something
            else.
    """
    _require_distinct(settings)
    for option, chosen, known in (("--layouts", layouts, LAYOUT_NAMES), ("--starts", starts, STARTS)):
        for name in chosen or []:
            if name not in known:
                raise unknown_name(option, name, known)
    axes: list[list[tuple[tuple[str, ...], Any]]] = [
        [(("layout",), name) for name in layouts or []],
        [(("start",), name) for name in starts or []],
        *([(one.path, value) for value in one.values] for one in settings),
    ]
    found: dict[str, Entry] = {}
    for block in blocks:
        base, entry = _base(params, block)
        for changes in product(*(axis for axis in axes if axis)):
            name, row = base, entry
            for path, value in changes:
                whole = _whole(params, path, value)
                if not _as_it_is(params, row, path, whole):
                    name, row = f"{name}-{_suffix(path, value)}", _changed(row, path, whole)
            if name in found:
                raise MmsegError("the grid", f"has the row {name} twice", "name each block and value once")
            if name in params.variants and row != entry_of(params, name):
                what = f"stands in variants for something else than {_in_words(row)}"
                raise MmsegError(f"variants.{name}", what, "rename that variant")
            found[name] = row
    return found


def network_of(params: Params, entry: Entry) -> dict[str, Any]:
    """The arguments of an entry's network."""
    return params.network.model_dump() | Variant.model_validate(entry).network()


def with_match(entry: Entry, width: int, expansion: float, kind: str) -> Entry:
    """An entry of another size, which says what that was solved for."""
    return entry | {"match": kind, "width": width, "expansion": expansion}


def matched_name(params: Params, name: str, kind: str) -> str:
    """The name of the row that is one of `rows` with a width solved for.

    Raises:
        MmsegError: it stands for something else.
    """
    found = f"{name}-{MATCHES[kind]}"
    if found in params.variants and params.variants[found].match != kind:
        raise MmsegError(
            f"variants.{found}", f"stands in variants for something else than match {kind}", "rename that variant"
        )
    return found


def solved_before(params: Params, name: str, unmatched: Entry, *, baseline: str) -> bool:
    """Whether the present grid has a row of equal step time that answers the same question.

    Measured again it would get another width by noise alone, and be trained again for it.

    Args:
        params: the preset.
        name: of the row.
        unmatched: the entry that it is to be solved from.
        baseline: the first row of the wanted grid.
    """
    present = params.ablate.variants
    if name not in present or present[0] != baseline or params.variants[name].match != "time":
        return False
    solved = ("match", "width", "expansion")
    old, new = (
        {key: value for key, value in entry.items() if key not in solved}
        for entry in (entry_of(params, name), unmatched)
    )
    return old == new


def blocks_of(params: Params) -> list[str]:
    """The blocks of the present grid, each once, as `rows` takes them."""
    variants = [params.variants[name] for name in params.ablate.variants]
    named = [variant.block or variant.class_ or "" for variant in variants]
    return list(dict.fromkeys(named))


def entry_of(params: Params, name: str) -> Entry:
    """A variant as it stands in the preset."""
    return params.variants[name].model_dump(by_alias=True, exclude_none=True, exclude_defaults=True)


def _base(params: Params, block: str) -> tuple[str, Entry]:
    """The name and the entry of a row that changes nothing but the block."""
    if block in params.variants:
        return block, entry_of(params, block)
    plain = {"class": block} if ":" in block else {"block": block}
    if same := next((name for name in params.variants if entry_of(params, name) == plain), None):
        return same, plain
    if ":" in block:
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", block.partition(":")[2]).lower(), plain
    if block in BLOCK_NAMES:
        return block, plain
    known = [*params.variants, *(name for name in BLOCK_NAMES if name not in params.variants)]
    raise unknown_name("--blocks", block, known)


def _require_distinct(settings: Sequence[Setting]) -> None:
    """Raise MmsegError where two settings are about the same parameter."""
    for pair in combinations(settings, 2):
        outer, inner = (".".join(path) for path in sorted((one.path for one in pair), key=len))
        if outer == inner:
            raise MmsegError("--set", f"{outer} is given twice", "separate its values by commas")
        if inner.startswith(f"{outer}."):
            raise MmsegError("--set", f"{inner} is a part of {outer}, which is given as well", "give one of the two")


def _whole(params: Params, path: tuple[str, ...], value: Any) -> Any:
    """A value; where it is a mapping, as of `train.loss`, with the preset's keys that it puts back to their defaults.

    Raises:
        MmsegError: it lacks a key of the section that it takes the place of, or has one that is not known there.
    """
    section: Any = params
    for key in path:
        section = getattr(section, key, None)
    if not isinstance(value, dict) or not isinstance(section, Section):
        return value
    try:
        whole = type(section).model_validate(value).model_dump()
    except ValidationError as error:
        key = ".".join(path)
        todo = f"give the whole of it, or single keys by their paths, as in --set {key}.{next(iter(value), 'KEY')}=..."
        raise MmsegError("--set", f"{_in_words(value)} is not the whole of {key}", todo) from error
    before = section.model_dump()
    return {key: new for key, new in whole.items() if key in value or new != before[key]}


def _place(path: tuple[str, ...]) -> tuple[str, ...]:
    """Where a parameter stands in an entry: those of `network` at its top."""
    return path[1:] if path[0] == "network" else path


def _as_it_is(params: Params, row: Entry, path: tuple[str, ...], value: Any) -> bool:
    """Whether a row has the value already, by itself or as the preset has it."""
    if path == ("start",):
        return bool(row.get("start", _start(params)) == value)
    own = _value(row, _place(path))
    if own is not _ABSENT:
        return bool(own == value)
    section = params.network if path[0] in ("network", "layout") else getattr(params, path[0])
    found = _value(section.model_dump(), path if path[0] == "layout" else path[1:])
    if isinstance(value, Mapping) and isinstance(found, Mapping):
        return all(found.get(key, _ABSENT) == new for key, new in value.items())
    return bool(found == value)  # absent, it is a wrong key, which reading the parameters back will name


def _value(values: Any, path: tuple[str, ...]) -> Any:
    """A nested value; _ABSENT where a key is not there, _NO_MAPPING where a mapping's place is taken."""
    for key in path:
        if not isinstance(values, Mapping):
            return _NO_MAPPING
        if key not in values:
            return _ABSENT
        values = values[key]
    return values


def _start(params: Params) -> str:
    """What training starts from where a variant says nothing."""
    if params.pretrain_mapillary.steps:
        return "mapillary"
    return "imagenet" if params.pretrain_imagenet.steps else "scratch"


def _changed(row: Entry, path: tuple[str, ...], value: Any) -> Entry:
    *folders, last = _place(path)
    out = dict(row)
    inner = out
    for key in folders:
        inner[key] = dict(inner[key]) if isinstance(inner.get(key), Mapping) else {}
        inner = inner[key]
    inner[last] = value
    if "match" in row and path[0] in ("network", "layout"):
        del out["match"]  # what was solved for holds for that network alone
    return out


def _suffix(path: tuple[str, ...], value: Any) -> str:
    """The part of a name that says what differs; a name reaches a shell and file names."""
    text = str(value)
    if len(path) > 1:
        rung = f"{path[0].removeprefix('pretrain_')}-" if path[0].startswith("pretrain_") else ""
        text = f"{rung}{path[-1]}-{_in_words(value)}"
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_")


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_in_words(inner)}" for key, inner in value.items())
    match value:
        case None:
            return "none"
        case True:
            return "on"
        case False:
            return "off"
    return str(value)
