"""The rest of a pipeline's call after its loop, run once more with other latents.

A pipeline unpacks, scales, cuts and decodes its latents after its loop. `look`, called while the
pipeline steps its scheduler, notes where that call is and the variables that the rest of it reads.
`Tail.output` runs the rest with other latents in the place of what `step` returns: the step's own
statement, what follows it in the loop's last turn, and everything after the loop.

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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ModelError
from ..caller import frames
from ..guidance.gate import networks
from ..source import READING

# methods that change their object, as calls clean up after their loop: attention processors, caches
CHANGING = re.compile(
    r"_?(set|clear|reset|enable|disable|remove|delete|load|unload|restore|fuse|unfuse|free)(_|$)"
)
PLAIN = (
    type(None), bool, int, float, complex, str, bytes, tuple, type, torch.dtype, torch.device,
    torch.Size,
)  # fmt: skip
# networks that only judge or mark a finished picture
QUIET = ("safety_checker", "watermark", "watermarker")
CHANGED = {"return_dict": True, "callback": None, "callback_on_step_end": None}
NAME = "rest_of_call"  # in tracebacks
FORMATS = ("pt", "np", "pil")  # of an output, as pipelines call them; some lack the first
Decode = Callable[[nn.Module, Tensor], Tensor]


class NoTail(ModelError):
    """A pipeline whose call has no rest that could be run."""


class Enough(BaseException):
    """Raised to end the rest of a call: its pixels are there."""


# -- where a call is -------------------------------------------------------------------------------
@dataclass(frozen=True)
class Rest:
    """The compiled rest of a function.

    Attributes:
        code: of the rest.
        names: the variables that it reads.
        loop: the names of its loop's count, time and list.
    """

    code: types.CodeType
    names: tuple[str, ...]
    loop: tuple[str | None, str | None, str] | None

    def call(self, values: Mapping[str, Any], names: dict[str, Any]) -> Any:
        """Run the rest with values of its variables, among the `names` of its module."""
        wanted = self.code.co_varnames[: self.code.co_argcount]
        return types.FunctionType(self.code, names)(*(values.get(name) for name in wanted))


def look(pipe: Any) -> CallTail | None:
    """The rest of the present call of `pipe`, from inside a step of its scheduler.

    Returns:
        The rest; None outside of a call.

    Raises:
        NoTail: the pipeline's source cannot be read, or it steps outside of its own call.
    """
    methods = (frame for frame in frames() if frame.f_code.co_varnames[:1] == ("self",))
    frame = next((frame for frame in methods if frame.f_locals.get("self") is pipe), None)
    if frame is None:
        return None
    method = frame.f_code.co_name
    if method != "__call__":
        raise NoTail(f"{type(pipe).__name__} steps its scheduler in {method}, outside of its call")
    rest, values = rest_of(frame.f_code, frame.f_lineno), frame.f_locals
    values = {name: values[name] for name in rest.names if name in values}
    return CallTail(pipe, rest, values, frame.f_globals)


@lru_cache(maxsize=64)
def rest_of(code: types.CodeType, line: int) -> Rest:
    """The rest of a function from the statement at `line` on."""
    with READING:
        return _read_rest(code, line)


def _read_rest(code: types.CodeType, line: int) -> Rest:
    """As `_rest`, while no other thread makes syntax trees."""
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
    local = {*code.co_varnames, *code.co_cellvars, *code.co_freevars}
    names = [name for name in used if name in local]
    loop = _loop(loops[0], local) if loops else None
    needed = dict.fromkeys([*names, *(name for name in loop or () if name is not None)])
    return Rest(_compiled(body, names, code.co_filename), tuple(needed), loop)


def _compiled(body: list[ast.stmt], names: list[str], file: str) -> types.CodeType:
    """Statements as the code of a function of these arguments."""
    rest: Any = ast.parse(f"def {NAME}({', '.join(f'{name}=None' for name in names)}): pass")
    rest.body[0].body = body
    compiled = compile(ast.fix_missing_locations(rest), file, "exec")
    codes = (c for c in compiled.co_consts if isinstance(c, types.CodeType))
    return next(c for c in codes if c.co_name == NAME)


def _after(block: list[ast.stmt], line: int, loops: list[ast.For]) -> list[ast.stmt]:
    """The rest of `block` from the statement at `line` on; of a loop, the turn that it is in."""
    at = next((i for i in range(len(block)) if _spans(block[i : i + 1], line)), None)
    if at is None:
        raise NoTail(f"no statement at line {line}")
    inside = next((part for part in _blocks(block[at]) if _spans(part, line)), None)
    if inside is None:
        return block[at:]
    rest = _after(inside, line, loops)
    if isinstance(block[at], (ast.For, ast.While)):
        if isinstance(block[at], ast.For):
            loops.append(block[at])  # type: ignore[arg-type]
        turn: Any = ast.parse("for _turn in (0,): pass").body[0]
        turn.body = rest
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


def _loop(loop: ast.For, local: set[str]) -> tuple[str | None, str | None, str] | None:
    """The names of a loop's count, time and list: `for i, t in enumerate(timesteps)`."""
    used = [node.id for node in ast.walk(loop.iter) if isinstance(node, ast.Name)]
    listed = [name for name in used if name in local - {"self"}]
    if len(listed) != 1:
        return None
    target = loop.target
    if isinstance(target, ast.Name):
        return None, target.id, listed[0]
    names = [e.id for e in getattr(target, "elts", ()) if isinstance(e, ast.Name)]
    if isinstance(target, ast.Tuple) and len(names) == len(target.elts):
        count, time = names[:2]
        return count, time, listed[0]
    return None


# -- the rest of it --------------------------------------------------------------------------------
class Tail:
    """The rest of one call, to be run with other latents: `CallTail` or `blocks.BlocksTail`."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self._formats, self._thread = list(FORMATS), threading.get_ident()

    def output(self, latents: Tensor, decode: Decode | None = None) -> tuple[Any, list[Tensor]]:
        """What the pipeline returns for other latents.

        Args:
            latents: as the run has them.
            decode: in the place of the autoencoder's own, `(autoencoder, latents) -> pixels`;
                networks that only judge the picture are then left out, and a second autoencoder
                ends the call.

        Returns:
            The output, None where the call did not come to its end; and what the autoencoder
            decoded on the way.
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
        latents = stage._stage_latents
        devices = [latents.device] if latents.device.type == "cuda" else []
        here = threading.get_ident() == self._thread  # elsewhere the call draws at the same time
        with (
            torch.inference_mode(latents.is_inference()),
            torch.no_grad(),
            torch.random.fork_rng(devices, here),
        ):
            return self._run(stage, form)

    def _run(self, stage: Stage, form: str) -> Any:
        """Run the rest on a stage, with pictures of a form of `FORMATS`."""
        raise NotImplementedError

    def _value(self, name: str, value: Any, stage: Stage) -> Any:
        """A variable of the call that may change without changing the call."""
        if isinstance(value, Tensor):
            return value.as_subclass(Tensor).clone()
        if isinstance(value, torch.Generator):
            return value.clone_state()
        if isinstance(value, list):
            return [v.clone_state() if isinstance(v, torch.Generator) else v for v in value]
        if isinstance(value, dict):
            return dict(value)
        if value is self.pipe.scheduler:
            return stage.scheduler
        if hasattr(value, "set_timesteps") and hasattr(value, "step"):
            return IdleScheduler(value, [])
        return SilentBar() if name == "progress_bar" else stage._stage_part(value)


class CallTail(Tail):
    """The rest of a pipeline's `__call__`. Make one with `look`."""

    def __init__(
        self, pipe: Any, rest: Rest, values: dict[str, Any], names: dict[str, Any]
    ) -> None:
        super().__init__(pipe)
        self.rest, self.values, self.globals = rest, values, names

    def _run(self, stage: Stage, form: str) -> Any:
        """Run the rest on a stage, with pictures of a form of `FORMATS`."""
        values = {name: self._value(name, value, stage) for name, value in self.values.items()}
        other = {**CHANGED, **self._last_turn(), "output_type": form, "self": stage}
        values |= {name: value for name, value in other.items() if name in values}
        return self.rest.call(values, self.globals)

    def _last_turn(self) -> dict[Any, Any]:
        """The loop's variables in its last turn."""
        count, time, listed = self.rest.loop or (None, None, "")
        turns = self.values.get(listed)
        if not isinstance(turns, (Tensor, list, tuple)) or not len(turns):
            return {}
        return {count: len(turns) - 1, time: turns[-1]}


class StandIn:
    """A stand-in for an object: it reads that object's attributes, and keeps what is set on it."""

    def __init__(self, other: Any) -> None:
        self.__dict__["_other"] = other

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._other)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._other, name)


class Stage(StandIn):
    """The pipeline as the rest of its call sees it."""

    def __init__(self, pipe: Any, latents: Tensor, decode: Decode | None) -> None:
        super().__init__(pipe)
        self._stage_latents, self._stage_rule, self._stage_decoded = latents, decode, list[Tensor]()
        self.scheduler = IdleScheduler(pipe.scheduler, [latents])
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
        """A part of the pipeline, or an object of its call, that the rest cannot change."""
        if isinstance(value, nn.Module):
            if any(value is module for module in networks(self._other)):
                return LoopNetwork(value)
            decodes = callable(getattr(value, "decode", None))
            return Decoder(value, self) if decodes else Unchanged(value)
        library = type(value).__module__.split(".")[0]
        plain = isinstance(value, PLAIN) or callable(value) or library in ("numpy", "PIL")
        return value if plain else Unchanged(value)

    def maybe_free_model_hooks(self) -> None:
        """Models stay where they are: the call goes on."""

    def progress_bar(self, *_: Any, **__: Any) -> SilentBar:
        """A bar that shows nothing."""
        return SilentBar()


class Unchanged(StandIn):
    """An object whose methods that change it do nothing."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._other, name)
        if isinstance(value, nn.Module):
            return Unchanged(value)
        return _nothing if CHANGING.match(name) and callable(value) else value

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__[name] = value

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Call the object itself."""
        return self._other(*args, **named)

    def __getitem__(self, key: Any) -> Any:
        return self._other[key]

    def __len__(self) -> int:
        return len(self._other)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._other)


class LoopNetwork(Unchanged):
    """A network of the loop; a call of it after the loop is another loop, and is refused."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Raise `NoTail`."""
        name = type(self._other).__name__
        raise NoTail(f"the call goes on with its network ({name}) after this loop")


def _nothing(*_: Any, **__: Any) -> None:
    return None


class Decoder(Unchanged):
    """An autoencoder whose decoded pixels are noted, or made by another rule."""

    def __init__(self, vae: nn.Module, stage: Stage) -> None:
        super().__init__(vae)
        self.__dict__["_stage"] = stage

    def decode(self, z: Tensor, *args: Any, **named: Any) -> Any:
        """As the autoencoder's own `decode`."""
        stage = self._stage
        if stage._stage_rule is None:
            output = self._other.decode(z, *args, **named)
            if not stage._stage_decoded:
                stage._stage_decoded.append(output[0])
            return output
        if stage.__dict__.setdefault("_stage_first", self) is not self:
            raise Enough
        from diffusers.models.autoencoders.vae import DecoderOutput

        pixels = stage._stage_rule(self._other, z)
        stage._stage_decoded.append(pixels)
        return DecoderOutput(sample=pixels)

    def to(self, *args: Any, **named: Any) -> Any:
        """Move the autoencoder, unless another rule decodes."""
        return self if self._stage._stage_rule is not None else self._other.to(*args, **named)


class IdleScheduler(StandIn):
    """A scheduler that steps no run.

    Args:
        scheduler: of the call.
        samples: what its first steps return; later ones return the sample they are called with.
    """

    def __init__(self, scheduler: Any, samples: list[Tensor]) -> None:
        super().__init__(scheduler)
        self.__dict__["_samples"] = list(samples)

    def step(
        self, model_output: Any = None, timestep: Any = None, sample: Any = None, *_: Any, **__: Any
    ) -> StepOutput:
        """The next of the samples, as a scheduler returns it."""
        return StepOutput(self._samples.pop(0) if self._samples else sample)

    def set_timesteps(self, *_: Any, **__: Any) -> None:
        """Nothing: another loop would begin, and its network refuses (see `LoopNetwork`)."""

    def add_noise(self, original_samples: Any, *_: Any, **__: Any) -> Any:
        """The samples without noise, as clean as the prediction they are blended with."""
        return original_samples

    scale_noise = scale_model_input = add_noise


class StepOutput(tuple[Any, ...]):
    """What `step` returns, by attribute, index or name."""

    def __new__(cls, sample: Any) -> StepOutput:
        """Both results of a step are the sample."""
        return super().__new__(cls, (sample, sample))

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(0 if isinstance(key, str) else key)

    @property
    def prev_sample(self) -> Any:
        """The sample."""
        return self[0]

    pred_original_sample = prev_sample


class SilentBar:
    """A progress bar that shows nothing."""

    def __getattr__(self, name: str) -> Any:
        return _nothing

    def __enter__(self) -> SilentBar:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __iter__(self) -> Iterator[Any]:
        return iter(())
