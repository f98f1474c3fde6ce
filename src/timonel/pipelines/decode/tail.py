"""The rest of a pipeline's call after its loop, run once more with other latents.

Every pipeline knows best how its latents become pictures: it unpacks, scales, cuts and decodes them
after its loop. `look`, called while the pipeline steps its scheduler, notes where that call is and
the variables that the rest of it reads. `Tail.run` runs the rest with other latents in the place of
what `step` returns: the step's own statement, what follows it in the loop's last turn, and
everything after the loop.

The rest reads the pipeline through a stage (`Stage`): it steps no scheduler, moves no model away
and leaves no attribute behind. Generators are copies and torch's own are put back, so looking at a
run never changes what it draws.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ModelError
from ..caller import frames
from ..guidance.gate import networks

# methods that change the object they belong to, as calls clean up after their loop: attention
# processors, caches
CHANGING = re.compile(
    r"_?(set|clear|reset|enable|disable|remove|delete|load|unload|restore|fuse|unfuse|free)(_|$)"
)
PLAIN = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    tuple,
    type,
    torch.dtype,
    torch.device,
    torch.Size,
)
QUIET = (
    "safety_checker",
    "watermark",
    "watermarker",
)  # networks that only judge or mark a finished picture
CHANGED = {"return_dict": True, "callback": None, "callback_on_step_end": None}
NAME = "rest_of_call"  # in tracebacks
FORMATS = (
    "pt",
    "np",
    "pil",
)  # what pipelines call a picture as numbers; not every one knows the first
Decode = Callable[[nn.Module, Tensor], Tensor]


class NoTail(ModelError):
    """A pipeline whose call has no rest that could be run."""


class Enough(BaseException):
    """The rest of the call has given what was wanted of it."""


# -- where a call is -------------------------------------------------------------------------------
@dataclass(frozen=True)
class Rest:
    """The compiled rest of a function. `names`: the variables it reads; `loop`: the names of
    (count, time, list).
    """

    code: types.CodeType
    names: tuple[str, ...]
    loop: tuple[str | None, str | None, str] | None


def look(pipe: Any) -> Tail | None:
    """Where the present call of `pipe` is, from inside a step of its scheduler; None outside of
    one.

    Raises `NoTail` where the source of the pipeline cannot be read or steps outside of its own
    call.
    """
    methods = (
        one
        for one in frames()
        if one.f_code.co_varnames[:1] == ("self",) and one.f_locals.get("self") is pipe
    )
    frame = next(methods, None)
    if frame is None:
        return None
    if frame.f_code.co_name != "__call__":
        raise NoTail(
            f"{type(pipe).__name__} steps its scheduler in {frame.f_code.co_name}, outside of its"
            " call"
        )
    rest = _rest(frame.f_code, frame.f_lineno)
    values = frame.f_locals
    return Tail(
        pipe, rest, {name: values[name] for name in rest.names if name in values}, frame.f_globals
    )


@lru_cache(maxsize=64)
def _rest(code: types.CodeType, line: int) -> Rest:
    """The rest of a function from the statement at `line` on."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError, SyntaxError) as error:
        raise NoTail(f"the source of {code.co_filename} cannot be read: {error}") from error
    ast.increment_lineno(tree, code.co_firstlineno - 1)
    function = tree.body[0]
    if not isinstance(function, ast.FunctionDef):
        raise NoTail(f"{code.co_name} of {code.co_filename} is no function")
    loops: list[ast.For] = []
    body = _after(function.body, line, loops)
    used = sorted({node.id for s in body for node in ast.walk(s) if isinstance(node, ast.Name)})
    own = {*code.co_varnames, *code.co_cellvars, *code.co_freevars}
    names = [name for name in used if name in own]
    loop = _loop(loops[0], own) if loops else None
    places = [ast.arg(arg=name) for name in names]
    arguments = ast.arguments(
        posonlyargs=[],
        args=places,
        kwonlyargs=[],
        kw_defaults=[],
        defaults=[ast.Constant(None)] * len(places),
    )
    rest = ast.FunctionDef(
        name=NAME, args=arguments, body=body, decorator_list=[], lineno=1, col_offset=0
    )
    module = ast.fix_missing_locations(ast.Module(body=[rest], type_ignores=[]))
    compiled = compile(module, code.co_filename, "exec")
    made = next(
        c for c in compiled.co_consts if isinstance(c, types.CodeType) and c.co_name == NAME
    )
    needed = (
        names if loop is None else [*names, *(n for n in loop if n is not None and n not in names)]
    )
    return Rest(made, tuple(needed), loop)


def _after(block: list[ast.stmt], line: int, loops: list[ast.For]) -> list[ast.stmt]:
    """What is still to run of `block`, from the statement at `line` on; loops make the turn that
    they are in.
    """
    at = next(
        (i for i, s in enumerate(block) if s.lineno <= line <= (s.end_lineno or s.lineno)), None
    )
    if at is None:
        raise NoTail(f"no statement at line {line}")
    inside = next((part for part in _blocks(block[at]) if _spans(part, line)), None)
    if inside is None:
        return block[at:]
    rest = _after(inside, line, loops)
    if isinstance(block[at], (ast.For, ast.While)):
        if isinstance(block[at], ast.For):
            loops.append(block[at])  # type: ignore[arg-type]
        once = ast.Tuple(elts=[ast.Constant(0)], ctx=ast.Load())
        turn = ast.For(
            target=ast.Name(id="_turn", ctx=ast.Store()), iter=once, body=rest, orelse=[]
        )
        rest = [ast.copy_location(turn, block[at])]
    return [*rest, *block[at + 1 :]]


def _blocks(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        if isinstance(part := getattr(statement, name, None), list) and part:
            yield part
    for handler in getattr(statement, "handlers", ()):
        yield handler.body


def _spans(block: list[ast.stmt], line: int) -> bool:
    return block[0].lineno <= line <= (block[-1].end_lineno or block[-1].lineno)


def _loop(loop: ast.For, own: set[str]) -> tuple[str | None, str | None, str] | None:
    """The names of a loop's count, time and list: `for i, t in enumerate(timesteps)`."""
    listed = [
        n.id
        for n in ast.walk(loop.iter)
        if isinstance(n, ast.Name) and n.id in own and n.id != "self"
    ]
    if len(listed) != 1:
        return None
    if isinstance(loop.target, ast.Name):
        return None, loop.target.id, listed[0]
    if isinstance(loop.target, ast.Tuple) and all(
        isinstance(e, ast.Name) for e in loop.target.elts
    ):
        count, time = (e.id for e in loop.target.elts[:2] if isinstance(e, ast.Name))
        return count, time, listed[0]
    return None


# -- the rest of it --------------------------------------------------------------------------------
class Tail:
    """The rest of one call, to be run with other latents. Make one with `look`."""

    def __init__(
        self, pipe: Any, rest: Rest, values: dict[str, Any], names: dict[str, Any]
    ) -> None:
        self.pipe, self.rest, self.values, self.globals = pipe, rest, values, names
        self._formats, self._thread = list(FORMATS), threading.get_ident()

    def output(self, latents: Tensor, decode: Decode | None = None) -> tuple[Any, list[Tensor]]:
        """What the pipeline returns for `latents`, and what its autoencoder decoded on the way.

        `decode`: in the place of the autoencoder's own, `(autoencoder, latents) -> pixels`;
        networks that only judge the picture are then left out, and a second autoencoder ends it.
        """
        while True:
            stage = Stage(self.pipe, latents.detach().clone(), decode)
            try:
                return self._once(stage, self._formats[0]), stage._stage_decoded
            except Enough:
                return None, stage._stage_decoded
            except Exception as error:
                if decode is not None and stage._stage_decoded:
                    return None, stage._stage_decoded  # the rest was for a picture of full size
                unknown = isinstance(error, ValueError) or type(error) is Exception
                if not unknown or len(self._formats) == 1:
                    raise
                self._formats.pop(0)  # perhaps this pipeline does not know the format

    def _once(self, stage: Stage, form: str) -> Any:
        given = {name: self._value(name, value, stage) for name, value in self.values.items()}
        for name, value in {**CHANGED, "output_type": form, "self": stage}.items():
            if name in given:
                given[name] = value
        if self.rest.loop is not None:
            count, time, listed = self.rest.loop
            turns = self.values.get(listed)
            if isinstance(turns, (Tensor, list, tuple)) and len(turns):
                last = {count: len(turns) - 1, time: turns[-1]}
                given |= {name: last[name] for name in last if name in given}
        taken = {name: value for name, value in given.items() if name in self.rest.code.co_varnames}
        missing = [
            n for n in self.rest.code.co_varnames[: self.rest.code.co_argcount] if n not in taken
        ]
        function = types.FunctionType(
            self.rest.code, self.globals, argdefs=(None,) * self.rest.code.co_argcount
        )
        latents = stage._stage_latents
        devices = [latents.device] if latents.device.type == "cuda" else []
        here = threading.get_ident() == self._thread  # elsewhere the call draws at the same time
        with (
            torch.inference_mode(latents.is_inference()),
            torch.no_grad(),
            torch.random.fork_rng(devices, here),
        ):
            return function(**taken, **dict.fromkeys(missing))

    def _value(self, name: str, value: Any, stage: Stage) -> Any:
        """A variable of the call, as one that may be changed without changing the call."""
        if isinstance(value, Tensor):
            return value.as_subclass(Tensor).clone()
        if isinstance(value, torch.Generator):
            return value.clone_state()
        if isinstance(value, list):
            return [
                self._value(name, v, stage) if isinstance(v, torch.Generator) else v for v in value
            ]
        if isinstance(value, dict):
            return dict(value)
        if value is self.pipe.scheduler:
            return stage.scheduler
        if hasattr(value, "set_timesteps") and hasattr(value, "step"):
            return Still(value, [])
        return Silent() if name == "progress_bar" else stage._stage_part(value)


class Stands:
    """An object in the place of another: it reads the other's attributes and keeps what is set on
    it to itself.
    """

    def __init__(self, other: Any) -> None:
        self.__dict__["_other"] = other

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._other)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._other, name)


class Stage(Stands):
    """The pipeline as the rest of its call sees it."""

    def __init__(self, pipe: Any, latents: Tensor, decode: Decode | None) -> None:
        super().__init__(pipe)
        self._stage_latents, self._stage_rule, self._stage_decoded = latents, decode, list[Tensor]()
        self.scheduler = Still(pipe.scheduler, [latents])
        if decode is not None:
            self.__dict__ |= dict.fromkeys(QUIET)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._other, name)
        if inspect.ismethod(value) and value.__self__ is self._other:
            return types.MethodType(value.__func__, self)
        if name not in self.__dict__ and isinstance(value, nn.Module):
            self.__dict__[name] = self._stage_part(value)
        return self.__dict__.get(name, value)

    def _stage_part(self, value: Any) -> Any:
        """A part of the pipeline, or an object of its call, as one that the rest of the call cannot
        change.
        """
        if isinstance(value, nn.Module):
            if any(value is module for module in networks(self._other)):
                return Network(value)
            return (
                Decoder(value, self)
                if callable(getattr(value, "decode", None))
                else Unchanged(value)
            )
        plain = (
            isinstance(value, PLAIN)
            or callable(value)
            or type(value).__module__.split(".")[0] in ("numpy", "PIL")
        )
        return value if plain else Unchanged(value)

    def maybe_free_model_hooks(self) -> None:
        """Models stay where they are: the call goes on."""

    def progress_bar(self, *_: Any, **__: Any) -> Silent:
        return Silent()


class Unchanged(Stands):
    """An object whose methods that change it do nothing."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._other, name)
        if isinstance(value, nn.Module):
            return Unchanged(value)
        return _nothing if CHANGING.match(name) and callable(value) else value

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__[name] = value

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._other(*args, **named)

    def __getitem__(self, key: Any) -> Any:
        return self._other[key]

    def __len__(self) -> int:
        return len(self._other)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._other)


class Network(Unchanged):
    """A network of the loop: it is at work, and what calls it after the loop is another loop."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise NoTail(
            f"the call goes on with its network ({type(self._other).__name__}) after this loop"
        )


def _nothing(*_: Any, **__: Any) -> None:
    return None


class Decoder(Unchanged):
    """An autoencoder whose decoded pixels are noted, or made by another rule."""

    def __init__(self, vae: nn.Module, stage: Stage) -> None:
        super().__init__(vae)
        self.__dict__["_stage"] = stage

    def decode(self, z: Tensor, *args: Any, **named: Any) -> Any:
        stage = self._stage
        if stage._stage_rule is None:
            made = self._other.decode(z, *args, **named)
            pixels = made[0]
            if not stage._stage_decoded:
                stage._stage_decoded.append(pixels)
            return made
        if stage.__dict__.setdefault("_stage_first", self) is not self:
            raise Enough
        from diffusers.models.autoencoders.vae import DecoderOutput

        pixels = stage._stage_rule(self._other, z)
        stage._stage_decoded.append(pixels)
        return DecoderOutput(sample=pixels)

    def to(self, *args: Any, **named: Any) -> Any:
        return self if self._stage._stage_rule is not None else self._other.to(*args, **named)


class Still(Stands):
    """A scheduler that steps no run: each of `samples` once, then the sample that it is called
    with.
    """

    def __init__(self, scheduler: Any, samples: list[Tensor]) -> None:
        super().__init__(scheduler)
        self.__dict__["_samples"] = list(samples)

    def step(
        self, model_output: Any = None, timestep: Any = None, sample: Any = None, *_: Any, **__: Any
    ) -> Moved:
        return Moved(self._samples.pop(0) if self._samples else sample)

    def set_timesteps(self, *_: Any, **__: Any) -> None:
        """Another loop would begin; its network refuses (see `Network`)."""

    def add_noise(self, original_samples: Any, *_: Any, **__: Any) -> Any:
        """What is blended with a prediction is to be as clean as it."""
        return original_samples

    scale_noise = scale_model_input = add_noise


class Moved(tuple[Any, ...]):
    """What `step` returns, by attribute, place or name."""

    def __new__(cls, sample: Any) -> Moved:
        return super().__new__(cls, (sample, sample))

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(0 if isinstance(key, str) else key)

    @property
    def prev_sample(self) -> Any:
        return self[0]

    pred_original_sample = prev_sample


class Silent:
    """A progress bar that shows nothing."""

    def __getattr__(self, name: str) -> Any:
        return _nothing

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __iter__(self) -> Iterator[Any]:
        return iter(())
