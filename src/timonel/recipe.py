"""A recipe: everything needed to make the same picture again, as plain data."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from . import guidance as guide
from . import noise as noises
from . import process as processes
from . import solvers
from .errors import ArgumentError, plain, shown
from .errors import path as file
from .files import replacing
from .guidance import Guidance
from .sampler import Sampler

if TYPE_CHECKING:
    from PIL import Image

    from .pipelines.helm import Helm

KEY = "timonel"  # name of the text chunk in a PNG
PACKAGES = ("timonel", "torch", "diffusers", "transformers")


class Data(BaseModel):
    """Plain data whose errors are timonel's."""

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**plain(given))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or type(self).__name__
            raise ArgumentError(
                f"{where}={shown(first['input'])} cannot be in a {type(self).__name__}: {first['msg']}"
            ) from error


class GuidanceData(Data):
    """`Guidance` as data; `start` and `stop` are None where the interval is open, `forecast` where there is none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: float | list[float] | None = None
    start: float | None = None
    stop: float | None = None
    unit: str = "ratio"
    rescale: float = 0.0
    forecast: int | None = None
    order: int | None = None

    @classmethod
    def of(cls, made: Guidance) -> GuidanceData:
        scale = list(made.scale) if isinstance(made.scale, tuple) else made.scale
        ends = {k: v if math.isfinite(v) else None for k, v in (("start", made.start), ("stop", made.stop))}
        forecast, order = (made.forecast, made.order) if made.forecast > 1 else (None, None)
        return cls(scale=scale, unit=made.unit, rescale=made.rescale, forecast=forecast, order=order, **ends)

    def guidance(self) -> Guidance:
        """The guidance, checked by `cfg`."""
        high = self.unit == "sigma"
        start = self.start if self.start is not None else (math.inf if high else 0.0)
        stop = self.stop if self.stop is not None else (0.0 if high else math.inf)
        return guide.cfg(
            self.scale, between=(start, stop), unit=self.unit, rescale=self.rescale,
            forecast=1 if self.forecast is None else self.forecast, order=self.order,
        )  # fmt: skip


class Recipe(Data):
    """One picture as data. Written into the PNG by `save`, read back by `read`, made again by `make`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    prompt: str | None = None
    image: str | None = None
    negative_prompt: str | None = None
    seed: int = Field(ge=0, le=noises.MOST, strict=True)
    sampler: str
    grid: str | None = None
    steps: int = Field(ge=1, strict=True)
    options: dict[str, Any] = Field(default_factory=dict)
    grid_options: dict[str, Any] = Field(default_factory=dict)
    table: dict[str, Any] | None = None  # of a fitted sampler: what its file holds
    sigmas: list[float] | None = None
    noise: str = noises.DEFAULT
    guidance: GuidanceData | None = None
    width: int | None = Field(default=None, ge=1, strict=True)
    height: int | None = Field(default=None, ge=1, strict=True)
    arguments: dict[str, Any] = Field(default_factory=dict)
    dtype: str | None = None
    device: str | None = None
    stopped_after: int | None = Field(default=None, ge=0, strict=True)
    versions: dict[str, str] = Field(default_factory=dict)

    @property
    def title(self) -> str:
        """What it is a picture of, in a few words."""
        return self.prompt or (Path(self.image).stem if self.image else self.model)

    @staticmethod
    def choice(sampler: Sampler) -> dict[str, Any]:
        """The fields that say which sampler it is, a fitted one with its table; without its steps."""
        table = None if sampler.fitted is None else sampler.fitted.to_dict()
        return {
            "sampler": sampler.name, "grid": sampler.grid, "options": dict(sampler.options),
            "grid_options": dict(sampler.grid_options), "noise": sampler.source, "table": table,
        }  # fmt: skip

    def chosen(self) -> Sampler:
        """The sampler this recipe names. Raises `ArgumentError` for the table of a fitted one that cannot be read."""
        fitted = None
        if self.table is not None:
            from .fitted import Fitted

            fitted = Fitted.from_dict(self.table, self.sampler)
        levels = None if self.sigmas is not None else self.grid
        return Sampler(
            self.sampler, levels, self.steps, self.options, self.grid_options, self.sigmas, noise=self.noise,
            fitted=fitted,
        )  # fmt: skip

    def _sampler(self, helm: Helm) -> Sampler:
        """The sampler of a call. A picture from before grids were always written was made on the usual one of then."""
        found = self.chosen()
        if not self.versions or found.fitted is not None or found.sigmas is not None or found.grid is not None:
            return found
        former = "karras" if processes.from_config(helm.pipe.scheduler.config).kind == "edm" else "trailing"
        return replace(found, grid=solvers.find(found.name).grid or former)

    def inputs(self) -> dict[str, Any]:
        """What the pipeline itself is called with; `image` is a path, read here."""
        from .animate import still

        given = {"prompt": self.prompt, "negative_prompt": self.negative_prompt, **self.arguments}
        size = {"width": self.width, "height": self.height, "image": still(self.image) if self.image else None}
        return {k: v for k, v in {**given, **size}.items() if v is not None}

    def call(self, helm: Helm, *, hooks: Sequence[Any] = (), **more: Any) -> Any:
        """The pipeline's own output under the helm; `more` are arguments of the pipeline that are not the recipe's."""
        from .hooks.control import stop_when

        hooks = list(hooks)
        if self.stopped_after is not None:
            hooks.append(stop_when(lambda run: run.step == self.stopped_after, "the recipe stops here"))
        guidance = None if self.guidance is None else self.guidance.guidance()
        given = {**self.inputs(), **more}
        return helm(sampler=self._sampler(helm), guidance=guidance, seeds=[self.seed], hooks=hooks, **given)

    def make(self, helm: Helm | None = None, *, hooks: Sequence[Any] = ()) -> tuple[Image.Image, Recipe]:
        """The picture, and the recipe of what really ran (versions, and where it was stopped)."""
        from .pipelines.helm import Helm

        helm = helm or Helm(self.model, dtype=self.dtype, device=self.device)
        output = self.call(helm, hooks=hooks)
        run = helm.run
        stopped = run.step if run is not None and run.status == "stopped" else None
        return output.images[0], self.model_copy(update={"stopped_after": stopped, "versions": versions()})

    def save(self, picture: Image.Image, path: str | PathLike[str]) -> Path:
        """Write the picture as a PNG with this recipe in it, atomically."""
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt(KEY, self.model_dump_json(exclude_none=True))
        with replacing(path) as temporary:
            picture.save(temporary, format="PNG", pnginfo=info)
        return Path(path)

    @classmethod
    def read(cls, path: str | PathLike[str]) -> Recipe:
        """The recipe in a PNG. Raises `ArgumentError` where there is none."""
        file("path", path)
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(path) as picture:
                text = getattr(picture, "text", {}).get(KEY)
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise ArgumentError(f"cannot read {str(path)!r}: {error.strerror}") from error
        except UnidentifiedImageError as error:
            raise ArgumentError(f"{str(path)!r} is not a picture") from error
        if text is None:
            raise ArgumentError(
                f"{str(path)!r} has no timonel recipe in it; only PNGs that timonel wrote can be replayed"
            )
        try:
            return cls.model_validate(json.loads(text))
        except (ValueError, ValidationError) as error:
            raise ArgumentError(f"the recipe in {str(path)!r} cannot be read: {error}") from error


def replay(path: str | PathLike[str], *, hooks: Sequence[Any] = ()) -> Image.Image:
    """Make the picture at `path` again from its recipe; the same bits on the same machine and versions."""
    return Recipe.read(path).make(hooks=hooks)[0]


def versions() -> dict[str, str]:
    """Versions of what takes part in the result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
