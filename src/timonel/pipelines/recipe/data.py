"""What a recipe holds: the fields of one picture, as the text of a PNG has them."""

from __future__ import annotations

import functools
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from ...core import noise as noises
from ...core.data import Data, GuidanceData, PromptsData
from ...core.grids import MOST_STEPS
from ...core.sampler import Sampler
from .tails import TailData

# names of the text chunks in a PNG: the recipe, and the same as A1111 writes it
KEY, INFOTEXT = "timonel", "parameters"
PACKAGES = ("timonel", "torch", "diffusers", "transformers")


Seed = Annotated[int, Field(ge=0, le=noises.MOST, strict=True)]
Share = Annotated[float, Field(ge=0, le=1)]


class RecipeData(Data):
    """The fields of a recipe, see `make.recipe.Recipe`, which makes the picture again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    prompt: str | None = None
    image: str | None = None
    negative_prompt: str | None = None
    seed: Seed
    sampler: str
    grid: str | None = None
    steps: int = Field(ge=1, le=MOST_STEPS, strict=True)
    options: dict[str, Any] = Field(default_factory=dict)
    grid_options: dict[str, Any] = Field(default_factory=dict)
    # of a fitted sampler: what its file holds
    table: dict[str, Any] | None = Field(default=None, repr=False)
    sigmas: list[float] | None = None
    times: list[float] | None = None
    part: dict[str, float] | None = None
    noise: str = noises.DEFAULT
    variation: tuple[Seed, Share] | None = None
    guidance: GuidanceData | None = None
    tails: list[TailData] | None = None
    width: int | None = Field(default=None, ge=1, strict=True)
    height: int | None = Field(default=None, ge=1, strict=True)
    more_prompts: dict[str, str] | None = None  # prompt_2, …
    prompts: PromptsData | None = None  # where they change over the run
    negative_prompts: PromptsData | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    dtype: str | dict[str, Any] | None = None
    device: str | None = None
    loading: dict[str, str] | None = None
    pipeline: str | None = None
    missing: list[str] | None = None
    besides: list[str] | None = None
    batch: int | None = None
    listed: bool | None = None
    stopped_after: int | None = Field(default=None, ge=0, strict=True)
    versions: dict[str, str] = Field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        """Whether all fields are the same, wherever the recipes come from."""
        return self.__dict__ == other.__dict__ if isinstance(other, RecipeData) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    @property
    def title(self) -> str:
        """What it is a picture of, in a few words."""
        return self.prompt or (Path(self.image).stem if self.image else self.model)

    @staticmethod
    def choice(sampler: Sampler) -> dict[str, Any]:
        """The fields that name a sampler, of a fitted one with its table; without its steps."""
        levels = {"sigmas": sampler.sigmas, "times": sampler.times}
        return {
            "sampler": sampler.name,
            "grid": sampler.grid,
            "options": dict(sampler.options),
            "grid_options": dict(sampler.grid_options),
            "noise": sampler.source,
            "table": None if sampler.fitted is None else sampler.fitted.to_dict(),
            **{key: list(map(float, values)) for key, values in levels.items() if values},
            **({"part": sampler.cuts} if sampler.cuts else {}),
        }

    def chosen(self) -> Sampler:
        """The sampler that this recipe names.

        Raises:
            ArgumentError: the table of a fitted sampler cannot be read.
        """
        fitted = None
        if self.table is not None:
            from ...core.fitted.sampler_file import Fitted

            fitted = Fitted.from_dict(self.table, self.sampler)
        listed = self.sigmas is not None or self.times is not None
        in_call = not {"sigmas", "timesteps"}.isdisjoint(self.arguments)
        part: dict[str, Any] = self.part or {}
        return Sampler(
            self.sampler,
            None if listed else self.grid,
            None if in_call else self.steps,
            self.options,
            self.grid_options,
            self.sigmas,
            self.times,
            noise=self.noise,
            fitted=fitted,
            **part,
        )


@functools.cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Versions of what takes part in the result."""
    installed = {name: number for name in PACKAGES if (number := _version(name))}
    return {"python": platform.python_version(), **installed}
