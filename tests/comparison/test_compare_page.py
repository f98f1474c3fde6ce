"""The page of a comparison holds everything, asks nobody, keeps text as text, and is fit to be read
by anyone.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
import string
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.browser import PHONE, chromium, opened, style
from support.page_data import HOSTILE, Data, Reports
from timonel.comparison import page as page_module
from timonel.comparison.page import SCRIPTS, render
from timonel.errors import ArgumentError

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HERE = Path(page_module.__file__).parent
WORDS = json.loads((HERE / "words.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    return Reports(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


# what is written


def test_every_picture_is_embedded_once_however_often_it_is_named(reports: Reports) -> None:
    data = reports.data("video")
    written = render(data)
    named = [one for item in [*data["cells"], *data["references"]] for one in item["frames"]]
    assert len(set(named)) < len(named)
    assert all(written.count(picture) == 1 for picture in set(named))


def test_no_prompt_ends_the_element_it_stands_in(reports: Reports) -> None:
    written = render(reports.data("hostile"))
    assert written.count("</script") == written.count("<script") == 3
    assert "<img" not in written
    embedded = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', written, re.DOTALL
    )
    assert embedded
    assert json.loads(embedded[1])["cells"][0]["recipe"]["prompt"] == HOSTILE


def test_a_number_that_json_lacks_does_not_break_the_page(
    reports: Reports, browser: Browser
) -> None:
    groups = copy.deepcopy(reports.data("still")["groups"])
    groups[0]["mean"] |= {"psnr": float("inf"), "ssim": float("nan")}
    with opened(browser, reports.address("still", groups=groups)) as watched:
        row = watched.page.locator("#rows tbody tr").first.inner_text().split("\t")
        watched.quiet()
    assert row[-2:] == ["∞", "–"]


def test_both_languages_say_the_same_things_and_every_word_is_used() -> None:
    english, spanish = WORDS["en"], WORDS["es"]
    assert english.keys() == spanish.keys()
    for key in english:
        fields = [
            sorted(field for _, field, _, _ in string.Formatter().parse(words[key]) if field)
            for words in WORDS.values()
        ]
        assert fields[0] == fields[1], key
    source = "".join(
        (HERE / name).read_text() for name in ["page.html", *(f"{script}.js" for script in SCRIPTS)]
    )
    # words whose key is put together: an axis, the kind of a verdict, …
    families = ("axis.", "axes.", "value.", "verdict.", "status.", "cost.", "level.")
    quoted = set(re.findall(r'"([\w. ]+)"', source))
    assert [
        key
        for key in english
        if key not in quoted and not key.startswith(families) and not key.endswith(".one")
    ] == []
    assert set(re.findall(r'\bt\("([\w.]+)"', source)) <= english.keys()
    assert set(re.findall(r'data-(?:word|label)="([^"]+)"', source)) <= english.keys()


def test_what_cannot_be_shown_is_refused_with_the_place(reports: Reports) -> None:
    data = reports.data("hostile")

    def changed(**change: Any) -> Data:
        return {**data, "cells": [{**data["cells"][0], **change}]}

    for bad, said in [
        ({key: value for key, value in data.items() if key != "groups"}, "needs groups"),
        (changed(picture="https://example.org/a.png"), r"cells\[0\] shows 'https"),
        (changed(group=99), r"groups\[99\]"),
        (changed(schedule=-1), r"schedules\[-1\]"),
        (changed(status="lost"), "'lost'"),
        (changed(at={"sampler": "euler"}), "no place on the axis 'model'"),
    ]:
        with pytest.raises(ArgumentError, match=said):
            render(bad)


# what a browser makes of it


def test_the_page_opens_from_a_file_in_silence_and_its_policy_stops_everything_else(
    browser: Browser, reports: Reports
) -> None:
    with opened(browser, reports.address("still")) as watched:
        page = watched.page
        page.wait_for_load_state("networkidle")
        assert page.title() == "red apple · timonel compare"
        assert page.locator("#grid img").count() == 18
        watched.quiet()
        tried = page.evaluate(
            """async () => {
                const blocked = [];
                const note = (event) => blocked.push(event.effectiveDirective);
                document.addEventListener("securitypolicyviolation", note);
                const picture = Object.assign(new Image(), { src: "https://example.org/a.png" });
                document.body.append(picture);
                await fetch("https://example.org/b").catch(() => blocked.push("fetch refused"));
                try { document.body.innerHTML += "<p>markup</p>"; }
                catch { blocked.push("markup refused"); }
                await new Promise((done) => setTimeout(done, 100));
                return blocked;
            }"""
        )
        assert {"img-src", "connect-src", "fetch refused", "markup refused"} <= set(tried)


def test_a_hostile_prompt_stays_text_in_every_place(browser: Browser, reports: Reports) -> None:
    with opened(browser, reports.address("hostile")) as watched:
        page = watched.page
        assert (
            page.locator("h1").inner_text() == HOSTILE.replace("\u2028", " ")
            or HOSTILE in page.locator("h1").text_content()
        )
        page.select_option("#what", "cells")
        page.locator("#grid .shot").first.click()
        command = page.locator("#command").text_content()
        assert shlex.split(command or "")[2] == HOSTILE
        assert (
            page.title() == f"{HOSTILE} · timonel compare".replace("\u2028", " ")
            or page.title() != "taken"
        )
        assert page.locator("img[src='x']").count() == 0
        watched.quiet()


def test_language_and_theme_follow_the_reader_and_switch(
    browser: Browser, reports: Reports
) -> None:
    with opened(browser, reports.address("still"), locale="es-MX", color_scheme="dark") as watched:
        page = watched.page
        dark = style(page, "body", "backgroundColor")
        assert page.locator("html").get_attribute("lang") == "es"
        assert page.locator("#pictures-head").inner_text() == "Imágenes"
        assert (
            page.locator("#claimed th").first.inner_text()
            == "Euler es suave, DPM++ Karras es nítido."
        )
        assert "0,1" in page.locator("#rows tbody").inner_text()
        page.click("#language")
        assert page.locator("html").get_attribute("lang") == "en"
        assert page.locator("#pictures-head").inner_text() == "Pictures"
        assert page.evaluate("document.activeElement.id") == "language"
        assert "0,1" not in page.locator("#rows tbody").inner_text()
        page.select_option("#theme", "light")
        assert style(page, "body", "backgroundColor") != dark
        page.select_option("#theme", "auto")
        assert style(page, "body", "backgroundColor") == dark
        watched.quiet()


def test_a_failed_cell_shows_its_reason_and_an_unfinished_comparison_says_so(
    browser: Browser, reports: Reports
) -> None:
    cells = copy.deepcopy(reports.data("still")["cells"])
    cells[9] |= {"status": "waiting", "picture": None, "story": None}
    with opened(browser, reports.address("still", complete=False, cells=cells)) as watched:
        page = watched.page
        page.select_option("#place-seed", "1")
        assert (
            page.locator("#grid .shot.failed").inner_text()
            == "failed: the latents became NaN at step 3"
        )
        assert page.locator("#grid .shot.waiting").inner_text() == "not yet"
        assert page.locator("#sofar").inner_text().startswith("So far: 59 of 60")
        page.locator("#grid .shot.failed").click()
        assert page.locator("#reason").inner_text() == "the latents became NaN at step 3"
        assert not page.locator("#seen").is_visible()
        watched.quiet()


@pytest.mark.parametrize("locale", ["en-GB", "es-ES"])
def test_nothing_is_wider_than_a_phone(browser: Browser, reports: Reports, locale: str) -> None:
    with opened(browser, reports.address("still"), **PHONE, locale=locale) as watched:
        page = watched.page
        for axis, to in [("seed", "across"), ("sampler", "across")]:
            page.select_option(f"#place-{axis}", to)
        page.select_option("#what", "cells")
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        page.locator("#grid .shot").first.click()
        wide = page.evaluate(
            "[document.documentElement.scrollWidth, cell.scrollWidth - cell.clientWidth]"
        )
        assert wide == [360, 0]
        watched.quiet()


CONTRAST = """() => {
    const light = (rgb) => rgb.map((c) => c / 255)
        .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const parse = (text) => text.match(/[\\d.]+/g).map(Number);
    const ground = (node) => {
        for (let at = node; at; at = at.parentElement) {
            const [r, g, b, a = 1] = parse(getComputedStyle(at).backgroundColor);
            if (a === 1) return [r, g, b];
        }
    };
    const poor = [];
    for (const node of document.querySelectorAll("body *:not(script):not(option)")) {
        const text = [...node.childNodes]
            .some((child) => child.nodeType === 3 && child.textContent.trim());
        if (!text || !node.checkVisibility({ opacityProperty: true })) continue;
        if (node.closest(".stage, noscript")) continue;
        const shown = getComputedStyle(node);
        const a = light(parse(node instanceof SVGElement ? shown.fill : shown.color));
        const b = light(ground(node));
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        const name = node.className?.baseVal ?? node.className;
        if (ratio < 4.5) poor.push([name, node.textContent.slice(0, 30), ratio]);
    }
    return poor;
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(
    browser: Browser, reports: Reports, theme: str
) -> None:
    with opened(browser, reports.address("still"), color_scheme=theme) as watched:
        page = watched.page
        page.select_option("#place-seed", "1")
        assert page.evaluate(CONTRAST) == []
        page.select_option("#what", "cells")
        page.locator("#grid .shot").first.click()
        assert page.evaluate(CONTRAST) == []


def test_240_cells_are_drawn_at_once(browser: Browser, reports: Reports) -> None:
    with opened(browser, reports.address("large")) as watched:
        page = watched.page
        page.select_option("#place-seed", "down")
        page.select_option("#what", "cells")
        assert page.locator("#grid .shot img").count() >= 239
        assert page.locator("#rows tbody tr").count() == 240
        redraw = """() => {
            const start = performance.now();
            drawAll();
            return performance.now() - start;
        }"""
        assert min(page.evaluate(redraw) for _ in range(3)) < 2000
        watched.quiet()


@pytest.mark.parametrize("done", [True, False])
def test_a_comparison_of_one_picture_or_of_none_yet_is_a_page_too(
    browser: Browser, reports: Reports, done: bool
) -> None:
    data = reports.data("hostile")
    cell = {
        **data["cells"][0],
        **({} if done else {"status": "waiting", "picture": None, "story": None}),
    }
    axes = [{"name": axis["name"], "values": [cell["at"][axis["name"]]]} for axis in data["axes"]]
    empty = {"count": 0, "nfe": None, "mean": {}, "stderr": {}, "energy": None, "verdict": None}
    group = {**data["groups"][0], **({} if done else empty)}
    changed = {
        "axes": axes,
        "cells": [cell],
        "groups": [group],
        "references": [],
        "schedules": [],
        "claims": [],
    }
    cell["schedule"] = None
    with opened(browser, reports.address("hostile", **changed, notes=[], complete=done)) as watched:
        page = watched.page
        assert page.locator("#grid .shot").count() == 1
        assert page.locator("#sofar").is_visible() is not done
        links = ["Pictures", "Error and cost", "Table"] if done else ["Pictures", "Table"]
        assert page.locator("nav a:visible").all_inner_texts() == links
        page.locator("#grid .shot").click()
        assert "euler · 6 steps · seed 0" in page.locator("#cell-head").inner_text()
        watched.quiet()
