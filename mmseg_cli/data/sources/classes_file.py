"""classes.yaml: what the masks of a dataset of one's own hold, and how its images are split.

Anything that is not understood is an error of one line that names the file and the key.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, ValidationError, field_validator, model_validator

from mmseg_cli.data.archives.file import shown
from mmseg_cli.data.labels import IGNORE
from mmseg_cli.errors import MmsegError
from mmseg_cli.params import Name, Section, read_yaml

FILE = "classes.yaml"
MAX_BYTES = 1 << 20
MAX_CLASSES = IGNORE  # 255 itself is ignore
TODO = "`mmseg prepare folder --help` shows a whole one"

Colour = tuple[int, int, int]

_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother, _short.maxlong = 2, 60, 60, 30


@dataclass(frozen=True)
class Classes:
    """What classes.yaml says.

    Attributes:
        name: of the dataset.
        names: of the classes, in training order.
        masks: what a pixel of a mask holds, the id of its class or its colour.
        ids: of the classes in a mask; -1 where a colour stands for the class.
        colours: of the classes, None where none is given.
        ignored_ids: that masks hold and nobody learns.
        ignored_colours: the same for masks of colours.
        lists: of each split, the file that lists its images, relative to the root.
        shares: of each split but train, its share of the images, from 0 to 1.
        seed: of the draw of the shares.
        mask_suffix: what follows the image's name in its mask's name.
    """

    name: str
    names: tuple[str, ...]
    masks: Literal["index", "colour"]
    ids: tuple[int, ...]
    colours: tuple[Colour | None, ...]
    ignored_ids: tuple[int, ...] = ()
    ignored_colours: tuple[Colour, ...] = ()
    lists: dict[str, str] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    mask_suffix: str = ""


def read_classes(path: Path) -> Classes:
    """Read and check a classes.yaml.

    Raises:
        MmsegError: it is missing, is not YAML, or says what cannot be; names the file and the first key at fault.
    """
    if not path.is_file():
        raise MmsegError(path, "missing: it says what the masks hold", TODO)
    if path.stat().st_size > MAX_BYTES:
        raise MmsegError(path, f"more than {MAX_BYTES >> 20} MiB, too large for a list of classes", TODO)
    try:
        value = read_yaml(path)
        if not isinstance(value, dict):
            raise MmsegError(path, "holds no keys", TODO)
        return _resolve(_Content.model_validate(value))
    except ValidationError as error:
        raise _first(path, error) from None
    except ValueError as error:
        raise MmsegError(path, str(error), f"correct it; {TODO}") from None
    except RecursionError:
        raise MmsegError(path, "is nested too deep", TODO) from None


def _first(path: Path, error: ValidationError) -> MmsegError:
    """The first of a model's faults as a user's error."""
    fault = error.errors(include_url=False)[0]
    key = ".".join(shown(str(part)[:60]) for part in fault["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if fault["type"] == "extra_forbidden":
        return MmsegError(path, f"unknown key {key}", f"correct or remove it{more}; {TODO}")
    if fault["type"] == "missing":
        return MmsegError(path, f"the key {key} is missing", f"add it{more}; {TODO}")
    got = "" if fault["type"] == "value_error" else f", got {_short.repr(fault['input'])}"
    message = fault["msg"].removeprefix("Value error, ")
    return MmsegError(path, f"{key}: {message}{got}" if key else f"{message}{got}", f"correct it{more}; {TODO}")


# ------------------------------------------------------------------------------------------- the file as it is written


def _colour(value: Any) -> Colour:
    """A colour, from three numbers or from '#rrggbb'."""
    if isinstance(value, str) and len(value) == 7 and value.startswith("#"):
        try:
            red, green, blue = bytes.fromhex(value[1:])
            return red, green, blue
        except ValueError:
            pass
    if isinstance(value, list) and len(value) == 3 and all(type(part) is int and 0 <= part <= 255 for part in value):
        return value[0], value[1], value[2]
    raise ValueError(f"a colour is [red, green, blue] of 0 to 255 or '#rrggbb', got {_short.repr(value)}")


def _class_name(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"the name of a class is text (quote it), got {_short.repr(value)}")
    if not value.strip() or value != value.strip() or not value.isprintable() or len(value) > 100:
        raise ValueError(f"the name of a class is one line of 1 to 100 characters, got {_short.repr(value)}")
    return value


def _entries(value: Any) -> list[Any]:
    """The classes as a list of entries, however they are written."""
    if isinstance(value, dict):
        return [_entry(key, content) for key, content in value.items()]
    if isinstance(value, list):
        return [entry if isinstance(entry, dict) else {"name": entry} for entry in value]
    raise ValueError(f"a list of names or of {{name, id, colour}} is expected, got {_short.repr(value)}")


def _entry(key: Any, content: Any) -> dict[Any, Any]:
    """One of `road: 7`, `road: [128, 64, 128]`, `road: {id: 7, colour: ...}`, `road:` and `7: road`."""
    if isinstance(content, dict):
        if "name" in content:
            raise ValueError(f"the class {_short.repr(key)} has two names, its key and `name`")
        return {"name": key, **content}
    if content is None:
        return {"name": key}
    if type(key) is int and isinstance(content, str):
        return {"name": content, "id": key}
    is_colour = isinstance(content, list) or (isinstance(content, str) and content.startswith("#"))
    return {"name": key, "colour" if is_colour else "id": content}


def _ignored(value: Any) -> list[Any]:
    """What to ignore as a list of ids and colours; the kind of the masks decides what three numbers mean."""
    values = value if isinstance(value, list) else [value]
    for one in values:
        if type(one) is not int:
            _colour(one)
        elif not 0 <= one <= 255:
            raise ValueError(f"an id is from 0 to 255, got {_short.repr(one)}")
    return values


def _list_or_share(value: Any) -> str | float:
    if isinstance(value, float) and 0 < value < 1:
        return value
    if isinstance(value, str) and value.isprintable() and value:
        parts = value.split("/")
        if "\\" not in value and not any(part in ("", ".", "..") or part.startswith(".") for part in parts):
            return value
        raise ValueError(f"a list file lies below the root, got {_short.repr(value)}")
    raise ValueError(f"a list file such as val.txt or a share between 0 and 1 is expected, got {_short.repr(value)}")


class _Class(Section):
    name: Annotated[str, PlainValidator(_class_name)]
    id: Annotated[int, Field(ge=0, le=255)] | None = None
    colour: Annotated[Colour, PlainValidator(_colour)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _spelling(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "color" not in value:
            return value
        if "colour" in value:
            raise ValueError("has both colour and color")
        return {("colour" if key == "color" else key): content for key, content in value.items()}


Share = Annotated[str | float, PlainValidator(_list_or_share)]


class _Splits(Section):
    train: Share | None = None
    val: Share
    test: Share | None = None
    seed: int | None = None

    @model_validator(mode="after")
    def _of_one_kind(self) -> _Splits:
        named = [value for value in (self.train, self.val, self.test) if value is not None]
        lists = [value for value in named if isinstance(value, str)]
        if lists and (len(lists) < len(named) or self.train is None or self.seed is not None):
            raise ValueError("list files go with train and val (and test), and without shares and seed")
        if len(set(lists)) < len(lists):
            raise ValueError("two splits have the same list file")
        if not lists and (self.train is not None or sum(value for value in named if isinstance(value, float)) >= 1):
            raise ValueError("shares go with val (and test) and leave something to train, which gets the rest")
        return self


class _Content(Section):
    name: Annotated[Name, Field(max_length=64)] = "folder"
    classes: Annotated[list[_Class], BeforeValidator(_entries)]
    ignore: Annotated[list[Any], PlainValidator(_ignored)] = Field(default_factory=list)
    masks: Literal["index", "colour"] | None = None
    splits: _Splits | None = None
    mask_suffix: str = ""

    @field_validator("masks", mode="before")
    @classmethod
    def _spelling(cls, value: Any) -> Any:
        return "colour" if value == "color" else value

    @field_validator("mask_suffix")
    @classmethod
    def _no_path(cls, value: str) -> str:
        if "/" in value or not value.isprintable():
            raise ValueError("what follows the image's name in the mask's, such as _mask, is expected")
        return value.removesuffix(".png")


# -------------------------------------------------------------------------------------------------- what it amounts to


def _resolve(content: _Content) -> Classes:
    """What the file says, with everything that it leaves open filled in.

    Raises:
        ValueError: its keys contradict each other.
    """
    classes = content.classes
    if not 1 <= len(classes) <= MAX_CLASSES:
        raise ValueError(f"classes: {len(classes)} classes, from 1 to {MAX_CLASSES} are possible")
    _no_twins("classes: the name", [one.name for one in classes])
    _no_twins("classes: the id", [one.id for one in classes if one.id is not None])
    _no_twins("classes: the colour", [one.colour for one in classes if one.colour is not None])
    masks = content.masks or _kind(classes)
    splits = content.splits
    named = {} if splits is None else {"train": splits.train, "val": splits.val, "test": splits.test}
    common: dict[str, Any] = {
        "name": content.name,
        "names": tuple(one.name for one in classes),
        "masks": masks,
        "colours": tuple(one.colour for one in classes),
        "lists": {split: value for split, value in named.items() if isinstance(value, str)},
        "shares": {split: value for split, value in named.items() if isinstance(value, float)},
        "seed": (splits.seed or 0) if splits is not None else 0,
        "mask_suffix": content.mask_suffix,
    }
    if masks == "index":
        return Classes(ids=_ids(classes), ignored_ids=_ignored_ids(content.ignore, _ids(classes)), **common)
    for position, one in enumerate(classes):
        if one.colour is None:
            raise ValueError(f"classes.{position}: {one.name!r} has no colour, and the masks hold colours")
    ids = tuple(-1 if one.id is None else one.id for one in classes)
    return Classes(ids=ids, ignored_colours=_ignored_colours(content.ignore, common["colours"]), **common)


def _no_twins(what: str, values: list[Any]) -> None:
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            shown = list(value) if isinstance(value, tuple) else value
            raise ValueError(f"{what} {_short.repr(shown)} stands twice")
        seen.add(value)


def _kind(classes: list[_Class]) -> Literal["index", "colour"]:
    """What the masks hold, from what the classes have."""
    coloured = any(one.colour is not None for one in classes)
    if coloured and any(one.id is not None for one in classes):
        raise ValueError("the classes have ids and colours: say `masks: index` or `masks: colour`")
    return "colour" if coloured else "index"


def _ids(classes: list[_Class]) -> tuple[int, ...]:
    """The id of each class in an index mask: its own, or its position where no class has one."""
    numbered = [one.id is not None for one in classes]
    if any(numbered) and not all(numbered):
        position = numbered.index(False)
        raise ValueError(f"classes.{position}: {classes[position].name!r} has no id, and others have one")
    ids = tuple(position if one.id is None else one.id for position, one in enumerate(classes))
    if IGNORE in ids:
        raise ValueError(
            f"classes.{ids.index(IGNORE)}: the id {IGNORE} is always ignored; "
            "for masks of black and white give the classes the colours [0, 0, 0] and [255, 255, 255]"
        )
    return ids


def _ignored_ids(values: list[Any], ids: tuple[int, ...]) -> tuple[int, ...]:
    for value in values:
        if type(value) is not int:
            raise ValueError(f"ignore: {_short.repr(value)} is a colour, and the masks hold ids")
        if value in ids:
            raise ValueError(f"ignore: {value} is also the id of a class")
    _no_twins("ignore: the id", values)
    return tuple(values)


def _ignored_colours(values: list[Any], colours: tuple[Colour, ...]) -> tuple[Colour, ...]:
    if len(values) == 3 and all(type(value) is int for value in values):
        values = [values]  # one colour, not three
    ignored: list[Colour] = []
    for value in values:
        if type(value) is int:
            raise ValueError(f"ignore: {value} is an id, and the masks hold colours")
        ignored.append(_colour(value))
        if ignored[-1] in colours:
            raise ValueError(f"ignore: {list(ignored[-1])} is also the colour of a class")
    _no_twins("ignore: the colour", ignored)
    return tuple(ignored)
