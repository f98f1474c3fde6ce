"""`timonel invert`, and `timonel generate --variation`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from timonel.cli import app
from timonel.errors import TimonelError
from timonel.make.inversion import latents_of
from timonel.make.recipe import Recipe


def here(folder: Path, *arguments: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def test_a_picture_goes_back_to_its_noise(tmp_path: Path) -> None:
    given = ("--steps", "3", "--seed", "7", "--variation", "8:0.2", "-o", "apple.png")
    here(tmp_path, "generate", "red apple", *given)
    assert Recipe.read(tmp_path / "apple.png").variation == (8, 0.2)
    said = here(tmp_path, "invert", "apple.png", "red apple", "--steps", "4", "--method", "ddim")
    assert "there and back is off by" in said
    assert latents_of(tmp_path / "apple-noise.safetensors").shape[0] == 1
    again = here(
        tmp_path, "invert", "apple.png", "red apple", "--steps", "4", "--method", "ddim", "--json"
    )
    report = json.loads(again)
    assert Path(report["noise"]).name == "apple-noise-2.safetensors"
    assert report["calls"] == 4
    assert report["converged"] is False


def test_consecutive_pictures_vary_towards_consecutive_seeds(tmp_path: Path) -> None:
    given = ("--steps", "2", "--seed", "7", "--count", "2", "--variation", "8:0.2", "-o", "two")
    here(tmp_path, "generate", "pizza", *given)
    found = {Recipe.read(path).variation for path in (tmp_path / "two").glob("pizza-?.png")}
    assert found == {(8, 0.2), (9, 0.2)}


@pytest.mark.parametrize(("arguments", "said"), [
    (("generate", "x", "--variation", "8"), "SEED:AMOUNT"),
    (("generate", "x", "--variation", "8:2"), "amount of 0 to 1"),
    (("generate", "x", "--variation", "a:0.2"), "SEED:AMOUNT"),
    (("invert", "absent.png", "x"), "absent.png"),
    (("invert", "absent.png", "x", "-o", "noise.npz"), r"to a \.safetensors file"),
    (("invert", "absent.png", "x", "--sampler", "ddmi"), "ddim"),
])  # fmt: skip
def test_what_a_command_cannot_use_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TimonelError, match=said):
        app([*arguments], standalone_mode=False)
    assert not list(tmp_path.iterdir())
