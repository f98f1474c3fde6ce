"""The names of peers that docs/names.md lists beside ComfyUI's, and what each is here.

The labels are facts of A1111 1.10, Forge and SD.Next (`modules/sd_samplers_*.py` and
`modules/sd_schedulers.py` of each); diffusers' classes are those of the installed one.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import diffusers
import diffusers.schedulers

import timonel as tm
import timonel.compat as compat
from support.names_page import here, refused
from support.places import DOCS
from timonel.core import names
from timonel.errors import TimonelError

#: sampler: of A1111 and Forge
WEBUI = (
    "DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE",
    "Euler a", "Euler", "LMS", "Heun", "DPM2", "DPM2 a", "DPM fast", "DPM adaptive", "Restart",
    "DDIM", "DDIM CFG++", "PLMS", "UniPC", "LCM", "DDPM", "HeunPP2", "IPNDM", "IPNDM_V", "DEIS",
)  # fmt: skip
WEBUI_GRIDS = (
    "Automatic", "Uniform", "Karras", "Exponential", "Polyexponential", "SGM Uniform",
    "KL Optimal", "Align Your Steps", "Simple", "Normal", "DDIM", "Beta", "Turbo",
    "Karras Exponential", "Align Your Steps GITS",
)  # fmt: skip
SDNEXT = (
    "UniPC", "DDIM", "Euler", "Euler a", "Euler SGM", "Euler EDM", "Euler FlowMatch", "DPM++",
    "DPM++ 2M", "DPM++ 3M", "DPM++ 1S", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M EDM",
    "DPM++ Cosine", "DPM SDE", "DPM++ Inverse", "DPM++ 2M Inverse", "DPM++ 3M Inverse",
    "UniPC FlowMatch", "DPM2 FlowMatch", "DPM2a FlowMatch", "DPM2++ 2M FlowMatch",
    "DPM2++ 2S FlowMatch", "DPM2++ SDE FlowMatch", "DPM2++ 2M SDE FlowMatch",
    "DPM2++ 3M SDE FlowMatch", "Heun", "Heun FlowMatch", "LCM", "LCM FlowMatch", "DEIS",
    "SA Solver", "DC Solver", "VDM Solver", "TCD", "TDD", "PeRFlow", "UFOGen", "BDIA DDIM",
    "PNDM", "IPNDM", "DDPM", "LMSD", "KDPM2", "KDPM2 a", "CMSI",
)  # fmt: skip
#: what to know of a name that resolves; of SD.Next's names what its class does besides
NOTES = {
    "WebUI/DPM2": "A1111 leaves out the last level but one; `dpm_2` does here",
    "WebUI/Beta": "A1111's in sigma is `beta_sigma`; this is ComfyUI's, in the training index",
    "WebUI/Turbo": "the times of `trailing`",
    "SD.Next/DPM++ SDE": "SD.Next's is of order 1, `ddpm`; this is A1111's of that name",
    "SD.Next/PNDM": "with Runge-Kutta steps first, as SD.Next; `plms` without",
    "SD.Next/CMSI": "on a consistency model",
}


class Entry(NamedTuple):
    """A name: what it resolves to, or why it is refused; and a remark."""

    name: str
    here: str
    refused: str
    note: str = ""


def sampler(name: str, peer: str) -> Entry:
    """A sampler's name of a peer."""
    why = refused(name)
    if why:
        return Entry(name, "-", why)
    grid = names.sampler(name).grid
    return Entry(
        name, here(name) + (f"/{grid}" if grid else ""), "", NOTES.get(f"{peer}/{name}", "")
    )


def grid(name: str, peer: str) -> Entry:
    """A grid's name of a peer."""
    try:
        return Entry(name, names.grid(name), "", NOTES.get(f"{peer}/{name}", ""))
    except TimonelError as error:
        return Entry(name, "-", str(error).partition(": ")[2])


class Class(NamedTuple):
    """A scheduler class of diffusers."""

    name: str
    here: str
    refused: str
    drop_in: bool
    config: str
    parity: str


def classes() -> list[str]:
    """Every scheduler class that the installed diffusers exports."""
    return sorted(
        name for name in {*dir(diffusers), *dir(diffusers.schedulers)}
        if name.endswith("Scheduler") and not name.startswith("Flax")
    )  # fmt: skip


def of_class(name: str) -> Class:
    """A class by name, in compat, and by a config that names it alone."""
    entry = sampler(name, "diffusers")
    return Class(
        name, entry.here, entry.refused, name in compat.__all__, of_config(name), parity(name)
    )


def of_config(name: str) -> str:
    """What `Scheduler.from_config` makes of a bare config of a class; "refused"."""
    try:
        return str(tm.Scheduler.from_config({"_class_name": name}).sampler.name)
    except TimonelError:
        return "refused"


def parity(name: str) -> str:
    """The verdict of docs/parity.md, with the worst difference in float64."""
    line = re.search(rf"^\| `{name}` \|(.*)\|$", (DOCS / "parity.md").read_text("utf-8"), re.M)
    cells = [] if line is None else [cell.strip() for cell in line[1].split("|")]
    if len(cells) < 5 or not cells[2]:
        return ""
    return f"same, {cells[2]}" if cells[4] == "same" else f"{cells[4].split(':')[0]}, {cells[2]}"
