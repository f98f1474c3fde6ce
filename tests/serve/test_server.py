"""Laws of the server: every API makes the helm's picture, and what is wrong is a clear answer."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

import timonel as tm
from timonel.serve.engine import Engine
from timonel.serve.http.app import application
from timonel.serve.http.settings import Limits, Settings, check_host, hashed, new_key, read_keys

SECONDS = 60
CALL: dict[str, Any] = {"prompt": "red apple", "sampler": "dpmpp_2m/karras", "steps": 3, "seed": 7}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    engine = Engine("emoji", waiting=4)
    settings = Settings(Limits(steps=50, samples=2, side=128, prompt=200, body=4096))
    with TestClient(application({"emoji": engine}, settings)) as client:
        yield client


@pytest.fixture(scope="module")
def apple() -> Any:
    image = tm.Helm("emoji")("red apple", sampler="dpmpp_2m/karras", steps=3, seeds=[7]).images[0]
    return np.asarray(image).astype(int)


def picture(data: bytes | str) -> Image.Image:
    raw = base64.b64decode(data) if isinstance(data, str) else data
    return Image.open(io.BytesIO(raw))


def near(image: Image.Image, other: Any) -> bool:
    return bool(abs(np.asarray(image).astype(int) - other).max() <= 1)


def ended(client: TestClient, name: str) -> dict[str, Any]:
    ends = time.monotonic() + SECONDS
    while (state := client.get(f"/runs/{name}").json())["status"] not in ("done", "failed"):
        assert time.monotonic() < ends
        time.sleep(0.02)
    return dict(state)


def streamed(client: TestClient, method: str, url: str, **more: Any) -> list[dict[str, Any]]:
    with client.stream(method, url, **more) as answer:
        assert answer.status_code == 200
        lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
    return [json.loads(line[len("data: ") :]) for line in lines]


# -- the three APIs --------------------------------------------------------------------------------
def test_a_run_makes_the_picture_of_the_helm_with_its_recipe(
    client: TestClient, apple: Any
) -> None:
    answer = client.post("/runs", json=CALL)
    assert answer.status_code == 202
    state = ended(client, answer.json()["id"])
    assert (state["status"], state["evaluations"]) == ("done", 6)
    image = picture(client.get(f"/runs/{state['id']}/picture").content)
    assert near(image, apple)
    assert tm.Recipe.of(image) == tm.Recipe(**state["recipe"])


def test_openais_images_are_the_pictures_of_their_seeds(client: TestClient, apple: Any) -> None:
    answer = client.post("/v1/images/generations", json={**CALL, "n": 2}).json()
    first, second = (picture(datum["b64_json"]) for datum in answer["data"])
    assert near(first, apple)
    assert tm.Recipe.of(second).seed == 8


def test_openais_stream_has_pictures_on_the_way(client: TestClient, apple: Any) -> None:
    wanted = {**CALL, "stream": True, "partial_images": 2}
    events = streamed(client, "POST", "/v1/images/generations", json=wanted)
    assert events[-1]["type"] == "image_generation.completed"
    assert near(picture(events[-1]["b64_json"]), apple)
    partial = [event for event in events if event["type"] == "image_generation.partial_image"]
    assert [event["partial_image_index"] for event in partial] == list(range(len(partial)))


def test_a1111s_names_and_fields_are_understood(client: TestClient, apple: Any) -> None:
    wanted = {
        "prompt": "red apple", "sampler_name": "DPM++ 2M", "scheduler": "Karras", "steps": 3,
        "seed": 7, "enable_hr": False, "styles": [], "override_settings": {},
    }  # fmt: skip
    answer = client.post("/sdapi/v1/txt2img", json=wanted).json()
    assert near(picture(answer["images"][0]), apple)
    assert "Sampler: DPM++ 2M" in json.loads(answer["info"])["infotexts"][0]
    names = {row["name"] for row in client.get("/sdapi/v1/samplers").json()}
    assert "dpmpp_2m" in names
    assert client.get("/sdapi/v1/options").json() == {"sd_model_checkpoint": "emoji"}
    assert client.get("/sdapi/v1/progress").json()["progress"] == 0.0


# -- steering --------------------------------------------------------------------------------------
def test_a_run_is_paused_rewound_branched_and_resumed(client: TestClient) -> None:
    name = client.post("/runs", json={**CALL, "steps": 6, "keep": 6, "paused": True}).json()["id"]
    ends = time.monotonic() + SECONDS
    while client.get(f"/runs/{name}").json()["status"] != "paused":
        assert time.monotonic() < ends
    client.post(f"/runs/{name}/resume")
    whole = ended(client, name)
    twin = client.post(f"/runs/{name}/branch?step=2&paused=true").json()["id"]
    assert client.get(f"/runs/{twin}").json()["status"] == "paused"
    assert client.post(f"/runs/{twin}/guidance", json={"scale": 1.0}).status_code == 200
    client.post(f"/runs/{twin}/resume")
    other = ended(client, twin)
    assert other["status"] == "done"
    assert other["evaluations"] == 4  # without guidance
    one, two = (client.get(f"/runs/{n}/picture").content for n in (whole["id"], twin))
    assert one != two


def test_events_are_every_step_with_previews(client: TestClient) -> None:
    name = client.post("/runs", json={**CALL, "paused": True}).json()["id"]
    client.post(f"/runs/{name}/resume")
    events = streamed(client, "GET", f"/runs/{name}/events?previews=true")
    assert events[-1]["kind"] == "done"
    shown = [event["preview"] for event in events if event.get("preview")]
    assert all(picture(text).size[0] > 0 for text in shown)


def test_a_cancelled_run_has_no_picture(client: TestClient) -> None:
    name = client.post("/runs", json={**CALL, "steps": 40, "paused": True}).json()["id"]
    client.delete(f"/runs/{name}")
    assert "cancelled" in ended(client, name)["reason"]
    assert client.get(f"/runs/{name}/picture").status_code == 409


# -- what is wrong ---------------------------------------------------------------------------------
WRONG: tuple[tuple[str, dict[str, Any], int, str], ...] = (
    ("/runs", {"prompt": 3}, 422, "valid string"),
    ("/runs", {**CALL, "samplr": "euler"}, 422, "samplr"),
    ("/runs", {**CALL, "sampler": "eulr"}, 400, "did you mean 'euler'"),
    ("/runs", {**CALL, "sampler": "../secret.json"}, 400, "a server reads none"),
    ("/runs", {**CALL, "model": "nobody"}, 404, "unknown model"),
    ("/runs", {**CALL, "steps": 51}, 400, "at most 50"),
    ("/runs", {**CALL, "steps": -1}, 422, "greater than or equal to 1"),
    ("/runs", {**CALL, "width": 4096}, 400, "at most 128"),
    ("/runs", {**CALL, "prompt": "a" * 201}, 400, "at most 200 characters"),
    ("/v1/images/generations", {**CALL, "n": 3}, 400, "at most 2"),
    ("/v1/images/generations", {**CALL, "size": "big"}, 400, "WIDTHxHEIGHT"),
    ("/v1/images/generations", {**CALL, "quality": "hd"}, 422, "quality"),
    ("/v1/images/generations", {**CALL, "partial_images": 1}, 400, "stream=true"),
    ("/sdapi/v1/txt2img", {"prompt": "a", "tiling": True}, 400, "tiling=True"),
    ("/sdapi/v1/options", {"CLIP_stop_at_last_layers": 2}, 400, "sd_model_checkpoint"),
)


@pytest.mark.parametrize(("url", "body", "status", "words"), WRONG)
def test_a_wrong_request_is_answered_with_what_is_wrong(
    client: TestClient, url: str, body: dict[str, Any], status: int, words: str
) -> None:
    answer = client.post(url, json=body)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[" * 2000, b"\xff\xfe", b'{"prompt": "a", "seed": NaN}']
)
def test_a_body_that_is_no_request_is_refused(client: TestClient, body: bytes) -> None:
    answer = client.post("/runs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)


def test_a_body_that_is_too_large_is_refused_before_it_is_read(client: TestClient) -> None:
    assert client.post("/runs", content=b"x" * 5000).status_code == 413

    def chunks() -> Iterator[bytes]:
        yield from [b"x" * 1000] * 6

    assert client.post("/runs", content=chunks()).status_code == 413


def test_too_many_waiting_runs_are_refused_with_a_time_to_come_again(client: TestClient) -> None:
    answers = [client.post("/runs", json={**CALL, "steps": 50, "keep": 50}) for _ in range(40)]
    refused = [answer for answer in answers if answer.status_code == 429]
    for answer in answers:
        if answer.status_code == 202:
            client.delete(f"/runs/{answer.json()['id']}")
    assert all(answer.headers["retry-after"] == "5" for answer in refused)
    assert {answer.status_code for answer in answers} <= {202, 429}


def test_an_unknown_run_is_404(client: TestClient) -> None:
    for url in ("/runs/none", "/runs/none/events", "/runs/none/picture"):
        assert client.get(url).status_code == 404
    assert client.post("/runs/none/pause").status_code == 404


# -- keys ------------------------------------------------------------------------------------------
def test_without_its_key_nothing_but_health_is_answered(tmp_path: Any) -> None:
    path = tmp_path / "keys.txt"
    key = new_key(path)
    assert key not in path.read_text()
    assert read_keys(path) == {hashed(key)}
    engine = Engine("emoji")
    with TestClient(application({"emoji": engine}, Settings(keys=read_keys(path)))) as client:
        assert client.get("/health").status_code == 200
        for headers in ({}, {"Authorization": "Bearer tm-no"}, {"Authorization": "Basic eDp5"}):
            for url in ("/runs", "/v1/models", "/sdapi/v1/options", "/metrics", "/docs"):
                assert client.get(url, headers=headers).status_code == 401
        basic = base64.b64encode(f"somebody:{key}".encode()).decode()
        for good in (f"Bearer {key}", f"Basic {basic}"):
            assert client.get("/runs", headers={"Authorization": good}).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "example.org"])
def test_a_host_that_others_reach_needs_keys(host: str) -> None:
    with pytest.raises(tm.ArgumentError, match="needs keys"):
        check_host(host, ())
    check_host(host, {hashed("k")})


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_the_loopback_needs_none(host: str) -> None:
    check_host(host, ())


@pytest.mark.parametrize("text", ["", "secret", "g" * 64])
def test_a_file_that_holds_no_digests_is_refused(tmp_path: Any, text: str) -> None:
    (tmp_path / "keys.txt").write_text(text)
    with pytest.raises(tm.ArgumentError, match="not digests"):
        read_keys(tmp_path / "keys.txt")


def test_metrics_count_answers_and_network_calls(client: TestClient) -> None:
    ended(client, client.post("/runs", json=CALL).json()["id"])
    text = client.get("/metrics").text
    assert 'timonel_network_calls{model="emoji"}' in text
    assert 'timonel_answers_total{method="POST",path="/runs",status="202"}' in text
    assert client.get("/ready").json() == {"status": "ready"}


def test_a_server_that_was_killed_makes_what_it_had_accepted(tmp_path: Any, apple: Any) -> None:
    settings = Settings(state=tmp_path)
    first = application({"emoji": Engine("emoji")}, settings)
    with TestClient(first) as client:
        done = client.post("/runs", json=CALL).json()["id"]
        ended(client, done)
        until_written = time.monotonic() + SECONDS
        while (tmp_path / f"{done}.json").exists():
            assert time.monotonic() < until_written
        # paused, so that it has no picture when the server ends
        left = client.post("/runs", json={**CALL, "paused": True}).json()["id"]
    assert (tmp_path / f"{left}.json").exists()
    with TestClient(application({"emoji": Engine("emoji")}, settings)) as client:
        assert near(picture(client.get(f"/runs/{done}/picture").content), apple)
        assert ended(client, left)["status"] == "done"
        assert near(picture(client.get(f"/runs/{left}/picture").content), apple)


def test_a_journal_that_holds_something_else_is_refused(tmp_path: Any) -> None:
    (tmp_path / "x.json").write_text("[1]")
    engine = Engine("emoji")
    with pytest.raises(tm.ArgumentError, match="is no run of a server"):
        application({"emoji": engine}, Settings(state=tmp_path))
    engine.close()


@pytest.mark.parametrize("body", [
    r'{"prompt": "a", "\ud800": 3}', r'{"prompt": "\ud800"}',
    r'{"prompt": "a", "sampler": "\udfff"}',
    r'{"prompt": "a", "sampler_name": "\udfff"}', r'{"prompt": "a", "guidance": NaN}',
    r'{"prompt": "a", "steps": 1e400}', r'{"prompt": "a", "prompt": 3}',
])  # fmt: skip
@pytest.mark.parametrize("path", ["/runs", "/sdapi/v1/txt2img", "/v1/images/generations"])
def test_text_and_numbers_of_no_use_are_refused(client: TestClient, path: str, body: str) -> None:
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
