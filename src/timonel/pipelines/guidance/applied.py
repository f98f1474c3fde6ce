"""What guidance makes of a row's parts in the place of the pipeline's sum, and beside it.

A method (`tm.apg(…)`) combines both parts in its own way, and a solver may read the unconditional
one. Both are done where the pipeline has combined its parts, for there the sample and the level are
known: what the pipeline made is replaced. For that the parts have to be seen in the sample's layout
and sign, and that they are is measured: what the pipeline made must be a sum of them.

Terms (`tm.pag(…)`) compare the conditional part with that of a worse network, `perturbed`, and are
added to what was made, `s·(cond - worse)`.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...core.guidance import Guidance, Outputs, Term, guide
from ...core.run import Run
from ...errors import ArgumentError, ModelError
from . import batch_tree, perturbed
from .called import Called, networks
from .turn import Turn

EXACT = 0.02  # relative distance from the sum of a pipeline that does nothing else
# arguments of pipelines that change what they have combined
RESCALERS = ("guidance_rescale", "cfg_normalization", "enable_cfg_renorm")
# what another network has to have alike to be called in the place of the pipeline's
INPUTS = ("in_channels", "out_channels", "cross_attention_dim", "joint_attention_dim")
OWN_LAYERS = "skip_guidance_layers"  # of pipelines that skip layers themselves
PERTURBS = "{} perturbs attention itself: give pag_scale=0 for {}"
THREE = (
    "{} guides by two things at once, and {} is made for two parts: guide it by one scale,"
    " guidance=4.0"
)
ALONE = ", so that no other guidance can take its place: guide it by cfg(…) alone"
SCALED = "rescales what it makes of its parts"
NORMS = re.compile(r"torch\.norm\(")
NO_SUM = "makes something else of its two parts than a sum"


@dataclass(frozen=True)
class Layout:
    """How a part of a network's output becomes a part of what the pipeline steps with.

    Args:
        view: index in `VIEWS`.
        sign: -1.0 where the pipeline turns it.
        twice: whether the pipeline steps every sample twice, alike.
        shape: of one part, as it is stepped.
    """

    view: int
    sign: float
    twice: bool
    shape: torch.Size

    def of(self, part: Tensor, like: Tensor) -> Tensor:
        """The part as the pipeline steps it, without the second copy."""
        viewed = VIEWS[self.view](part, self.shape)
        assert viewed is not None
        viewed = viewed.to(like.dtype)
        return -viewed if self.sign < 0 else viewed

    def one(self, tensor: Tensor) -> Tensor:
        """What is stepped, without the second copy and a learned variance."""
        tensor = tensor[: self.shape[0]]
        return tensor[:, : self.shape[1]] if tensor.ndim > 1 else tensor

    def back(self, guided: Tensor) -> Tensor:
        """What the pipeline steps with."""
        return torch.cat([guided, guided]) if self.twice else guided


def _same(part: Tensor, shape: torch.Size) -> Tensor | None:
    return part if part.shape == shape else None


def _first(part: Tensor, shape: torch.Size) -> Tensor | None:
    """The first channels, before a learned variance, or the first tokens, before an image's."""
    fits = part.ndim == len(shape) > 1 and part.shape[1] > shape[1]
    return _same(part[:, : shape[1]], shape) if fits else None


def _squeezed(part: Tensor, shape: torch.Size) -> Tensor | None:
    """Without dimensions of length 1."""
    alike = [n for n in part.shape[1:] if n > 1] == [n for n in shape[1:] if n > 1]
    return part.reshape(shape) if alike and part.shape[0] == shape[0] else None


VIEWS: tuple[Callable[[Tensor, torch.Size], Tensor | None], ...] = (_same, _first, _squeezed)


def find(parts: Sequence[Tensor], raw: Tensor, x: Tensor, name: str, strict: bool) -> Layout:
    """The layout of the parts of a row.

    Args:
        parts: conditional and unconditional, or the conditional one alone.
        raw: what the pipeline made of them.
        x: the sample that it steps.
        name: of the pipeline.
        strict: whether the pipeline has to do nothing else than to sum.

    Raises:
        ArgumentError: it does something else with them.
    """
    target, twice = _stepped(len(parts[0]), raw, x)
    reason = "changes what its network returns before it steps with it"
    for view, seen in enumerate(VIEWS):
        viewed = [v for v in (seen(part, target.shape) for part in parts) if v is not None]
        if len(viewed) < len(parts):
            continue
        solution = batch_tree.solved(viewed, target, EXACT if strict else batch_tree.SLACK)
        total = 0.0 if solution is None else sum(solution)
        if solution is not None and (not strict or abs(abs(total) - 1) <= EXACT):
            return Layout(view, math.copysign(1.0, total), twice, target.shape)
        reason = NO_SUM if solution is None else SCALED
    raise ArgumentError(f"{name} {reason}{ALONE}")


def _stepped(count: int, raw: Tensor, x: Tensor) -> tuple[Tensor, bool]:
    """What is stepped of `count` samples, without a learned variance, and whether it is twice."""
    twice = len(raw) == 2 * count and torch.equal(*raw.chunk(2))
    target = raw[:count] if twice else raw
    if target.ndim > 1 and target.ndim == x.ndim and target.shape[1] == 2 * x.shape[1]:
        target = target[:, : x.shape[1]]
    return target, twice


class Applied:
    """The methods and terms of one call.

    Args:
        pipe: the pipeline.
        weak: another network for `autoguidance`.
    """

    def __init__(self, pipe: Any, weak: nn.Module | None = None) -> None:
        self.pipe, self.weak = pipe, weak
        self.layout: Layout | None = None
        self.summed = False  # the pipeline was seen to do nothing else than to sum

    @property
    def name(self) -> str:
        """Of the pipeline, for messages."""
        return type(self.pipe).__name__

    def wants(self, run: Run) -> bool:
        """Whether the parts of the coming row are to be kept."""
        return self.replaces(run) or bool(run.guided.terms(run.row))

    def replaces(self, run: Run) -> bool:
        """Whether both parts of the row are needed, for a method or a solver."""
        guided = run.scale != 1.0 and run.guided.guidance is not None
        return guided and (run.guided.method is not None or run.table.reads_uncond)

    def check(self, guidance: Guidance) -> None:
        """Check that the networks of a call that goes on can be guided so.

        Raises:
            ArgumentError, UnknownName, ModelError: they cannot.
        """
        if guidance.method is not None:
            _refuse_norms(self.pipe)
        modules = [module for module, main in networks(self.pipe).items() if main]
        refuse_terms(self.pipe, guidance.terms, modules, self.weak)
        if guidance.terms and batch_tree.perturbed(self.pipe):
            raise ArgumentError(PERTURBS.format(self.name, guidance.terms[0].kind))

    def admit(self, run: Run, count: int) -> None:
        """Check that a batch of `count` parts can be guided so, before it is computed.

        Raises:
            ArgumentError: it cannot.
        """
        extra = batch_tree.perturbed(self.pipe)
        if count == 3 and not extra and self.replaces(run):
            raise ArgumentError(THREE.format(self.name, _what(run)))
        if extra and self.wants(run):
            raise ArgumentError(PERTURBS.format(self.name, _what(run)))

    def admit_parts(
        self, guidance: Guidance, each: Sequence[Tensor], raw: Tensor, x: Tensor
    ) -> None:
        """Raises `ArgumentError` where the parts of a row cannot be combined in another way."""
        what = "the sampler" if guidance.method is None else guidance.method.name
        if batch_tree.perturbed(self.pipe):
            raise ArgumentError(PERTURBS.format(self.name, what))
        if len(each) == 3:
            raise ArgumentError(THREE.format(self.name, what))
        find(each, raw, x, self.name, strict=True)

    def evaluate(
        self, turn: Turn, run: Run, called: Called, shape: batch_tree.Shape, place: int
    ) -> bool:
        """Compute the outputs of the worse networks, of the conditional part alone.

        Args:
            turn: gets them.
            run: whose row it is.
            called: the call of the network.
            shape: of its output.
            place: which part is the conditional one.

        Returns:
            Whether the row has any.
        """
        terms = run.guided.terms(run.row)
        if not terms:
            return False
        args, kwargs = called.args, called.kwargs
        if shape.parts > 1:
            each = shape.size // shape.parts
            wanted = slice(place * each, (place + 1) * each)
            args, kwargs = (
                batch_tree.narrow(arguments, shape.size, wanted, shape.listed)
                for arguments in (args, kwargs)
            )
        sample = called.sample
        size = tuple(sample.shape[-2:]) if isinstance(sample, Tensor) and sample.ndim == 4 else None
        turn.worse = []
        for term, share in terms:
            output = batch_tree.tensors(self._worse(term, called, args, kwargs, size))
            if output is not None:
                turn.worse.append((share, output))
        return True

    def _worse(self, term: Term, called: Called, args: Any, kwargs: Any, size: Any) -> Any:
        """The output of the worse network of a term."""
        if _compares(term):
            assert self.weak is not None
            return self.weak(*args, **kwargs)
        module = called.module
        # what compiled code knows of its layers are not these
        forward = called.forward if module._compiled_call_impl is None else module.forward
        with perturbed.perturbed(module, term, size):
            return forward(*args, **kwargs)

    def combined(
        self, turn: Turn, run: Run, raw: Tensor, x: Tensor, places: tuple[int, int], scale: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What the row is advanced with.

        Args:
            turn: has the parts of the row.
            run: whose row it is.
            raw: what the pipeline made of them.
            x: the sample.
            places: of the conditional and the other part.
            scale: of a sum `u + scale·(c - u)`.

        Returns:
            The guided output, and what the run is to remember of the row.

        Raises:
            ArgumentError: the pipeline does something else than to sum.
        """
        both = self.replaces(run)
        parts = [turn.parts[i] for i in places if i < len(turn.parts)][: 2 if both else None]
        if not parts or (both and len(parts) < 2):
            raise ArgumentError(
                f"{self.name} has no unconditional part that can be recognised, which {_what(run)}"
                " needs"
            )
        layout = self._layout(parts, raw, x, both)
        seen = [layout.of(part, raw) for part in parts]
        guided, kept = layout.one(raw), dict[str, Tensor]()
        if both:
            kept["uncond"] = layout.back(seen[1])
            outputs = Outputs(seen[0], seen[1], layout.one(x), run.guided.place(run.row))
            momentum = run.momentum if run.started else None
            guided, momentum = guide(outputs, scale, method=run.guided.method, momentum=momentum)
            if momentum is not None:
                kept["momentum"] = momentum
        for share, worse in turn.worse:
            guided = guided + share * (seen[0] - layout.of(worse, raw))
        same = guided.shape == raw.shape or layout.twice
        return (layout.back(guided) if same else _with_variance(guided, raw)), kept

    def _layout(self, parts: Sequence[Tensor], raw: Tensor, x: Tensor, strict: bool) -> Layout:
        if self.layout is None or (strict and not self.summed):
            if not bool(raw.isfinite().all()):
                strict = False  # which a guard is to say
            self.layout = find(parts, raw, x, self.name, strict)
            self.summed = self.summed or strict
        return self.layout


def _with_variance(guided: Tensor, raw: Tensor) -> Tensor:
    """The guided channels, before the learned variance that the pipeline steps with."""
    return torch.cat([guided, raw[:, guided.shape[1] :]], 1)


def _what(run: Run) -> str:
    method, terms = run.guided.method, run.guided.terms(run.row)
    if method is not None:
        return method.name
    return terms[0][0].kind if terms else run.table.solver


# -- before the call -----------------------------------------------------------------------------
def refuse(
    pipe: Any,
    parameters: Mapping[str, Any],
    options: Mapping[str, Any],
    guidance: Guidance | None,
    weak: Any,
) -> None:
    """Refuse what a call cannot be guided by, as far as it can be seen before it.

    Args:
        pipe: the pipeline.
        parameters: of its call.
        options: the arguments of this call.
        guidance: of the call.
        weak: another network for `autoguidance`.

    Raises:
        ArgumentError, UnknownName, ModelError: why.
    """
    terms = () if guidance is None else guidance.terms
    if guidance is not None and guidance.method is not None:
        _refuse_method(pipe, parameters, options, guidance.method.name)
    if weak is not None and not any(_compares(term) for term in terms):
        raise ArgumentError("weak= is the network of autoguidance(scale): give it in guidance=")
    refuse_terms(pipe, terms, [module for module, main in networks(pipe).items() if main], weak)
    if terms:
        if hasattr(pipe, "_set_pag_attn_processor") and _is_set("pag_scale", parameters, options):
            raise ArgumentError(PERTURBS.format(type(pipe).__name__, terms[0].kind))
        if options.get(OWN_LAYERS) is not None:
            raise ArgumentError(f"give {terms[0].kind}(…) or {OWN_LAYERS}=, not both")


def _refuse_method(
    pipe: Any, parameters: Mapping[str, Any], options: Mapping[str, Any], method: str
) -> None:
    """Raises `ArgumentError` where a pipeline rescales what it guides in this call."""
    for key in RESCALERS:
        if _is_set(key, parameters, options):
            raise ArgumentError(
                f"{type(pipe).__name__} rescales what it guides by {key}, and {method} takes the"
                f" place of its guidance: give {key}={0.0 if 'rescale' in key else False}, and"
                f" {method}(…, rescale=…) for a rescaling"
            )
    if not any(key in parameters for key in RESCALERS):
        _refuse_norms(pipe)


def _refuse_norms(pipe: Any) -> None:
    """Raises `ArgumentError` where a pipeline's source scales its sum to the norm of a part."""
    try:
        source = inspect.getsource(inspect.unwrap(type(pipe).__call__))
    except (OSError, TypeError):
        return  # measured at the first row
    if NORMS.search(source):
        raise ArgumentError(f"{type(pipe).__name__} {SCALED}{ALONE}")


def refuse_terms(pipe: Any, terms: Sequence[Term], modules: Sequence[nn.Module], weak: Any) -> None:
    """Refuse terms that the networks of a pipeline cannot have.

    Args:
        pipe: the pipeline.
        terms: of a guidance.
        modules: the networks that make the prediction.
        weak: another network for `autoguidance`.

    Raises:
        ArgumentError, UnknownName, ModelError: why.
    """
    if any(_compares(term) for term in terms):
        _check_weak(weak, modules)
    if terms and not modules:
        raise ModelError(
            f"timonel does not know the network of {type(pipe).__name__}, so it cannot guide it"
        )
    for term in terms:
        for module in modules:
            perturbed.check(module, term)


def _check_weak(weak: Any, modules: Sequence[nn.Module]) -> None:
    """Raises `ArgumentError` where `weak` cannot be called in the place of a pipeline's network."""
    if weak is None:
        raise ArgumentError(
            "autoguidance compares with a worse network: give its layers to leave out,"
            " autoguidance(2.0, layers=[7, 8]), or another network in the call, weak=unet"
        )
    if not isinstance(weak, nn.Module) or any(weak is module for module in modules):
        raise ArgumentError(f"weak= is another network, an nn.Module, got {type(weak).__name__}")
    for module in modules[:1]:
        theirs, ours = (getattr(one, "config", {}) for one in (weak, module))
        for key in INPUTS:
            if key in theirs and theirs[key] != ours.get(key, theirs[key]):
                raise ArgumentError(
                    f"weak= gets what the pipeline's network gets, and its {key} is {theirs[key]},"
                    f" not {ours[key]}"
                )


def _compares(term: Term) -> bool:
    """Whether a term compares with another network of the caller."""
    return term.kind == "autoguidance" and term.layers is None


def _is_set(key: str, parameters: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    """Whether an argument of the call has a value that acts."""
    if key not in parameters:
        return False
    value = options.get(key)
    return bool(parameters[key].default if value is None else value)
