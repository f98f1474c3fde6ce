"""timonel's own API: runs that are submitted, watched and steered."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Response
from pydantic import BaseModel, ConfigDict, Field
from sse_starlette import EventSourceResponse

from ...core import grids, solvers
from ...core.guidance import cfg
from ...pipelines.recipe.data import KEY
from ...reading import parsed
from .answers import events
from .pictures import encoded
from .runs import Runs, Served, Wanted


class NewRun(BaseModel):
    """A run to submit; see `Wanted`."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    prompt: str
    negative_prompt: str | None = None
    sampler: str | None = None
    grid: str | None = None
    steps: int | None = Field(None, ge=1)
    guidance: float | None = Field(None, ge=0, allow_inf_nan=False)
    until: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(None, ge=0, lt=2**63)
    width: int | None = Field(None, ge=1)
    height: int | None = Field(None, ge=1)
    priority: int = Field(0, ge=-100, le=100)
    keep: int = Field(0, ge=0)
    paused: bool = False


class Rewind(BaseModel):
    """Where to go back to."""

    step: int = Field(ge=0)


class NewGuidance(BaseModel):
    """Guidance for the rows to come."""

    scale: float = Field(ge=0, allow_inf_nan=False)
    until: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)


def described(run: Served) -> dict[str, Any]:
    """Where a run stands, as data."""
    ticket, now = run.ticket, run.ticket.now
    output = run.output
    recipe = None if output is None else parsed(output.images[0].info.get(KEY, "null"))
    return {
        "id": run.name, "model": run.model, "created": run.created, "status": ticket.status,
        **now._asdict(), "alone": ticket.alone, "recipe": recipe,
        "evaluations": None if output is None else output.evaluations,
    }  # fmt: skip


def router(runs: Runs) -> APIRouter:
    """The routes of `/runs`, `/samplers` and `/grids`."""
    api = APIRouter(tags=["runs"])

    def find(name: str) -> Served:
        run = runs.find(name)
        if run is None:
            raise HTTPException(404, f"there is no run {name!r}, or it was let go of")
        return run

    @api.post("/runs", status_code=202)
    def submit(wanted: NewRun) -> dict[str, Any]:
        """Submit a run."""
        fields = wanted.model_dump(exclude={"model", "paused"})
        (run,) = runs.submit(wanted.model, Wanted(**fields))
        if wanted.paused:
            run.ticket.pause()
        return described(run)

    @api.get("/runs")
    def listed() -> list[dict[str, Any]]:
        """Every run that is known, the newest last."""
        return [described(run) for run in runs.all()]

    @api.get("/runs/{name}")
    def state(name: str) -> dict[str, Any]:
        """Where a run stands; at its end with its recipe."""
        return described(find(name))

    @api.get("/runs/{name}/events")
    async def watch(name: str, previews: bool = False) -> EventSourceResponse:
        """A run's events as they come (SSE), with previews where they are wanted."""
        return EventSourceResponse(events(find(name), previews))

    @api.get("/runs/{name}/picture")
    def picture(name: str) -> Response:
        """The finished picture, a PNG with its recipe."""
        picture = runs.picture(name)
        if picture is None:
            find(name)
            raise HTTPException(409, "the run has no picture yet; /runs/NAME/preview shows it")
        return Response(picture, media_type="image/png")

    @api.get("/runs/{name}/preview")
    def preview(name: str, decode: bool = False) -> Response:
        """The newest denoised prediction, a PNG."""
        image = find(name).ticket.preview(decode=decode)[0]
        return Response(encoded(image), media_type="image/png")

    @api.post("/runs/{name}/pause")
    def pause(name: str) -> dict[str, Any]:
        """Let a run wait before its next step."""
        find(name).ticket.pause()
        return described(find(name))

    @api.post("/runs/{name}/resume")
    def resume(name: str) -> dict[str, Any]:
        """Let a run go on."""
        find(name).ticket.resume()
        return described(find(name))

    @api.post("/runs/{name}/stop")
    def stop(name: str) -> dict[str, Any]:
        """End a run at its next step; its newest prediction is decoded."""
        find(name).ticket.stop("it was stopped over the network")
        return described(find(name))

    @api.post("/runs/{name}/rewind")
    def rewind(name: str, to: Rewind) -> dict[str, Any]:
        """Go back so that so many steps are completed."""
        find(name).ticket.rewind(to.step)
        return described(find(name))

    @api.post("/runs/{name}/guidance")
    def guidance(name: str, new: NewGuidance) -> dict[str, Any]:
        """Guide the rows to come so."""
        find(name).ticket.run.guidance = cfg(new.scale, until=new.until)
        return described(find(name))

    @api.post("/runs/{name}/branch", status_code=202)
    def branch(
        name: str, step: Annotated[int | None, Query(ge=0)] = None, paused: bool = False
    ) -> dict[str, Any]:
        """A second run that goes on from where the first one stands, or from a step before."""
        return described(runs.branch(find(name), step, paused))

    @api.delete("/runs/{name}")
    def cancel(name: str) -> dict[str, Any]:
        """Give a run up."""
        find(name).ticket.cancel("it was cancelled over the network")
        return described(find(name))

    @api.get("/samplers")
    def samplers() -> list[dict[str, Any]]:
        """Every sampler by name."""
        return [
            {"name": name, "order": spec.order, "calls": spec.calls, "stochastic": spec.stochastic,
             "source": spec.reference} for name, spec in solvers.SOLVERS.items()
        ]  # fmt: skip

    @api.get("/grids")
    def all_grids() -> list[str]:
        """Every grid by name."""
        return list(grids.GRIDS)

    return api
