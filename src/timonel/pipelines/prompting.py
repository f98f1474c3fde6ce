"""The prompts of a call: its arguments read, and checked against the pipeline."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from ..core.guidance import Guidance
from ..core.prompts import Prompts, read
from ..core.run import Run
from ..core.table import Table
from ..errors import ArgumentError, RunError, shown
from .first_turn import FirstTurn
from .guidance.prompts import (
    FORECAST,
    Learned,
    Pair,
    Plan,
    Prompted,
    check_guidance,
    expanded,
    weighted,
)  # fmt: skip

MOST_TOKENS = 10**6  # a tokenizer that says more says that it has no limit
KINDS = (("prompts", "prompt"), ("negative_prompts", "negative_prompt"))


# -- before the call -----------------------------------------------------------------------------
def plan(
    pipe: Any,
    parameters: Mapping[str, inspect.Parameter],
    options: dict[str, Any],
    prompts: Prompts | None,
    negative: Prompts | None,
) -> Plan | None:
    """The prompts of a call, whose first ones are written into the pipeline's own arguments.

    Args:
        pipe: the pipeline.
        parameters: of its call.
        options: the arguments of this call; the first prompts are added to them.
        prompts: the schedule of the prompt.
        negative: the schedule of the negative prompt.

    Returns:
        None where there is no schedule.

    Raises:
        ArgumentError: the pipeline takes no such prompt, the call says another one, or a prompt is
            longer than the pipeline reads.
    """
    if prompts is None and negative is None:
        return None
    read: list[Prompts | None] = []
    for schedule, (what, key) in zip((prompts, negative), KINDS, strict=True):
        if schedule is None:
            read.append(None)
            continue
        _check_takes(pipe, parameters, options, what, key)
        call = options.get(key)
        if call is None:
            call = schedule.first if key == "prompt" else options.get("prompt")
            call = call if isinstance(call, (list, tuple)) else schedule.first
        schedule = expanded(schedule, call, what)
        if options.get(key) is None:
            options[key] = written(schedule.first)
        elif _hashable(options[key]) != schedule.first:
            raise ArgumentError(
                f"{key}={shown(options[key])} and {what}= begins with"
                f" {shown(written(schedule.first))}: leave {key}= out, or let both be the same"
            )
        check_lengths(pipe, parameters, options, schedule, key)
        read.append(schedule)
    return Plan(read[0], read[1], base(options))


def check(plan: Plan | None, guidance: Guidance | None, table: Table) -> None:
    """Raises `ArgumentError` where the prompts of a call fit neither its guidance nor its steps."""
    if plan is not None:
        check_guidance(plan, guidance)
        plan.rows(table)


def texts(plan: Plan | None, options: Mapping[str, Any]) -> list[Any]:
    """All prompts of a call, as pipelines take them."""
    if plan is None or plan.positive is None:
        return [options.get("prompt")]
    return [written(text) for text in plan.positive.texts]


def base(options: Mapping[str, Any]) -> Pair:
    """The prompts that the pipeline itself is called with."""
    return Pair(_hashable(options.get("prompt")), _hashable(options.get("negative_prompt")))


def written(text: Any) -> Any:
    """A prompt as pipelines take it."""
    return list(text) if isinstance(text, tuple) else text


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_takes(
    pipe: Any, parameters: Mapping[str, Any], options: Mapping[str, Any], what: str, key: str
) -> None:
    """Raises `ArgumentError` where a call of the pipeline has no such prompt."""
    name = type(pipe).__name__
    if key not in parameters:
        raise ArgumentError(
            f"{name} takes no {key}, so none can change on the way; leave {what}= out"
        )
    for other, value in options.items():
        embedded = other.endswith(("prompt_embeds", "prompt_embeds_2")) and value is not None
        if embedded and other.startswith("negative_") is (key == "negative_prompt"):
            raise ArgumentError(
                f"{other}= stands in the place of {key}=, and {what}= changes texts: give {key}= as"
                " a text"
            )
    value = options.get(key)
    if value is not None and not isinstance(value, (str, list, tuple)):
        raise ArgumentError(f"{what}= changes texts, and {key}= is {shown(value)}; give a text")


# -- how long a prompt may be ----------------------------------------------------------------------
def check_lengths(
    pipe: Any,
    parameters: Mapping[str, inspect.Parameter],
    options: Mapping[str, Any],
    schedule: Prompts,
    key: str,
) -> None:
    """Raises `ArgumentError` for a prompt of which no encoder of the pipeline reads the end."""
    each = [one for text in schedule.texts for one in ((text,) if isinstance(text, str) else text)]
    for text in dict.fromkeys(each):
        cuts = list(_cuts(pipe, parameters, options, text, key))
        if cuts and all(cut for cut in cuts):
            limit, count, lost = min(cut for cut in cuts if cut is not None)
            raise ArgumentError(
                f"the prompt {shown(text)} has {count} tokens and {type(pipe).__name__} reads"
                f" {limit}: it would lose {shown(lost)}; shorten it"
            )


def _cuts(
    pipe: Any,
    parameters: Mapping[str, inspect.Parameter],
    options: Mapping[str, Any],
    text: str,
    key: str,
) -> Iterator[tuple[int, int, str] | None]:
    """For every tokenizer its limit, the number of tokens and what is cut off; None: nothing."""
    most = options.get("max_sequence_length")
    if most is None and "max_sequence_length" in parameters:
        most = parameters["max_sequence_length"].default
    for suffix in ("", "_2", "_3", "_4"):
        tokenizer = getattr(pipe, f"tokenizer{suffix}", None)
        if tokenizer is None or (suffix and options.get(f"{key}{suffix}") is not None):
            continue
        limits = [getattr(tokenizer, "model_max_length", None), most]
        limit = min((n for n in limits if isinstance(n, int) and n < MOST_TOKENS), default=None)
        ids = None if limit is None else _tokens(pipe, tokenizer, text)
        if limit is None or ids is None:
            continue
        # the last token that is kept is the end mark
        cut = len(ids) > limit
        yield (limit, len(ids), _words(tokenizer, ids[limit - 1 : -1])) if cut else None


def _tokens(pipe: Any, tokenizer: Any, text: str) -> list[int] | None:
    """The tokens of a prompt; None where the tokenizer takes no text alone."""
    convert = getattr(pipe, "maybe_convert_prompt", None)
    try:
        text = text if convert is None else convert(text, tokenizer)
        # up to a length that no prompt has, else some say that the model reads less
        ids = tokenizer(text, truncation=True, max_length=MOST_TOKENS, padding=False)["input_ids"]
    except Exception:  # a processor of pictures, which any class may be
        return None
    listed = ids.tolist() if hasattr(ids, "tolist") else ids
    flat: list[int] = listed[0] if listed and isinstance(listed[0], list) else listed
    return flat


def _words(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids)
    return text.strip()


# -- the call --------------------------------------------------------------------------------------
def begin(first: FirstTurn, plan: Plan | None) -> None:
    """Learn the prompts of a call before its first network call, and give them to its gate.

    Raises:
        ArgumentError: the pipeline cannot take them.
    """
    if plan is None or plan.constant:
        return
    choices = (
        [base] if schedule is None else schedule.texts
        for schedule, base in zip((plan.positive, plan.negative), plan.base, strict=True)
    )
    pairs = [Pair(*pair) for pair in itertools.product(*choices)]
    prompted = Prompted(plan)
    rows = prompted.rows(first.session.scheduler.run.table)
    prompted.learned = _learned(first, [plan.base, *pairs], rows)
    first.gate.prompts = prompted


def change(first: FirstTurn, run: Run, prompts: Any, negative: Any) -> None:
    """Let other prompts hold for the rows that are computed from here on.

    Args:
        first: of the call; in its thread, between two rows.
        run: of the call.
        prompts: a prompt or a schedule; None leaves the prompt as it is.
        negative: as `prompts`, the negative prompt.

    Raises:
        RunError: no row is to come.
        ArgumentError: the pipeline cannot take them; the run goes on as it was.
    """
    if prompts is None and negative is None:
        raise ArgumentError(
            "no prompt to change to: give one, e.g. run.prompt('a fox in the snow')"
        )
    if run.row == run.table.nfe:
        raise RunError("no row is to come for another prompt: go back with run.rewind(step) first")
    if run.guided.order:
        raise ArgumentError(FORECAST)
    pipe, options, gate = first.pipe, dict(first.options), first.gate
    parameters = inspect.signature(pipe.__call__).parameters
    present = Plan(None, None, base(options)) if gate.prompts is None else gate.prompts.plan
    schedules = [present.positive, present.negative]
    for i, (value, (what, key)) in enumerate(zip((prompts, negative), KINDS, strict=True)):
        if value is None:
            continue
        _check_takes(pipe, parameters, options, what, key)
        batch = options.get(key) if isinstance(options.get(key), list) else options.get("prompt")
        schedule = schedules[i] = expanded(read(value), batch, what)
        check_lengths(pipe, parameters, options, schedule, key)
    plan = Plan(schedules[0], schedules[1], present.base)
    rows = plan.rows(run.table)
    prompted = gate.prompts or Prompted(Plan(None, None, present.base))
    if gate.prompts is None:
        prompted.journey = dict(enumerate(prompted.rows(run.table)[: run.row]))
    # a rewind may compute the rows behind once more, as they were
    coming = [*prompted.journey.values(), *rows[run.row :]]
    learned = _learned(first, plan.pairs(coming), coming)
    prompted.change(plan, learned, rows)
    gate.prompts = prompted


def _learned(first: FirstTurn, pairs: list[Pair], rows: Any) -> Learned:
    """What the networks get for pairs, whose mixtures in `rows` are tried."""
    learned = first.learn(list(dict.fromkeys(pairs)))
    for row in dict.fromkeys(rows):
        learned.values(weighted(*row))
    return learned
