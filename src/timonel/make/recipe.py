"""A recipe: everything needed to make the same picture again, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import PrivateAttr, ValidationError

from .. import picture_files, reading
from ..core import process as processes
from ..core import solvers
from ..core.sampler import Sampler
from ..errors import ArgumentError, shown
from ..files import replacing
from ..pipelines.recipe.data import KEY, RecipeData, versions
from ..pipelines.recipe.tails import Tails
from ..pipelines.recipe.tails import check as check_tails

if TYPE_CHECKING:
    from PIL import Image

    from ..pipelines.helm import Helm

# arguments that a pipeline wants as tuples
PAIRS = ("crops_coords_top_left", "original_size", "target_size")


class Recipe(RecipeData):
    """One picture as data: `save` writes it into the PNG, `read` reads it, `make` makes it again.

    A picture that the helm makes has its recipe in `info`, and its own `save` writes it into a PNG
    too. A recipe from a picture names a model that whoever wrote the file chose: one that does not
    ship with timonel is loaded only where the caller names it too, see `helm`.

    Args:
        model: shipped name, hub name or folder.
        prompt: the pipeline's.
        image: file of the picture that the model begins with.
        negative_prompt: the pipeline's.
        seed: of the noise, 0 to 2^64 - 1.
        sampler: name of the solver.
        grid: name of its levels; None is the usual one.
        steps: 1 to 10,000.
        options: of the solver.
        grid_options: of the grid.
        table: of a fitted sampler, what its file holds.
        sigmas: sigma / alpha, in place of a grid.
        times: network times, in place of a grid.
        part: which part of the levels, see `Sampler`.
        noise: source of the solver's noise, "independent" or "brownian".
        variation: another seed, and how much of its noise is mixed in, see `Helm`.
        guidance: scale and interval; None is the pipeline's own.
        tails: other samplers, steps or levels from some steps on, see `Run.tail`.
        width: in pixels.
        height: in pixels.
        more_prompts: `prompt_2` and the like.
        prompts: those that hold at later steps too; `prompt` is the first.
        negative_prompts: likewise.
        arguments: the pipeline's other arguments.
        dtype: that the model was loaded in, or one for each component.
        device: that it was loaded to.
        loading: how it was loaded besides, such as its revision.
        pipeline: class of a pipeline object; `model` is then where that says it comes from.
        missing: arguments that a file cannot hold, such as a picture.
        besides: what else had a part in it, such as a hook.
        batch: how many pictures were made at once.
        listed: whether the levels are a list that the pipeline is called with.
        stopped_after: completed steps of a call that was stopped; None of a whole one.
        versions: of the packages that took part.
    """

    # the picture that it was read from, and the model named there
    _read: tuple[str, str] | None = PrivateAttr(None)

    def _sampler(self, helm: Helm) -> Sampler:
        """The sampler of a call; of a picture that names no grid on the default one of then."""
        sampler = self.chosen()
        levels = (self.listed, sampler.times, sampler.sigmas, sampler.fitted, sampler.grid)
        if not self.versions or any(value not in (None, False) for value in levels):
            return sampler
        edm = processes.from_config(helm.pipe.scheduler.config).kind == "edm"
        former = "karras" if edm else "trailing"
        return replace(sampler, grid=solvers.find(sampler.name).grid or former)

    def inputs(self) -> dict[str, Any]:
        """The arguments of the pipeline; `image` is a path, read here."""
        from .animate import still

        arguments = {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            **(self.more_prompts or {}),
            **self.arguments,
            "width": self.width,
            "height": self.height,
            "image": still(self.image) if self.image else None,
        }
        for name, value in arguments.items():
            if name.endswith(PAIRS) and isinstance(value, list):
                arguments[name] = tuple(value)
        return {name: value for name, value in arguments.items() if value is not None}

    def call(self, helm: Helm, *, hooks: Sequence[Any] = (), **more: Any) -> Any:
        """The pipeline's output under the helm.

        Args:
            helm: with the model.
            hooks: as in a call of the helm.
            **more: arguments of the pipeline that are not in the recipe.

        Returns:
            The pipeline's output.
        """
        from ..hooks.control import stop_when

        hooks = list(hooks)
        if self.tails:
            check_tails(self.tails, self.steps)
            hooks.append(Tails(self.tails))
        if self.stopped_after is not None:
            last = self.stopped_after
            hooks.append(stop_when(lambda run: run.step == last, "the recipe stops here"))
        return helm(
            sampler=self._sampler(helm),
            guidance=None if self.guidance is None else self.guidance.guidance(),
            seeds=[self.seed],
            hooks=hooks,
            variation=self.variation,
            prompts=None if self.prompts is None else self.prompts.prompts(),
            negative_prompts=(
                None if self.negative_prompts is None else self.negative_prompts.prompts()
            ),
            **{**self.inputs(), **more},
        )

    def check(self, *present: str, helm: bool = False) -> None:
        """Raise `ArgumentError` where the recipe alone cannot make the picture.

        Args:
            *present: names of the arguments that the caller passes.
            helm: whether the caller has the pipeline.
        """
        if self.pipeline is not None and not helm:
            origin = "" if self.model == "unknown" else f", which says it comes from {self.model!r}"
            raise ArgumentError(
                f"it was made with a {self.pipeline} object{origin}: a file cannot hold how that"
                " was built. Build it again and use Recipe.read(path).make(tm.Helm(pipe)), or give"
                " tm.Helm the model's name next time"
            )
        lost = [name for name in self.missing or () if name not in present]
        if lost:
            raise ArgumentError(
                f"it was also made of {', '.join(f'{name}=' for name in lost)} which a file cannot"
                f" hold: Recipe.read(path).make({lost[0]}=…) with the same"
            )

    def helm(self, model: str | None = None) -> Helm:
        """A helm with the recipe's model.

        Args:
            model: the recipe's model again; needed where a picture alone names it and it does not
                ship with timonel.

        Raises:
            ArgumentError: it is needed, or another model than the recipe's.
        """
        from .. import zoo
        from ..pipelines.helm import Helm

        if model is not None and model != self.model:
            raise ArgumentError(f"the recipe's model is {self.model!r}, and not {shown(model)}")
        read = self._read if self._read is not None and self._read[1] == self.model else None
        if model is None and read is not None and self.model not in zoo.MODELS:
            raise ArgumentError(
                f"{read[0]} names the model {self.model!r}, which does not ship with timonel;"
                f" where you know it, name it too: tm.replay(path, model={self.model!r})"
            )
        loading: dict[str, Any] = dict(self.loading or {})
        return Helm(self.model, **{"dtype": self.dtype, "device": self.device, **loading})

    def make(
        self, helm: Helm | None = None, *, hooks: Sequence[Any] = (), **more: Any
    ) -> tuple[Image.Image, Recipe]:
        """Make the picture again.

        Args:
            helm: with the model; by default it is loaded, see `helm()`.
            hooks: as in a call of the helm.
            **more: arguments that a file cannot hold.

        Returns:
            The picture, and the recipe of what really ran: its versions, and where it was stopped.

        Raises:
            ArgumentError: before any compute, where an argument is missing.
        """
        self.check(*more, helm=helm is not None)
        helm = helm or self.helm()
        output = self.call(helm, hooks=hooks, **more)
        run = helm.run
        stopped = run.step if run is not None and run.status == "stopped" else None
        now: dict[str, Any] = {"stopped_after": stopped, "versions": versions(), "batch": None}
        if not self.listed and self.sigmas is None and self.times is None and self.table is None:
            now["grid"] = self.grid if helm.choice is None else helm.choice.sampler.grid
        return output.images[0], self.model_copy(update=now)

    def save(self, picture: Image.Image, path: str | PathLike[str]) -> Path:
        """Write the picture as a PNG with this recipe in it, atomically, over an existing file.

        Args:
            picture: of PIL.
            path: of the file.

        Returns:
            The path.
        """
        from ..pipelines.recipe.images import chunks
        from ..pipelines.recipe.infotext import texts

        with replacing(path) as temporary:
            picture.save(temporary, format="PNG", pnginfo=chunks(texts(self, picture.size)))
        return Path(path)

    @classmethod
    def of(cls, picture: Image.Image) -> Recipe:
        """The recipe that a picture of PIL carries. Raises `ArgumentError` where there is none."""
        return cls._parsed(picture.info.get(KEY), "the picture")

    @classmethod
    def read(cls, path: str | PathLike[str]) -> Recipe:
        """The recipe in a PNG. Raises `ArgumentError` where there is none."""
        return cls._parsed(picture_files.picture(path).info.get(KEY), repr(str(path)))

    @classmethod
    def _parsed(cls, text: Any, where: str) -> Recipe:
        if text is None:
            raise ArgumentError(
                f"{where} has no timonel recipe in it; only PNGs that timonel wrote can be replayed"
            )
        try:
            recipe = cls.model_validate(reading.parsed(text))
            recipe._read = (f"the recipe in {where}", recipe.model)
            return recipe
        except ValidationError as error:
            wrong = error.errors()[0]
            at = ".".join(map(str, wrong["loc"]))
            raise ArgumentError(
                f"the recipe in {where} cannot be read: {at}: {wrong['msg']}"
            ) from error
        except ValueError as error:
            raise ArgumentError(f"the recipe in {where} cannot be read: {error}") from error


def replay(
    path: str | PathLike[str], *, model: str | None = None, hooks: Sequence[Any] = ()
) -> Image.Image:
    """Make a picture again from its recipe: the same bits on the same machine and versions.

    Args:
        path: a PNG with a recipe.
        model: its model, which a file alone does not choose; not needed for the models that ship
            with timonel.
        hooks: as in a call of the helm.

    Returns:
        The picture.

    Raises:
        ArgumentError: there is no recipe, `model` is needed or another one, or the recipe needs
            what no file holds.
    """
    recipe = Recipe.read(path)
    recipe.check()
    return recipe.make(recipe.helm(model), hooks=hooks)[0]
