"""A reader moves, scrubs, sorts, copies and plays the page of a comparison, by mouse, touch and
keys alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest

from support.browser import PHONE, chromium, opened, style, until
from support.page_data import Reports, pixels

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    return Reports(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def still(browser: Browser, reports: Reports) -> Iterator[Page]:
    with opened(browser, reports.address("still")) as watched:
        yield watched.page
        watched.quiet()


def clip(page: Page) -> float:
    """Where the border stands, from 0 to 100, by the clip of the upper picture."""
    return 100 - float(re.findall(r"([\d.]+)%", style(page, "#show-a", "clipPath"))[0])


def test_the_border_moves_by_mouse_keys_and_touch(
    still: Page, browser: Browser, reports: Reports
) -> None:
    assert clip(still) == 50
    still.locator("#stage").scroll_into_view_if_needed()
    box = still.locator("#stage").bounding_box()
    assert box
    middle = box["y"] + box["height"] / 2
    still.mouse.move(box["x"] + box["width"] / 2, middle)
    still.mouse.down()
    still.mouse.move(box["x"] + box["width"] * 0.2, middle, steps=5)
    still.mouse.up()
    assert clip(still) == pytest.approx(20, abs=1.5)
    before = clip(still)
    for key, to in [("ArrowRight", before + 0.5), ("ArrowLeft", before), ("End", 100), ("Home", 0)]:
        still.keyboard.press(key)
        assert clip(still) == pytest.approx(to)
    assert still.locator("#split").get_attribute("aria-valuetext") == "A 0%"
    with opened(browser, reports.address("still"), **PHONE) as watched:
        stage = watched.page.locator("#stage")
        stage.scroll_into_view_if_needed()
        box = stage.bounding_box()
        assert box
        watched.page.touchscreen.tap(box["x"] + box["width"] * 0.75, box["y"] + box["height"] / 2)
        assert clip(watched.page) == pytest.approx(75, abs=1.5)


def test_any_two_pictures_go_into_the_slider_references_too(still: Page, reports: Reports) -> None:
    data = reports.data("still")
    done = [cell for cell in data["cells"] if cell["status"] == "done"]
    choices = still.locator("#pick-a option").all_inner_texts()
    assert len(choices) == len(done) + len(data["references"])
    still.select_option("#pick-a", label="reference · seed 2")
    still.select_option("#pick-b", label="dpmpp_2m · 10 steps · seed 2")
    assert still.locator("#show-a img").get_attribute("src") == data["references"][2]["picture"]
    wanted = next(
        cell
        for cell in done
        if [cell["at"][k] for k in ("sampler", "steps", "seed")] == ["dpmpp_2m", 10, 2]
    )
    assert still.locator("#show-b img").get_attribute("src") == wanted["picture"]
    still.click("#swap")
    assert still.locator("#show-a img").get_attribute("src") == wanted["picture"]
    assert style(still, "#show-a img", "imageRendering") == "pixelated"


def test_the_grid_puts_the_axes_where_the_reader_wants_them(still: Page, reports: Reports) -> None:
    data = reports.data("still")
    where = {
        tuple(cell["at"][k] for k in ("sampler", "steps", "seed")): cell["picture"]
        for cell in data["cells"]
    }
    for axis, to in [("sampler", "down"), ("seed", "across"), ("steps", "1")]:
        still.select_option(f"#place-{axis}", to)
    heads = [
        text.replace("\u200b", "") for text in still.locator("#grid thead th").all_inner_texts()
    ]
    assert heads == ["seed 0", "seed 1", "seed 2", "seed 3"]
    for i, sampler in enumerate(data["axes"][2]["values"]):
        shown = (
            still.locator("#grid tbody tr")
            .nth(i)
            .locator("img")
            .evaluate_all("all => all.map(one => one.src)")
        )
        assert shown == [
            where[sampler, 10, seed] for seed in range(4) if where[sampler, 10, seed]
        ]  # one failed
    references = (
        still.locator("#grid tbody tr")
        .last.locator("img")
        .evaluate_all("all => all.map(one => one.src)")
    )
    assert references == [one["picture"] for one in data["references"]]
    still.select_option("#place-steps", "down")
    assert still.locator("#grid tbody tr").count() == 16
    assert (
        style(still, "#grid thead th", "position")
        == style(still, "#grid tbody th", "position")
        == "sticky"
    )


def test_the_scrubber_shows_the_step_that_it_names(still: Page, reports: Reports) -> None:
    cell = reports.data("still")["cells"][0]
    sheet, steps = pixels(cell["story"]["sprite"]), cell["story"]["count"]
    still.locator("#grid .shot").first.click()
    told = []
    for step in range(steps - 1, -1, -1):
        still.locator("#story").focus()
        still.keyboard.press("ArrowLeft")
        told.append(still.locator("#storybar output").inner_text())
        still.wait_for_timeout(60)
        shown = pixels(still.locator("#big .story").evaluate("canvas => canvas.toDataURL()"))
        gap = [np.abs(shown - sheet[:, i * 64 : (i + 1) * 64]).mean() for i in range(steps)]
        assert int(np.argmin(gap)) == step
        assert gap[step] < 1
    assert told[-1] == "step 1 of 6 · σ 14.6"
    still.keyboard.press("End")
    assert not still.locator("#big .story").is_visible()


def test_one_scrubber_takes_all_runs_back_together(still: Page) -> None:
    still.locator("#scrub").focus()
    assert still.locator("#grid .story:visible").count() == 0
    still.keyboard.press("Home")
    still.wait_for_timeout(100)
    assert still.locator("#grid .story:visible").count() == 15
    assert still.locator("#scrubbar output").inner_text() == "0% of the way"
    assert still.locator("#grid .story").evaluate_all(
        "all => all.every(one => one.dataset.shows.endsWith('/0'))"
    )


def column(page: Page, at: int) -> list[str]:
    return page.locator(f"#rows tbody tr > :nth-child({at})").all_inner_texts()


def test_the_table_sorts_by_number_and_a_missing_value_comes_last(
    still: Page, reports: Reports
) -> None:
    groups = reports.data("still")["groups"]
    names = still.locator("#rows thead th").all_inner_texts()
    still.click("#sort-nfe")
    assert column(still, names.index("NFE") + 1) == [
        str(n) for n in sorted(int(group["nfe"]) for group in groups)
    ]
    for down in (False, True):
        still.click("#sort-latent_rmse")
        means = [
            group["mean"]["latent_rmse"]
            for group in groups
            if group["mean"]["latent_rmse"] is not None
        ]
        shown = column(still, names.index("latent RMSE") + 1)
        assert [float(text.split(" ")[0]) for text in shown[: len(means)]] == pytest.approx(
            sorted(means, reverse=down), rel=0.06
        )
        assert set(shown[len(means) :]) == {"–"}
        sort = still.locator("#rows th:has(#sort-latent_rmse)").get_attribute("aria-sort")
        assert sort == ("descending" if down else "ascending")
        assert still.evaluate("document.activeElement.id") == "sort-latent_rmse"
    assert sorted(text for text in column(still, 2) if text == "tie") == ["tie"] * sum(
        group["verdict"] == "tie" for group in groups
    )
    still.select_option("#what", "cells")
    assert still.locator("#rows tbody tr").count() == 60
    assert still.locator("#rows .failed").inner_text() == "failed: the latents became NaN at step 3"


READ = """all => all.map(({ lastChild, classList }) =>
    [...["cx", "cy"].map((at) => +lastChild.getAttribute(at)), classList.contains("best")])"""


def test_marks_bars_and_front_are_where_the_numbers_say(still: Page, reports: Reports) -> None:
    groups = [
        group
        for group in reports.data("still")["groups"]
        if group["mean"]["latent_rmse"] is not None
    ]
    marks = still.locator("#errorplot .group")
    still.select_option("#cost", "evaluations")
    assert [best for _, _, best in marks.evaluate_all(READ)] == [
        group["pareto"] for group in groups
    ]
    still.select_option("#cost", "seconds")
    places = np.array(marks.evaluate_all(READ))
    logs = np.log([[group["seconds"], group["mean"]["latent_rmse"]] for group in groups])
    for axis in (0, 1):
        slope, start = np.polyfit(logs[:, axis], places[:, axis], 1)
        assert np.abs(slope * logs[:, axis] + start - places[:, axis]).max() < 0.1
    bars = still.locator("#errorplot .spread").evaluate_all(
        "all => all.map((one) => one.getBBox().height)"
    )
    spread = [(group["mean"]["latent_rmse"], group["stderr"]["latent_rmse"]) for group in groups]
    assert bars == pytest.approx(
        [-slope * np.log((mean + error) / (mean - error)) for mean, error in spread], abs=0.2
    )
    still.select_option("#measure", "energy")
    assert marks.count() == len(reports.data("still")["groups"])
    still.locator("#errorplot .group[tabindex='0']").focus()
    still.keyboard.press("ArrowRight")
    assert (
        still.locator("#pointed").inner_text()
        == "euler · 10 steps · energy distance 0.08 ± 0.02 · 0.111 seconds"
    )


def test_every_schedule_is_on_the_plot_and_is_named_by_pointer_and_focus(
    still: Page, reports: Reports
) -> None:
    schedules = reports.data("still")["schedules"]
    assert still.locator("#sigmaplot .line").count() == len(schedules)
    assert (
        still.locator("#sigmaplot .line").last.locator("circle").count()
        == len(schedules[0]["sigmas"]) - 1
    )
    still.locator("#schedules button").first.focus()
    still.keyboard.press("ArrowRight")
    assert still.locator("#named").inner_text() == "karras, 10 steps: 11 levels from σ 14.6 to 0.03"
    assert still.locator("#sigmaplot .line.on").get_attribute("data-schedule") == "1"
    still.locator("#sigmaplot .line[data-schedule='4'] .wide").dispatch_event("pointerenter")
    still.locator("#sigmaplot .line[data-schedule='4']").dispatch_event("pointerenter")
    assert still.locator("#named").inner_text().startswith("linspace, 10 steps")
    still.select_option("#level", "log_snr")
    assert still.locator("#sigmaplot .title").first.text_content() == "log-SNR"


@pytest.mark.parametrize("clipboard", [True, False])
def test_one_click_copies_the_command_with_and_without_a_clipboard(
    browser: Browser, reports: Reports, clipboard: bool
) -> None:
    given = {"permissions": ["clipboard-read", "clipboard-write"]} if clipboard else {}
    with opened(browser, reports.address("still"), **given) as watched:
        page, cell = watched.page, reports.data("still")["cells"][1]
        if not clipboard:
            page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
        page.select_option("#place-seed", "1")
        page.locator("#grid .shot").first.click()
        page.click("#copy")
        until(page, "document.getElementById('said').textContent !== ''")
        assert page.locator("#said").inner_text() == "The command was copied."
        page.keyboard.press("Escape")
        page.evaluate(
            "document.body.append("
            "Object.assign(document.createElement('textarea'), { id: 'paste' }))"
        )
        page.locator("#paste").focus()
        page.keyboard.press("Control+V")
        pasted = page.locator("#paste").input_value()
        assert (
            pasted
            == cell["command"]
            == "timonel generate 'red apple' --sampler euler --steps 6 --seed 1"
        )
        assert page.locator("textarea.aside").count() == 0
        watched.quiet()


def test_the_keyboard_alone_reaches_everything_and_the_focus_is_seen(still: Page) -> None:
    stops = []
    for _ in range(90):
        still.keyboard.press("Tab")
        stop = still.evaluate(
            """() => {
                const node = document.activeElement;
                const shown = getComputedStyle(node.closest(".stage") ?? node);
                const ring = node.matches(".group")
                    ? getComputedStyle(node.querySelector(".reach")).stroke !== "none"
                    : shown.outlineStyle !== "none" && parseFloat(shown.outlineWidth) >= 1;
                const name = node.className?.baseVal || node.className;
                return [node.id || node.dataset.at || name || node.tagName, ring];
            }"""
        )
        if stop[0] == "BODY":
            break
        assert stop[1], f"no visible focus on {stop[0]}"
        stops.append(stop[0])
    for wanted in [
        "skip",
        "language",
        "theme",
        "place-seed",
        "scrub",
        "0,0",
        "split",
        "swap",
        "cost",
        "level",
        "sort-nfe",
    ]:
        assert wanted in stops
    assert len([stop for stop in stops if re.fullmatch(r"\d,\d", stop)]) == 1
    assert len(stops) < 50

    still.locator("#grid .shot[tabindex='0']").focus()
    for key in ("ArrowRight", "ArrowDown", "End", "ArrowLeft", "Home", "ArrowRight"):
        still.keyboard.press(key)
    assert still.evaluate("document.activeElement.dataset.at") == "1,1"
    still.keyboard.press("b")
    assert still.locator("#pick-b option:checked").inner_text() == "dpmpp_2m · 10 steps · seed 0"
    assert still.evaluate("document.activeElement.dataset.at") == "1,1"
    still.keyboard.press("Enter")
    assert still.locator("#cell-head").inner_text() == "dpmpp_2m · 10 steps · seed 0"
    still.keyboard.press("Escape")
    assert not still.locator("#cell").is_visible()
    assert still.evaluate("document.activeElement.dataset.at") == "1,1"


FRAMES = "[...document.querySelectorAll('canvas.film')].map((one) => +one.dataset.frame)"


def test_videos_play_in_step_stop_and_scrub(browser: Browser, reports: Reports) -> None:
    with opened(browser, reports.address("video"), reduced_motion="no-preference") as watched:
        page = watched.page
        page.locator("#grid").scroll_into_view_if_needed()
        seen = []
        for _ in range(12):
            frames = page.evaluate(FRAMES)
            assert len(frames) >= 6
            assert len(set(frames)) == 1
            seen.append(frames[0])
            page.wait_for_timeout(110)
        assert len(set(seen)) >= 4
        page.click("#play")
        stopped = page.evaluate(FRAMES)
        page.wait_for_timeout(400)
        assert page.evaluate(FRAMES) == stopped
        page.locator("#clock").focus()
        page.keyboard.press("Home")
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        page.wait_for_timeout(150)
        assert set(page.evaluate(FRAMES)) == {3}
        assert page.locator("#clockbar output").inner_text() == "frame 4 of 8"
        shown = page.locator("#grid canvas.film").first.evaluate("canvas => canvas.toDataURL()")
        frames_of = reports.data("video")["cells"][0]["frames"]
        gap = [np.abs(pixels(shown) - pixels(frame)).mean() for frame in frames_of]
        assert int(np.argmin(gap)) == 3
        watched.quiet()
    with opened(browser, reports.address("video"), reduced_motion="reduce") as watched:
        watched.page.wait_for_timeout(400)
        assert set(watched.page.evaluate(FRAMES)) == {0}
        assert watched.page.locator("#play").inner_text() == "Play"
