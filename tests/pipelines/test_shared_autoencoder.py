"""Law: an autoencoder that is cast to decode is never used by two at once: they take turns, or one
is refused.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline

import timonel as tm
from support import tiny
from timonel.errors import RunError
from timonel.pipelines.network import busy

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*upcast_vae.*:FutureWarning"
)  # diffusers on its own code
BUSY = "AutoencoderKL .* is at work in another call"
CALL: dict[str, Any] = {"steps": 3, "output_type": "pt"}


class Held:
    """A method that waits inside, once `arm` was called, until `go`."""

    def __init__(self, module: Any, name: str) -> None:
        self.inner, self.entered, self.go = (
            getattr(module, name),
            threading.Event(),
            threading.Event(),
        )
        self.armed, self.dtypes, self.module = False, list[torch.dtype](), module
        setattr(module, name, self)

    def arm(self) -> None:
        self.armed = True
        self.entered.clear()
        self.go.clear()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.armed:
            self.armed = False
            self.entered.set()
            assert self.go.wait(60)
        self.dtypes.append(self.module.dtype)
        return self.inner(*args, **kwargs)


class Background:
    """A call in a thread, with what it made or raised."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call, self.made, self.error = call, None, None
        self.thread = threading.Thread(target=self._work)
        self.thread.start()

    def _work(self) -> None:
        try:
            self.made = self.call()
        except Exception as error:
            self.error = error

    def result(self) -> Any:
        self.thread.join(60)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.made


def half(vae: Any) -> None:
    vae.register_to_config(force_upcast=True)
    vae.half()


def plain(pipe: Any, **more: Any) -> torch.Tensor:
    asked = {**tiny.prompt(pipe), "output_type": "pt", "num_inference_steps": 2, **more}
    made: torch.Tensor = pipe(**asked, generator=torch.Generator().manual_seed(2)).images
    return made


def changes(pipe: Any) -> Callable[[], torch.Tensor]:
    """A plain call of half precision that changes a picture: it encodes before its network is
    called.
    """
    other = StableDiffusionXLImg2ImgPipeline(**pipe.components, add_watermarker=False)
    other.set_progress_bar_config(disable=True)
    other.unet.half()
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    given = {
        name: value for name, value in tiny.prompt(pipe).items() if name not in ("height", "width")
    }
    given = {
        name: value.half() if isinstance(value, torch.Tensor) else value
        for name, value in given.items()
    }

    def call() -> torch.Tensor:
        more = {"image": picture, "num_inference_steps": 4, "output_type": "pt"}
        made: torch.Tensor = other(
            **{**given, **more}, generator=torch.Generator().manual_seed(2)
        ).images
        return made

    return call


@pytest.fixture
def two() -> Iterator[list[Any]]:
    """Two pipelines with networks of their own and one half-precision autoencoder."""
    pipes = [tiny.sdxl(0), tiny.sdxl(1)]
    half(pipes[0].vae)
    pipes[1].register_modules(vae=pipes[0].vae)
    before = dict(vars(pipes[0].vae))
    yield pipes
    after = dict(vars(pipes[0].vae))
    after.pop("decode", None)
    assert after.keys() == before.keys()  # nothing is left before its methods
    assert pipes[0].vae.dtype == torch.float16


def test_a_call_does_not_end_while_a_look_at_it_decodes(two: list[Any]) -> None:
    """The look begins inside of the call; a plain call that comes meanwhile would cast what it
    decodes with.
    """
    helm, decode, looks = tm.Helm(two[0]), Held(two[0].vae, "decode"), threading.Event()
    asked = {**tiny.prompt(two[0]), **CALL, "seeds": [1]}
    whole, other = helm(**asked).images, plain(two[1])
    decode.dtypes.clear()

    def hold(run: tm.Run) -> None:
        if run.step == 2:
            assert looks.wait(60)

    handle = helm.start(**asked, hooks=[hold])
    while not handle.wait(1) or handle.step < 2:
        pass
    decode.arm()
    look = Background(lambda: handle.preview(decode=True))
    assert decode.entered.wait(60)
    looks.set()  # the call comes to its end, and waits for its turn
    with pytest.raises(RunError, match=BUSY):
        plain(two[1])
    assert not handle.done
    decode.go.set()
    assert look.result()[0].size == (16, 16)
    assert torch.equal(handle.result(60).images, whole)
    assert torch.equal(plain(two[1]), other)
    assert set(decode.dtypes) == {torch.float32}


@pytest.mark.parametrize("what", ["decode", "encode"])
def test_a_plain_call_with_a_network_of_its_own_is_refused_where_it_comes_to_the_autoencoder(
    two: list[Any], what: str
) -> None:
    helm, decode = tm.Helm(two[0]), Held(two[0].vae, "decode")
    asked = {**tiny.prompt(two[0]), **CALL, "seeds": [1]}
    call = {"decode": lambda: plain(two[1]), "encode": changes(two[1])}[what]
    whole, theirs = helm(**asked).images, call()
    decode.arm()
    handle = helm.start(**asked)
    assert decode.entered.wait(60)
    with pytest.raises(RunError, match=BUSY):
        call()
    decode.go.set()
    assert torch.equal(handle.result(60).images, whole)
    assert torch.equal(call(), theirs)


def test_a_steered_call_does_not_begin_while_a_plain_one_may_have_cast_its_autoencoder(
    two: list[Any],
) -> None:
    helm, decode = tm.Helm(two[0]), Held(two[0].vae, "decode")
    asked = {**tiny.prompt(two[0]), **CALL, "seeds": [1]}
    whole, theirs = helm(**asked).images, plain(two[1])
    decode.arm()
    call = Background(lambda: plain(two[1]))
    assert decode.entered.wait(60)
    for refused in (lambda: helm(**asked), lambda: helm.preview(decode=True)):
        with pytest.raises(RunError, match=BUSY):
            refused()
    decode.go.set()
    assert torch.equal(call.result(), theirs)
    assert torch.equal(helm(**asked).images, whole)


def test_a_plain_call_of_a_hook_uses_the_autoencoder_of_the_run_that_waits_for_it(
    two: list[Any],
) -> None:
    asked = {**tiny.prompt(two[0]), **CALL, "seeds": [1]}
    whole, theirs, seen = tm.Helm(two[0])(**asked).images, plain(two[1]), list[torch.Tensor]()
    made = tm.Helm(two[0])(**asked, hooks=[lambda run: seen.append(plain(two[1]))]).images
    assert torch.equal(made, whole)
    assert seen
    assert all(torch.equal(one, theirs) for one in seen)


def test_an_autoencoder_that_nobody_casts_is_used_by_both() -> None:
    pipes = [tiny.sd(0), tiny.sd(1)]
    pipes[0].vae.register_to_config(force_upcast=True)  # as every AutoencoderKL by default
    pipes[1].register_modules(vae=pipes[0].vae)
    helm, decode = tm.Helm(pipes[0]), Held(pipes[0].vae, "decode")
    asked = {**tiny.prompt(pipes[0]), **CALL, "seeds": [1]}
    whole, theirs = helm(**asked).images, plain(pipes[1])
    decode.arm()
    handle = helm.start(**asked)
    assert decode.entered.wait(60)
    assert torch.equal(plain(pipes[1]), theirs)
    decode.go.set()
    assert torch.equal(handle.result(60).images, whole)


def test_a_copy_of_an_autoencoder_during_a_call_is_one_of_its_own(two: list[Any]) -> None:
    copies: list[Any] = []
    asked = {**tiny.prompt(two[0]), **CALL, "seeds": [1]}
    tm.Helm(two[0])(**asked, hooks=[lambda run: copies.append(copy.deepcopy(two[0].vae))])
    made = copies[0]
    made.to(dtype=torch.float32)
    assert made.dtype == torch.float32
    assert two[0].vae.dtype == torch.float16
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
        assert not made.decode(torch.ones(1, 4, 8, 8), return_dict=False)[0].any()


def test_what_somebody_put_in_the_place_of_a_method_during_a_call_stays(two: list[Any]) -> None:
    vae = two[0].vae

    def replace(run: tm.Run) -> None:
        inner = vae.decode
        vae.decode = lambda *args, **kwargs: inner(*args, **kwargs)

    asked = {**tiny.prompt(two[0]), **CALL, "seeds": [1]}
    whole = tm.Helm(two[0])(**asked).images
    assert torch.equal(tm.Helm(two[0])(**asked, hooks=[replace]).images, whole)
    assert vae.decode.__name__ == "<lambda>"
    assert torch.equal(tm.Helm(two[0])(**asked).images, whole)


def test_a_look_that_outlives_an_interrupted_wait_for_it_lets_the_pipeline_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe, looking, go = tiny.sdxl(), threading.Event(), threading.Event()

    def look() -> None:
        with busy.beside(pipe):
            looking.set()
            assert go.wait(60)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    claim = busy.Claim(pipe)
    other = Background(look)
    assert looking.wait(60)
    with monkeypatch.context() as patch:
        patch.setattr(busy._GUARD, "wait_for", interrupt)
        with pytest.raises(KeyboardInterrupt):
            claim.release()
    with pytest.raises(RunError, match="at work"):
        busy.Claim(pipe)
    go.set()
    other.result()
    busy.Claim(pipe).release()
