"""The gallery in a real browser: Chromium, headless, told what to do through its own protocol over a pipe."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import numpy as np
import pytest
from pycocotools import mask as mask_api

from pipeline import runs
from pipeline.gallery import gallery
from pipeline.store import Store
from pipeline.taxonomy import Taxonomy
from pipeline.view import View
from tests import small_runs
from tests.fakes import draw, write_tar
from tests.pipeline.test_gallery import EVIL_KEY, EVIL_NAME, hostile_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE_S = 60

_KEYS = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}


class Browser:
    """One page of a headless Chromium. It remembers what the page complained about, and what it asked for."""

    def __init__(self, folder: Path, *, width: int = 1400, height: int = 900) -> None:
        # Above 4, where Chromium wants them: a shell that puts them there must not overwrite one by the other.
        low = (*os.pipe(), *os.pipe())
        down, ours_down, ours_up, up = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in low)
        for end in low:
            os.close(end)
        words = [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",  # tests run as root in containers
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--force-color-profile=srgb",
            f"--user-data-dir={folder}",
            f"--window-size={width},{height}",
            "--remote-debugging-pipe",
        ]
        # Chromium reads orders from descriptor 3, and answers on 4.
        wrapper = f'exec "$@" 3<&{down} 4>&{up}'
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", wrapper, "bash", *words, "about:blank"],
            pass_fds=(down, up),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(down)
        os.close(up)
        self._down, self._up, self._rest, self._number = ours_down, ours_up, b"", 0
        self._loaded = False
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = next(one for one in self._ask("Target.getTargets")["targetInfos"] if one["type"] == "page")
        found = self._ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session: str | None = found["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")

    _session: str | None = None

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._session = None
            self._ask("Browser.close")
        except (EOFError, TimeoutError, BrokenPipeError):
            self._process.kill()
        self._process.wait(PATIENCE_S)
        os.close(self._down)
        os.close(self._up)

    def go(self, uri: str, ready: str = "document.documentElement.dataset.ready === 'true'") -> None:
        """Open a page, and wait until it is ready."""
        for place in ("about:blank", uri):  # by way of a blank page, or another # would be no new page
            self._loaded = False
            self._ask("Page.navigate", url=place)
            end = time.monotonic() + PATIENCE_S
            while not self._loaded:
                assert time.monotonic() < end, f"{place} was not loaded"
                self._hear(0.1)
        self.until(ready)

    def run(self, script: str) -> Any:
        """What a JavaScript expression comes to."""
        answer = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"]["exception"].get("description", answer))
        return answer["result"].get("value")

    def until(self, script: str) -> Any:
        """Wait for an expression to become true."""
        end = time.monotonic() + PATIENCE_S
        while not (found := self.run(script)):
            assert time.monotonic() < end, f"{script} did not come true; complaints: {self.complaints}"
            self._hear(0.02)
        return found

    def press(self, key: str) -> None:
        """Press and release a key."""
        code = _KEYS.get(key, 0)
        text = {} if code and key != "Enter" else {"text": "\r" if key == "Enter" else key}
        self._ask("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self._ask("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def move(self, x: float, y: float) -> None:
        self._ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str) -> None:
        """Click in the middle of what a selector finds."""
        x, y = self.run(
            f"(() => {{ const r = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2] })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"]))

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        order: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            order["sessionId"] = self._session
        os.write(self._down, json.dumps(order).encode() + b"\0")
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            for message in self._hear(1.0):
                if message.get("id") == self._number:
                    assert "error" not in message, message["error"]
                    return message["result"]
        raise TimeoutError(f"the browser does not answer {method}")

    def _hear(self, seconds: float) -> list[dict[str, Any]]:
        """What the browser says, waiting a little for it."""
        if not select.select([self._up], [], [], seconds)[0]:
            return []
        data = os.read(self._up, 1 << 20)
        if not data:
            raise EOFError("the browser is gone")
        *whole, self._rest = (self._rest + data).split(b"\0")
        messages = [json.loads(one) for one in whole]
        for message in messages:
            params = message.get("params", {})
            match message.get("method"):
                case "Page.loadEventFired":
                    self._loaded = True
                case "Runtime.exceptionThrown":
                    self.complaints.append(json.dumps(params["exceptionDetails"])[:500])
                case "Log.entryAdded":
                    self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
                case "Network.requestWillBeSent":
                    self.requests.append(params["request"]["url"])
        return messages


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("needs chromium (Debian: apt install chromium), which is not installed here")
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A gallery of a run with evil names: (the folder, the rows that it shows)."""
    folder, store = tmp_path_factory.mktemp("gallery"), Store()
    uri = hostile_run(folder, store)
    labels = runs.opened(store, uri, View(taxonomy=Taxonomy(names={"bright": EVIL_NAME}, source="test")))
    gallery(labels, str(folder / "out"))
    return folder / "out", list(labels.all_rows())


def address(folder: Path, **state: str) -> str:
    return f"{(folder / 'index.html').as_uri()}#{urlencode(state)}"


def shown(browser: Browser) -> list[str]:
    """The keys of the images that are selected, in their order."""
    return browser.run("selected.order.map((image) => image.key)")


def totals(browser: Browser) -> str:
    return browser.run("document.getElementById('counts').textContent")


WHOLE = {"range": "score~all"}


def test_the_page_opens_from_a_disk_and_asks_nobody_for_anything(browser, made):
    """Without a server the page would stay empty, or tell another server what is looked at."""
    folder, rows = made
    browser.requests.clear()
    browser.go(address(folder, **WHOLE))
    browser.until("document.querySelectorAll('.cell[data-drawn]').length >= 6")
    browser.until("[...document.querySelectorAll('.cell img')].every((one) => one.complete && one.naturalWidth > 0)")
    masks = sum(len(row.instances) for row in rows)
    assert totals(browser) == f"{len(rows)} of {len(rows)} images · {masks} of {masks} masks"
    asked = [uri for uri in browser.requests if uri != "about:blank"]
    assert all(uri.startswith(f"file://{folder}/") for uri in asked)
    assert browser.complaints == []


def test_no_key_and_no_class_name_becomes_markup_or_script(browser, made):
    """Whoever looks at a gallery would run what somebody wrote into a data set."""
    folder, _ = made
    browser.go(address(folder, **WHOLE))
    number = browser.run(f"images.find((image) => image.key === {json.dumps(EVIL_KEY)}).id")
    browser.go(address(folder, **WHOLE, open=str(number), **{"class": "1"}))
    browser.until("canvas.dataset.image")
    assert browser.run("document.getElementById('viewer-title').textContent") == EVIL_KEY
    assert EVIL_NAME in browser.run("document.getElementById('chips').textContent")
    assert EVIL_NAME in browser.run("document.getElementById('side').textContent")
    assert browser.run("document.querySelectorAll('img:not(.picture img)').length") == 0
    assert browser.run("document.querySelectorAll('[onerror]').length") == 0
    assert browser.run("typeof window.pwned") == "undefined"
    # If a name did become markup, the page's own policy would still not let it run.
    browser.run("document.body.insertAdjacentHTML('beforeend', '<img id=bad src=x onerror=\"window.pwned=4\">')")
    browser.until("document.getElementById('bad').complete")
    assert browser.run("typeof window.pwned") == "undefined"
    assert any("Content Security Policy" in one for one in browser.complaints)
    browser.complaints.clear()


def test_outlines_hold_the_pixels_of_their_masks(browser, made):
    """Masks would be drawn a pixel off, without their holes, or joined at corners."""
    folder, _ = made
    browser.go(address(folder))
    rng = np.random.default_rng(8)
    pictures = [rng.random((13, 17)) < density for density in (0.02, 0.3, 0.5, 0.7, 0.98)]
    pictures += [np.ones((13, 17), bool), np.zeros((13, 17), bool), rng.random((1, 9)) < 0.5, rng.random((9, 1)) < 0.5]
    large = np.zeros((400, 300), bool)
    large[3:390, 7:280] = True
    large[40:50, 100:120] = False
    across = np.zeros((13, 17), bool)  # one run, over the border of two columns
    across[5:, 3] = across[:4, 4] = True
    for picture in (*pictures, large, across):
        counts = mask_api.encode(np.asfortranarray(picture, np.uint8))["counts"].decode()
        height, width = picture.shape
        found = browser.run(
            f"""(() => {{
              const one = shape({json.dumps(counts)}, {{ shownWidth: {width}, shownHeight: {height} }})
              const pen = document.createElement("canvas").getContext("2d"), inside = []
              for (let y = 0; y < {height}; y++) for (let x = 0; x < {width}; x++)
                inside.push(pen.isPointInPath(one.path, x + 0.5, y + 0.5, "evenodd") ? 1 : 0)
              return {{ inside: inside.join(""), box: [one.x, one.y, one.w, one.h] }}
            }})()"""
        )
        assert found["inside"] == "".join(map(str, picture.astype(int).ravel()))
        assert found["box"] == mask_api.toBbox(mask_api.encode(np.asfortranarray(picture, np.uint8))).tolist()


def worst_of(row: Any) -> float:
    return min(row.instances.quality["predicted_iou"], default=np.inf) if len(row.instances) else np.inf


def test_images_come_worst_first_and_filters_choose(browser, made):
    """The first screen would not show what needs a look, or filters show other images and masks than they say."""
    folder, rows = made
    browser.go(address(folder, **WHOLE))
    assert shown(browser) == [row.key for row in sorted(rows, key=worst_of)]
    browser.go(address(folder, **WHOLE, sort="most"))
    assert shown(browser) == [row.key for row in sorted(rows, key=lambda row: -len(row.instances))]

    browser.go(address(folder, **WHOLE, status="quarantined:truncated"))
    assert shown(browser) == [row.key for row in rows if row.status == "quarantined"] != []
    browser.go(address(folder, **WHOLE, q="CAM1 png 4"))
    assert sorted(shown(browser)) == ["cam1/4.png"]

    state = [("range", "score~0.4~0.95"), ("range", "predicted_iou~0.3~0.7"), ("class", "7"), ("sort", "key")]
    browser.go(f"{address(folder)}{urlencode(state)}")
    kept = {
        row.key: int(
            (
                (row.instances.scores >= np.float32(0.4))
                & (row.instances.scores <= np.float32(0.95))
                & (row.instances.quality["predicted_iou"] >= np.float32(0.3))
                & (row.instances.quality["predicted_iou"] <= np.float32(0.7))
                & (row.instances.category_ids == 7)
            ).sum()
        )
        for row in rows
        if len(row.instances)
    }
    left = sorted(key for key, number in kept.items() if number)
    assert 0 < len(left) < len(rows)
    assert shown(browser) == left
    masks = sum(len(row.instances) for row in rows)
    assert totals(browser) == f"{len(left)} of {len(rows)} images · {sum(kept.values())} of {masks} masks"
    assert browser.run("toHash()") == browser.run("(fromHash(location.hash), toHash())")
    assert sorted(parse_qsl(browser.run("toHash()"))) == sorted(state)

    browser.go(address(folder, **WHOLE, q="no such image"))
    browser.click("#nothing button")
    assert len(shown(browser)) == len(rows)


def test_the_first_view_leaves_doubtful_masks_out_and_says_so(browser, made):
    """Masks that score less than one half would hide the others; or be missing without a word."""
    folder, rows = made
    browser.go(address(folder))
    kept = sum(int((row.instances.scores >= 0.5).sum()) for row in rows)
    masks = sum(len(row.instances) for row in rows)
    assert kept < masks
    assert totals(browser) == f"{len(rows)} of {len(rows)} images · {kept} of {masks} masks"
    assert browser.run("document.getElementById('chips').textContent").startswith("Score ≥ 0.50")
    browser.click("#chips .chip")
    assert totals(browser).endswith(f"{masks} of {masks} masks")


def test_the_keyboard_does_it_all(browser, made):
    """Who goes through a thousand images would need the mouse for each."""
    folder, _ = made
    browser.go(address(folder, **WHOLE))
    keys = shown(browser)
    opened = "document.getElementById('viewer').open && document.getElementById('viewer-title').textContent"
    browser.press("j")
    browser.press("j")
    browser.press("ArrowRight")
    browser.press("ArrowLeft")
    assert browser.run("document.activeElement.getAttribute('aria-label')").startswith(keys[1])
    browser.press("Enter")
    assert browser.run(opened) == keys[1]
    browser.press("j")
    browser.press("ArrowRight")
    browser.press("k")
    assert browser.run(opened) == keys[2]
    browser.until("new URLSearchParams(location.hash.slice(1)).get('open') === String(view.image.id)")
    browser.until("canvas.dataset.masks")
    fitted = float(browser.run("canvas.dataset.scale"))
    for key, script in (
        ("m", "!state.masks"),
        ("b", "state.boxes"),
        ("1", "state.classes.size === 1"),
        ("1", "state.classes.size === 0"),
        ("+", f"canvas.dataset.scale > {1.4 * fitted}"),
        ("0", f"Math.abs(canvas.dataset.scale - {fitted}) < 0.01"),
        ("?", "help.open"),
        ("?", "!help.open"),
    ):
        browser.press(key)
        browser.until(script)
    browser.press("Escape")
    browser.until("!document.getElementById('viewer').open")
    assert browser.run("document.activeElement.getAttribute('aria-label')").startswith(keys[2])
    browser.press("/")
    browser.press("5")
    assert browser.run("state.words") == "5"
    assert browser.complaints == []


def test_masks_and_switches_change_what_is_drawn(browser, made):
    """The switches would light up and change nothing."""
    folder, _ = made
    browser.go(address(folder, **WHOLE))
    picture = "document.querySelector('.cell canvas').toDataURL()"
    seen = set()
    for switches in ({}, {"masks": "0"}, {"boxes": "1"}, {"masks": "0", "boxes": "1"}, {"color": "score"}):
        browser.go(address(folder, **WHOLE, **switches))
        browser.until("!grid.busy && document.querySelector('.cell').dataset.drawn")
        seen.add(browser.run(picture))
    assert len(seen) == 5


def test_a_screen_reader_finds_names_and_places(browser, made):
    """Buttons would be read as "button", and a thousand images as eight."""
    folder, rows = made
    browser.go(address(folder, **WHOLE))
    nameless = """[...document.querySelectorAll("button, input, select")].filter((one) => !one.closest("[hidden]") &&
        !(one.getAttribute("aria-label") || one.textContent.trim() || one.closest("label")?.textContent.trim()))
        .map((one) => one.outerHTML)"""
    assert browser.run(nameless) == []
    places = "[...document.querySelectorAll('[role=listitem]')].map((one) => [one.ariaSetSize, one.ariaPosInSet])"
    found = browser.run(places)
    assert found[:2] == [[str(len(rows)), "1"], [str(len(rows)), "2"]]
    assert browser.run("document.querySelectorAll('.cell button[tabindex=\"0\"]').length") == 1


def test_data_that_are_missing_are_told(browser, made, tmp_path):
    """A page that was copied without its folder would stay empty without a word."""
    folder, _ = made
    shutil.copy(folder / "index.html", tmp_path / "index.html")
    browser.go((tmp_path / "index.html").as_uri(), ready="!document.getElementById('nothing').hidden")
    assert "files belongs beside this page" in browser.run("document.getElementById('nothing').textContent")
    browser.complaints.clear()


@pytest.mark.slow
def test_thousands_of_images_scroll(browser, tmp_path):
    """Each image of a large gallery would be in the page at once, and it would stand still."""
    store, uri = Store(), str(tmp_path / "run")
    files = {f"{number:05d}.png": draw(number) for number in range(5000)}
    write_tar(tmp_path / "in" / "0.tar", files)
    config = small_runs.config_of(tmp_path / "in", uri, ("parquet",))
    manifest, labeler = small_runs.found_run(store, config)
    run = small_runs.Run(id=manifest.run_id, uri=uri, config=config)
    small_runs.label_shard(manifest.shards[0], run=run, store=store, labeler=labeler)
    written = gallery(runs.opened(store, uri), str(tmp_path / "out"), limit=5000)
    assert written.images == 5000
    browser.go(address(tmp_path / "out", **WHOLE))
    assert totals(browser).startswith("5,000 of 5,000 images")
    for part in (0.3, 0.7, 1.0):
        browser.run(f"scroller.scrollTop = {part} * scroller.scrollHeight")
        browser.until("grid.cells.has(selected.order.length - 1) || scroller.scrollTop < 0.99 * scroller.scrollHeight")
        browser.until("grid.cells.size > 0 && grid.cells.size < 100")
    browser.until("grid.cells.has(4999)")
    assert browser.complaints == []
