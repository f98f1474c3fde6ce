"""Models by name: a shipped one, a folder in diffusers' format, a single file, or a hub name.

Weights are read from safetensors only. Pickles, and code that comes with a model, are refused: both
would run. `trust.py` looks at what a folder or a repository holds before any library reads it; this
is the one way in.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

import torch

from .. import words, zoo
from ..errors import ArgumentError, ModelError, TimonelError, UnknownName
from . import modular_folder, trust
from .trust import INDEX, NO_PICKLE, PICKLES, refused

if TYPE_CHECKING:
    from typing_extensions import Unpack

DIFFUSERS = tuple(int(n) for n in version("diffusers").split(".")[:2])
DTYPE = "dtype" if DIFFUSERS >= (0, 42) else "torch_dtype"  # the argument's name there
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WEIGHTS = re.compile(r"(?:diffusion_pytorch_model|model)(?:\.(\w+?))?(?:-\d+-of-\d+)?\.safetensors")
HUB_NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
# of a hub model, for a single file
CONFIGURATION = ["**/*.json", "*.json", "*.txt", "**/*.txt", "**/*.model"]

Dtype: TypeAlias = str | torch.dtype


class Loading(TypedDict, total=False):
    """How a model is loaded by name; a pipeline object takes none of these.

    Attributes:
        dtype: "fp32" (the default), "fp16", "bf16", torch's names for them or a torch dtype; or a
            dict of these by part of the pipeline, with "default" for the others.
        torch_dtype: the same under diffusers' former name.
        device: of the whole pipeline, such as "cuda".
        variant: which files, such as "fp16" for *.fp16.safetensors.
        revision: a branch, tag or commit on the hub.
        cache_dir: where the hub's files are kept.
        pipeline_class: a class of diffusers or its name, in place of the one the model names.
        config: of a single file, the folder or hub name with its configuration; by default the one
            that diffusers knows for such a file.
    """

    dtype: Dtype | dict[str, Dtype] | None
    torch_dtype: Dtype | dict[str, Dtype] | None
    device: str | torch.device | None
    variant: str | None
    revision: str | None
    cache_dir: str | PathLike[str] | None
    pipeline_class: str | type | None
    config: str | PathLike[str] | None


def pipeline_of(pipe: Any, **loading: Unpack[Loading]) -> Any:
    """A pipeline object as it is, or the pipeline of a name; see `load`."""
    if isinstance(pipe, (str, PathLike)):
        return load(pipe, **loading)
    if options := _given(loading):
        raise ArgumentError(
            f"a pipeline object is used as it is: {', '.join(options)} go with a model's name only"
        )
    return pipe


@contextmanager
def _silent() -> Iterator[None]:
    """No messages or progress bars of the libraries."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    libraries = (of_diffusers, of_transformers)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (verbosity, bars) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()


def load(name: str | PathLike[str], **loading: Unpack[Loading]) -> Any:
    """A diffusers pipeline by name.

    Args:
        name: of a shipped model, a folder, a .safetensors file or a model on the hub.
        **loading: see `Loading`.

    Raises:
        ArgumentError: an option is unknown, or does not go with that kind of name.
        ModelError: the model is not there, cannot be read, or would have to be unpickled.
    """
    text, options = os.fspath(name), _given(loading)
    dtype, device = _dtype(options), _device(options.pop("device", None))
    cls = _class(options.pop("pipeline_class", None))
    pipe = _read(text, cls, options, dtype)
    known = [*pipe.components, "default"]
    for part in dtype if isinstance(dtype, dict) else ():
        if part not in known:
            raise UnknownName(f"part of {type(pipe).__name__}", part, known)
    with _reading(text):
        pipe = zoo.finish(pipe, text) if text in zoo.MODELS else pipe
        return pipe if device is None else pipe.to(device)


def _read(name: str, cls: Any, options: dict[str, Any], dtype: Any) -> Any:
    """The pipeline of a name, by the kind of name that it is."""
    path = zoo.whole(name) if name in zoo.MODELS else Path(name).expanduser()
    suffix, named = path.suffix.lower(), {DTYPE: dtype}
    if path.is_dir():
        _only(options, "a folder", "variant", "cache_dir")
        with _silent() if name in zoo.MODELS else nullcontext():
            return _folder(name, path, cls, options, named)
    if suffix in PICKLES:
        raise refused(name, NO_PICKLE.format(file=f"{path.suffix!r}"))
    if suffix == ".safetensors":
        _only(options, "a single file", "config", "cache_dir")
        if isinstance(dtype, dict):
            raise ArgumentError("a single file is read in one dtype, not in one for each part")
        return _file(name, path, cls, options, named)
    if HUB_NAME.fullmatch(name):
        _only(options, "a name on the hub", "variant", "revision", "cache_dir")
        return _hub(name, cls, options, named)
    raise refused(name, f"there is no such folder {_usual(name)}")


def _given(loading: Loading) -> dict[str, Any]:
    """The options of a call. Raises `UnknownName` for others than `Loading` has."""
    for key in loading:
        if key not in Loading.__annotations__:
            raise UnknownName("option of loading a model", key, Loading.__annotations__)
    return {key: value for key, value in loading.items() if value is not None}


# -- the kinds of names --------------------------------------------------------------------------
def _folder(name: str, path: Path, cls: Any, options: dict[str, Any], named: dict[str, Any]) -> Any:
    if cls is None and modular_folder.is_one(path):
        with _reading(name):
            return modular_folder.read(name, path, named[DTYPE], options)
    parts, absent = trust.folder(name, path, cls)
    _has_variant(name, options.get("variant"), {part: _variants(path / part) for part in parts})
    with _reading(name):
        # diffusers accepts that a part is absent only where its class calls the part optional
        objects: dict[str, Any] = dict.fromkeys(absent)
        if name in zoo.MODELS:
            objects |= zoo.parts(name, named[DTYPE])
        return _any(cls).from_pretrained(
            str(path), use_safetensors=True, **objects, **named, **options
        )


def _has_variant(name: str, wanted: Any, variants: dict[str, set[str | None]]) -> None:
    """Raise `ModelError` where no part has the variant, or some part has others only."""
    known = sorted({v for some in variants.values() for v in some if v})
    if wanted is not None and wanted not in known:
        raise refused(
            name,
            f"it has no files of the variant {wanted!r} (variants: {', '.join(known) or 'none'})",
        )
    for part, some in variants.items():
        if some and not some & {None, wanted}:
            raise refused(
                name,
                f"{part} has files of a variant only: say variant={sorted(map(str, some))[0]!r}",
            )


def _hub(name: str, cls: Any, options: dict[str, Any], named: dict[str, Any]) -> Any:
    """A repository of the hub; its list of files and its index are checked before a download."""
    variant, cache = options.get("variant"), options.get("cache_dir")
    with _reading(name, f"; there is no folder of that name either {_usual(name)}"):
        snapshot = _begun(name, options.get("revision"), cache)
        path = _any(cls).download(
            name, revision=snapshot.name, cache_dir=cache, variant=variant, use_safetensors=True
        )
        options = {} if variant is None else {"variant": variant}
        pipe = _folder(name, Path(path), cls, options, named)
    pipe.register_to_config(_name_or_path=name)
    return pipe


def _begun(name: str, revision: str | None, cache: Any) -> Path:
    """The cache's folder of a hub model's commit, with its index, once its files are checked."""
    from huggingface_hub import HfApi, errors, hf_hub_download

    hub, files = HfApi(), list[str]()
    fetch = partial(hf_hub_download, name, INDEX, revision=revision, cache_dir=cache)
    try:
        info = hub.model_info(name, revision=revision)
    except Exception as error:  # offline: what the cache holds is looked at before it is read
        try:
            index = Path(fetch(local_files_only=True))
        except errors.LocalEntryNotFoundError as absent:
            raise absent from error
    else:
        index = Path(fetch())
        if info.sha not in (None, index.parent.name):  # the branch has moved on meanwhile
            info = hub.model_info(name, revision=index.parent.name)
        files = [file.rfilename for file in info.siblings or ()]
    trust.code_free(name, files)
    trust.index(name, index)
    return index.parent


def _file(name: str, path: Path, cls: Any, options: dict[str, Any], named: dict[str, Any]) -> Any:
    """A checkpoint that holds all weights of a pipeline under their original names."""
    from huggingface_hub import snapshot_download

    if not path.is_file():
        raise refused(name, "there is no such file; download it first")
    with _reading(name):
        config = str(options.pop("config", None) or _config(path))
    folder = Path(config).expanduser()
    if not folder.is_dir():
        remedy = f"; give config=, a folder with the configuration, where {config!r} cannot be had"
        with _reading(name, remedy):
            _begun(config, None, options.get("cache_dir"))
            folder = Path(snapshot_download(config, allow_patterns=CONFIGURATION, **options))
    trust.folder(config, folder, cls)
    with _reading(name):
        cls = cls or _class(trust.read(config, folder / INDEX)["_class_name"])
        if not hasattr(cls, "from_single_file"):
            raise refused(
                name,
                f"diffusers reads no single files for {cls.__name__}; give its folder or hub name",
            )
        return cls.from_single_file(str(path), config=str(folder), **options, **named)


def _config(path: Path) -> str:
    """The hub name of the configuration that diffusers knows for a checkpoint with such weights."""
    from diffusers.loaders import single_file_utils as known
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        shapes = {
            name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in names
        }
    kind = known.infer_diffusers_model_type(shapes)
    # diffusers' answer where it knows none
    if kind == "v1" and known.CHECKPOINT_KEY_NAMES["v1"] not in shapes:
        raise ModelError(
            f"cannot load the model {str(path)!r}: diffusers does not know these weights; a LoRA or"
            " a single network goes into a pipeline with diffusers' own loaders, for a whole model"
            " give config="
        )
    return str(known.DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"])


# -- options -------------------------------------------------------------------------------------
def _variants(folder: Path) -> set[str | None]:
    """The variants of the weights in a part's folder; None stands for the plain ones."""
    matches = (WEIGHTS.fullmatch(path.name) for path in folder.glob("*.safetensors"))
    return {match[1] for match in matches if match}


def _only(options: dict[str, Any], what: str, *fitting: str) -> None:
    for key, value in options.items():
        if key not in fitting:
            raise ArgumentError(
                f"{key}={value!r} does not go with {what}, which takes {', '.join(fitting)}"
            )


def _dtype(options: dict[str, Any]) -> Any:
    """The dtype, or one for each part; taken out of the options."""
    values = [options.pop(key) for key in ("dtype", "torch_dtype") if key in options]
    dtypes = [
        {part: _torch_dtype(v) for part, v in value.items()}
        if isinstance(value, dict)
        else _torch_dtype(value)
        for value in values
    ]
    if len(dtypes) > 1 and dtypes[0] != dtypes[1]:
        raise ArgumentError(f"dtype={values[0]} and torch_dtype={values[1]} disagree; give one")
    return dtypes[0] if dtypes else torch.float32


def _torch_dtype(dtype: Any) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    word = words.dtype(dtype)
    if word not in DTYPES:
        raise UnknownName("dtype", dtype, DTYPES, words.DTYPES)
    return DTYPES[word]


def _device(device: Any) -> torch.device | None:
    if device is None:
        return None
    try:
        usable = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ArgumentError(
            f"device {str(device)!r} cannot be used here: {reason[:120]}; leave device out"
        ) from error
    if usable.type == "meta":
        raise ArgumentError(
            "device 'meta' holds no numbers, so nothing can be computed there; leave device out"
        )
    return usable


def _class(wanted: Any) -> Any:
    """A pipeline class of diffusers by its name; None stays None."""
    import diffusers

    if wanted is None:
        return None
    cls = getattr(diffusers, wanted, None) if isinstance(wanted, str) else wanted
    if isinstance(cls, type) and issubclass(cls, diffusers.DiffusionPipeline):
        return cls
    names = [name for name in dir(diffusers) if name.endswith("Pipeline")]
    raise UnknownName("pipeline class of diffusers", wanted, names)


def _any(cls: Any) -> Any:
    from diffusers import DiffusionPipeline

    return cls or DiffusionPipeline


# -- errors --------------------------------------------------------------------------------------
@contextmanager
def _reading(name: str, remedy: str = "") -> Iterator[None]:
    """Raise as `ModelError` what the readers raise, whose errors have no common base."""
    try:
        yield
    except TimonelError:
        raise
    except Exception as error:
        raise refused(name, _why(error) + remedy) from error


def _why(error: BaseException) -> str:
    """What went wrong, and what mends it, where the hub was involved."""
    from huggingface_hub import constants, errors

    reasons = {
        errors.GatedRepoError: (
            "it is gated: accept its licence on its page of the hub, then `hf auth login`"
        ),
        errors.RevisionNotFoundError: "the hub has no such revision of it",
        errors.RepositoryNotFoundError: (
            "the hub shows no such model, at least not without `hf auth login`"
        ),
    }
    chain = _chain(error)
    for kind, reason in reasons.items():
        if any(isinstance(one, kind) for one in chain):
            return reason
    if not any(isinstance(one, errors.LocalEntryNotFoundError) for one in chain):
        return _line(error)
    while error.__cause__ is not None:
        error = error.__cause__
    offline = constants.HF_HUB_OFFLINE
    said = "HF_HUB_OFFLINE is set" if offline else f"the hub was not reached ({_line(error)})"
    return f"{said}, and the hub's cache does not hold all of its files"


def _usual(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), zoo.MODELS, n=1, cutoff=0.7)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return (
        f"({hint}shipped models: {', '.join(zoo.MODELS)}; else a folder in diffusers' format, a"
        " file or a hub name)"
    )


def _chain(error: BaseException) -> list[BaseException]:
    """An error and all that led to it."""
    chain: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop(0)
        if one is not None and one not in chain:
            chain.append(one)
            waiting += [one.__cause__, one.__context__]
    return chain


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
