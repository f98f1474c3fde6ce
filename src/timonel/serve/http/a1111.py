"""AUTOMATIC1111's API, as far as its clients need it: pictures of a prompt, progress, names.

Its samplers and schedulers are understood by its own names. A field that timonel has nothing for is
accepted where it asks for nothing (false, empty, its usual value) and refused otherwise.
"""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from ...core import grids, names, solvers
from ...errors import ArgumentError, shown
from ...pipelines.recipe.data import INFOTEXT
from .answers import finished, preview
from .pictures import base64_of
from .runs import Runs, Served, Wanted

AUTOMATIC = "automatic"  # A1111's word for the sampler's usual grid
# fields of A1111 with a value that asks for nothing
USUAL: dict[str, tuple[Any, ...]] = {
    "sampler_index": ("Euler",), "subseed": (-1,), "subseed_strength": (0,),
    "seed_resize_from_h": (-1, 0), "seed_resize_from_w": (-1, 0), "eta": (0, None),
    "s_churn": (0,), "s_tmin": (0,), "s_tmax": (0, None), "s_noise": (1,), "send_images": (True,),
    "override_settings_restore_afterwards": (True, False), "hr_scale": (2,),
    "hr_upscaler": ("Latent",), "denoising_strength": (0, 0.75, None),
    "do_not_save_samples": (True, False), "do_not_save_grid": (True, False),
}  # fmt: skip


class NewPictures(BaseModel):
    """A request of `/sdapi/v1/txt2img`."""

    model_config = ConfigDict(extra="allow")

    prompt: str = ""
    negative_prompt: str | None = None
    seed: int | None = Field(None, ge=-1, lt=2**63)
    steps: int | None = Field(None, ge=1)
    cfg_scale: float | None = Field(None, ge=0, allow_inf_nan=False)
    width: int | None = Field(None, ge=1)
    height: int | None = Field(None, ge=1)
    sampler_name: str | None = None
    scheduler: str | None = None
    batch_size: int = Field(1, ge=1)
    n_iter: int = Field(1, ge=1)
    override_settings: dict[str, Any] | None = None

    def wanted(self) -> Wanted:
        """What it asks for. Raises `ArgumentError` for fields that nothing here does."""
        for name, value in (self.model_extra or {}).items():
            if value and value not in USUAL.get(name, ()):
                raise ArgumentError(
                    f"{name}={shown(value)} has nothing to do here: leave it out (see /docs)"
                )
        grid = self.scheduler
        if grid is not None and grid.lower() in (AUTOMATIC, ""):
            grid = None
        return Wanted(
            self.prompt, self.negative_prompt or None, self.sampler_name or None,
            None if grid is None else names.grid(grid), self.steps, self.cfg_scale,
            seed=None if self.seed in (None, -1) else self.seed,
            width=self.width, height=self.height,
        )  # fmt: skip

    def model(self) -> str | None:
        """The model that it names. Raises `ArgumentError` for other settings."""
        settings = dict(self.override_settings or {})
        model: str | None = settings.pop("sd_model_checkpoint", None)
        if settings:
            raise ArgumentError(
                f"override_settings has {shown(next(iter(settings)))}, and only"
                " sd_model_checkpoint can be set here"
            )
        return model


def router(runs: Runs) -> APIRouter:
    """The routes of `/sdapi/v1`."""
    api = APIRouter(prefix="/sdapi/v1", tags=["a1111"])
    usual: dict[str, str] = {"model": next(iter(runs.engines))}

    def newest() -> Served | None:
        """The newest run that goes on."""
        return next((run for run in reversed(list(runs.all())) if not run.ticket.done), None)

    @api.post("/txt2img")
    async def txt2img(wanted: NewPictures, request: Request) -> dict[str, Any]:
        """Pictures of a prompt."""
        model = wanted.model() or usual["model"]
        served = runs.submit(model, wanted.wanted(), wanted.batch_size * wanted.n_iter)
        await finished(request, served)
        images = [run.output.images[0] for run in served if run.output is not None]
        texts = [image.info.get(INFOTEXT, "") for image in images]
        info = {"prompt": wanted.prompt, "infotexts": texts, "sd_model_name": model}
        return {
            "images": [base64_of(image) for image in images],
            "parameters": wanted.model_dump(exclude_none=True),
            "info": json.dumps(info),
        }

    @api.get("/progress")
    async def progress(skip_current_image: bool = False) -> dict[str, Any]:
        """Where the newest run stands, with its preview."""
        run = newest()
        if run is None:
            return {"progress": 0.0, "eta_relative": 0.0, "state": _state(None), "textinfo": None,
                    "current_image": None}  # fmt: skip
        event = run.ticket.now
        share = event.step / event.steps if event.steps else 0.0
        picture = None if skip_current_image or not event.step else await preview(run)
        return {"progress": share, "eta_relative": 0.0, "state": _state(run),
                "current_image": picture, "textinfo": None}  # fmt: skip

    @api.post("/interrupt")
    def interrupt() -> dict[str, Any]:
        """Stop the newest run; what it has becomes its picture."""
        run = newest()
        if run is not None:
            run.ticket.stop("it was interrupted over the network")
        return {}

    @api.post("/skip")
    def skip() -> dict[str, Any]:
        """As interrupt: one run is one picture here."""
        return interrupt()

    @api.get("/samplers")
    def samplers() -> list[dict[str, Any]]:
        """Every sampler by name."""
        return [{"name": name, "aliases": [], "options": {}} for name in solvers.SOLVERS]

    @api.get("/schedulers")
    def schedulers() -> list[dict[str, Any]]:
        """Every grid by name."""
        return [{"name": AUTOMATIC, "label": "Automatic"}, *(
            {"name": name, "label": name.replace("_", " ").title()} for name in grids.GRIDS
        )]  # fmt: skip

    @api.get("/sd-models")
    def models() -> list[dict[str, Any]]:
        """The models of this server."""
        return [
            {"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name,
             "config": None} for name in runs.engines
        ]  # fmt: skip

    @api.get("/options")
    def options() -> dict[str, Any]:
        """The one option there is: the usual model."""
        return {"sd_model_checkpoint": usual["model"]}

    @api.post("/options")
    def set_options(new: dict[str, Any]) -> None:
        """Choose the usual model. Anything else is refused."""
        others = sorted(new.keys() - {"sd_model_checkpoint"})
        if others:
            raise ArgumentError(f"{others[0]!r} is no option here: sd_model_checkpoint is the one")
        usual["model"] = runs.engine(new.get("sd_model_checkpoint"))[0]

    return api


def _state(run: Served | None) -> dict[str, Any]:
    """A1111's `state`."""
    event = None if run is None else run.ticket.now
    return {
        "skipped": False, "interrupted": False, "job": "" if run is None else run.name,
        "job_count": 0 if run is None else 1, "job_no": 0,
        "sampling_step": 0 if event is None else event.step,
        "sampling_steps": 0 if event is None else event.steps,
    }  # fmt: skip
