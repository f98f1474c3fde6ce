"""Checks of a model's files before diffusers or transformers see them: reading must run no code.

Which of their versions asks, refuses or runs differs, so nothing is left to them. Refused are code
in the tree, parts of other libraries than `LIBRARIES`, `auto_map` and kernels of the hub in any
configuration, pickles that would be read, and parts that send the readers to another model. What is
safe, and why, is in docs/security.md.
"""

from __future__ import annotations

import os
import pkgutil
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import ArgumentError, ModelError, shown
from ..reading import content, parsed

INDEX, MODULAR = "model_index.json", "modular_model_index.json"
CODE = (".py", ".pyc", ".pyd", ".so", ".dll", ".dylib")
# weights, which are read from safetensors where those lie beside them
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
OBJECTS = (".pkl", ".pickle", ".joblib", ".npz")  # never beside anything that would be read instead
LIBRARIES = ("diffusers", "transformers", "timonel", "timonel.compat")
NO_PICKLE = (
    "{file} is a pickle, which can run code when it is read; take the model's .safetensors, or"
    " convert it on a machine that trusts it: pipe.save_pretrained(folder)"
)
MOST_FILES = 20_000  # of a model
MOST_INDEX, MOST_JSON = 2**20, 2**26  # bytes; vocabularies of the largest tokenizers have 2**25
# of a configuration; a tokenizer of 256,000 words and their merges has about 2,000,000
MOST_VALUES = 8_000_000
NESTED = 4  # pipelines inside each other
NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)
CODED = "auto_map"  # transformers and diffusers: which class of which file of the model's own
# transformers: a kernel of the hub has "/" in its name
KERNELS = ("attn_implementation", "experts_implementation")


def refused(name: str, why: str) -> ModelError:
    """The error for a model that is not loaded."""
    return ModelError(f"cannot load the model {name!r}: {why}")


def code_free(name: str, files: Iterable[str]) -> None:
    """Raise `ModelError` where one of a model's files, relative to its folder, is code."""
    code = sorted(file for file in files if PurePosixPath(file).suffix.lower() in CODE)
    if code:
        more = f" and {len(code) - 1} more" if len(code) > 1 else ""
        raise refused(
            name,
            f"it brings code of its own ({code[0]}{more}), which is never run here; load a copy of"
            " it without, or build the pipeline yourself and give the object",
        )


def folder(name: str, path: Path, cls: Any = None) -> tuple[list[str], list[str]]:
    """The parts that a model's folder has, and those that it says it leaves out.

    Args:
        name: of the model, for messages.
        path: the folder.
        cls: the pipeline class it is read into; None is the one that its index names.

    Raises:
        ModelError: it is no such folder, or reading it would run code.
    """
    if not (path / INDEX).is_file():
        held = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        more = "; one of snapshots/ is the model's" if (path / "snapshots").is_dir() else ""
        raise refused(name, f"the folder has no {INDEX}, it holds {held}{more}")
    code_free(name, (file.relative_to(path).as_posix() for file in _files(name, path)))
    if cls is not None:
        _unconnected(name, path, cls)
    return _pipeline(name, path, 0)


def modular_folder(name: str, path: Path) -> list[str]:
    """The parts that the folder of a modular pipeline has, each in a folder of its name.

    Args:
        name: of the model, for messages.
        path: the folder, with a `MODULAR` index.

    Raises:
        ModelError: reading it would run code, or a part lies elsewhere.
    """
    code_free(name, (file.relative_to(path).as_posix() for file in _files(name, path)))
    parts, _ = index(name, path / MODULAR)
    for file in path.glob("*.json"):
        _configuration(name, file, file.name)
    for part in parts:
        inside = path / part
        if not inside.is_dir():
            raise refused(
                name,
                f"its part {part} is not in the folder; load it yourself, give it to the pipeline"
                " with update_components(…), and give the object",
            )
        if (inside / INDEX).is_file() or (inside / MODULAR).is_file():
            raise refused(name, f"its part {part} is a pipeline; build it and give the object")
        _part(name, path, list(_files(name, inside)), nested=False)
    return parts


def index(name: str, path: Path) -> tuple[list[str], list[str]]:
    """The parts that an index names, and those that it says the model leaves out.

    Args:
        name: of the model, for messages.
        path: of the index.

    Raises:
        ModelError: it cannot be read, or names a class of another library than `LIBRARIES`.
    """
    content = read(name, path, MOST_INDEX)
    cls = content.get("_class_name")
    if not isinstance(cls, str) or NAME.fullmatch(cls) is None:
        what = "no pipeline class" if cls is None else f"code of its own ({shown(cls)})"
        raise refused(name, f"its {path.name} names {what}; build it and give the object")
    entries = {k: v for k, v in content.items() if isinstance(v, list) and k[:1] != "_"}
    absent = [key for key, value in entries.items() if value[:2] == [None, None]]
    parts = [key for key in entries if key not in absent]
    for part in parts:
        if not part.isidentifier():
            raise refused(name, f"its {path.name} has a part {part!r}, which is no name")
        _known(name, f"{path.name}: {part}", entries[part])
    return parts, absent


def read(name: str, path: Path, most: int = MOST_JSON) -> dict[str, Any]:
    """A configuration as a dictionary.

    Args:
        name: of the model, for messages.
        path: of the file.
        most: bytes that it may have.

    Raises:
        ModelError: it is no configuration, or larger or deeper than any is.
    """
    content = _parsed(name, path, _bytes(name, path, most))
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise refused(name, f"its {path.name} cannot be read: it holds {kind}, not a configuration")
    return content


# -- what a folder holds -------------------------------------------------------------------------
def _pipeline(name: str, path: Path, depth: int) -> tuple[list[str], list[str]]:
    """As `folder`, for a pipeline that lies `depth` pipelines deep."""
    if depth > NESTED:
        raise refused(name, f"it has pipelines inside each other, more than {NESTED} deep")
    parts, absent = index(name, path / INDEX)
    _unconnected(name, path, None)
    if (path / MODULAR).is_file():
        index(name, path / MODULAR)
    for part in parts:
        inside = path / part
        nested = (inside / INDEX).is_file()
        if not nested and (inside / MODULAR).is_file():
            raise refused(
                name, f"its part {part} is a modular pipeline; build it and give the object"
            )
        if nested:
            _pipeline(name, inside, depth + 1)
        if inside.is_dir():
            files = list(_files(name, inside))
        else:  # models of one network keep it beside the index
            files = [file for file in path.iterdir() if not file.is_dir()]
        _part(name, path, files, nested=depth > 0 or nested)
    return parts, absent


def _unconnected(name: str, path: Path, cls: Any) -> None:
    """Raise `ModelError` where diffusers reads in a README which other models it loads too."""
    import diffusers

    try:
        cls = cls or getattr(diffusers, read(name, path / INDEX, MOST_INDEX)["_class_name"], None)
    except (RuntimeError, ImportError):  # diffusers cannot import it, so loading it will say why
        return
    if getattr(cls, "_load_connected_pipes", False) and (path / "README.md").exists():
        raise refused(
            name,
            f"its README makes diffusers load other models too ({cls.__name__}); load each by name",
        )


def _part(name: str, root: Path, files: list[Path], nested: bool) -> None:
    """Raise `ModelError` where reading these files could run code.

    A nested pipeline is read with pickles too.
    """
    safe = {file.parent for file in files if file.suffix.lower() == ".safetensors"}
    for file in files:
        suffix, place = file.suffix.lower(), file.relative_to(root).as_posix()
        if not file.is_file():
            raise refused(name, f"{place} is no plain file")
        if suffix in OBJECTS or (suffix in PICKLES and (nested or file.parent not in safe)):
            raise refused(name, NO_PICKLE.format(file=place))
        if suffix == ".npy" and _has_objects(file):
            raise refused(name, NO_PICKLE.format(file=place))
        if file.name.lower() == "adapter_config.json":
            raise refused(
                name,
                f"{place} makes transformers read another model; merge the adapter and save it"
                " again",
            )
        if suffix == ".json":
            _configuration(name, file, place)


def _configuration(name: str, file: Path, place: str) -> None:
    """Raise `ModelError` where a configuration names code of the model's own or of the hub."""
    data = _bytes(name, file, MOST_JSON)
    for key, value in _entries(_parsed(name, file, data)):
        if key == CODED and value:
            raise refused(
                name,
                f"{place} has {CODED}={shown(value)}, code that comes with a model and is never run"
                " here; load a copy of it without, or build the pipeline yourself and give the"
                " object",
            )
        if key.lstrip("_").removesuffix("_internal") in KERNELS and "/" in str(value):
            raise refused(
                name, f"{place} has {key}={shown(value)}, code of the hub; take the entry out"
            )


def _entries(data: Any) -> Iterator[tuple[str, Any]]:
    """Every key of every object in some JSON with its value, without recursion."""
    waiting = [data]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from one.items()
            one = list(one.values())
        if isinstance(one, list):
            waiting += [value for value in one if isinstance(value, (dict, list))]


def _known(name: str, place: str, entry: list[Any]) -> None:
    """Raise `ModelError` unless the entry of an index names a class of `LIBRARIES`.

    The index of a modular pipeline has a third word for each part, with the same again.
    """
    words = [word for word in entry[:2] if isinstance(word, (str, type(None)))]
    if len(entry) not in (2, 3) or len(words) != 2:
        raise refused(name, f"{place}={shown(entry)} is no library and class")
    library, cls = words
    if library is not None and library not in LIBRARIES and library not in _pipelines():
        raise refused(
            name,
            f"{place} is of {library!r}, code of its own or of another package; a part is of"
            " diffusers, transformers or timonel: build the pipeline yourself and give the object",
        )
    if cls is not None and NAME.fullmatch(cls) is None:
        raise refused(name, f"{place}={shown(entry)} is no class")
    hint = entry[2].get("type_hint") if len(entry) == 3 and isinstance(entry[2], dict) else None
    if isinstance(hint, list):
        _known(name, f"{place}, type_hint", hint[:2])


@cache
def _pipelines() -> frozenset[str]:
    """Names of diffusers' folders of pipelines, which an index may give as a part's library."""
    from diffusers import pipelines

    return frozenset(m.name for m in pkgutil.iter_modules(pipelines.__path__) if m.ispkg)


# -- reading -------------------------------------------------------------------------------------
def _files(name: str, path: Path) -> Iterator[Path]:
    """Everything below a folder that is none; folders behind links too, each once."""
    seen, count, waiting = set[str](), 0, [path]
    while waiting:
        here = waiting.pop()
        if (real := os.path.realpath(here)) in seen:
            continue
        seen.add(real)
        try:
            entries = sorted(here.iterdir())
        except OSError as error:
            raise refused(name, f"{str(here)!r} cannot be read: {error.strerror}") from error
        count += len(entries)
        if count > MOST_FILES:
            raise refused(
                name,
                f"the folder holds more than {MOST_FILES:,} files, so it is no model's; name"
                " that one",
            )
        waiting += [one for one in entries if one.is_dir()]
        yield from (one for one in entries if not one.is_dir())


def _bytes(name: str, path: Path, most: int) -> bytes:
    try:
        return content(path, most=most)
    except ArgumentError as error:
        raise refused(name, str(error)) from error


def _parsed(name: str, path: Path, data: bytes) -> Any:
    try:
        return parsed(data.decode("utf-8"), finite=False, items=MOST_VALUES, once=False)
    except ValueError as error:
        raise refused(name, f"its {path.name} cannot be read: {error}") from error


def _has_objects(path: Path) -> bool:
    """Whether numpy would have to unpickle the file, or cannot read it."""
    import numpy as np

    try:
        np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError):
        return True
    return False
