"""The page in a real browser: what a person does there, on a phone too, without a mouse and in the dark.

`make browser`; pictures of the page go to $OPENVOCAB_SCREENSHOTS where that is set.
"""

import base64
import contextlib
import os
import shutil
import socket
import threading
import time
from pathlib import Path

import pytest
import uvicorn
from collection_site import EVENTS, write_site
from PIL import Image

from openvocab import loading
from openvocab.clip.encoder import encoder
from openvocab.search.build import build
from openvocab.search.index import Index
from openvocab.serve.app import create, systems_of

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium: apt install chromium chromium-driver"),
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return write_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def served(site, tmp_path_factory):
    """The address of a server of the demo model over the site."""
    clip = loading.load("demo")
    encode = encoder(clip)
    folder = tmp_path_factory.mktemp("index") / "index"
    build(folder, site, encode, fps=2.0)
    with _listening(create(encode, Index.open(folder), systems_of(clip, []))) as address:
        yield address


@contextlib.contextmanager
def _listening(app):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in (
        "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --autoplay-policy=no-user-gesture-required "
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}"
    ).split():
        options.add_argument(flag)
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


class Page:
    """What a person can do."""

    def __init__(self, driver, address):
        self.driver = driver
        driver.set_window_size(1200, 900)
        driver.get("about:blank")
        driver.get_log("browser")
        driver.get(address)
        self.until("return document.body.dataset.ready")

    def run(self, script, *values):
        return self.driver.execute_script(script, *values)

    def until(self, script, *values, seconds=20):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := self.run(script, *values):
                return found
            time.sleep(0.05)
        raise AssertionError(f"never true: {script}")

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def press(self, *keys):
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def search(self, words):
        field = self.find("#words")
        field.clear()
        field.send_keys(words)
        self.settled(lambda: self.find("#query .main").click())
        return self.paths()

    def settled(self, act):
        """Does something that looks anew, and waits for the answer."""
        self.run("document.getElementById('found').textContent = ''")
        act()
        self.until("return / found in /.test(document.getElementById('found').textContent)")

    def paths(self):
        return self.run("return [...document.querySelectorAll('.hit .path')].map((each) => each.title)")

    def drop(self, path, name="dropped.png"):
        """As the browser tells of a file that is dragged in from outside."""
        script = """
            const bytes = Uint8Array.from(atob(arguments[0]), (each) => each.charCodeAt(0));
            const bundle = new DataTransfer();
            bundle.items.add(new File([bytes], arguments[1], {type: "image/png"}));
            const options = {dataTransfer: bundle, bubbles: true, cancelable: true};
            for (const kind of ["dragenter", "dragover", "drop"])
                document.body.dispatchEvent(new DragEvent(kind, options));
        """
        self.run(script, base64.b64encode(path.read_bytes()).decode(), name)

    def keep(self, name):
        if folder := os.environ.get("OPENVOCAB_SCREENSHOTS"):
            time.sleep(0.4)
            self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))


@pytest.fixture
def page(served, chromium):
    page = Page(chromium, served)
    yield page
    errors = [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"]
    assert not [entry for entry in errors if " 422 " not in entry["message"]], errors


def test_words_find_what_they_say(page):
    paths = page.search("a red circle")
    assert "red/circle" in paths[0]
    assert len(paths) == 40
    page.until("return [...document.querySelectorAll('.hit img')].slice(0, 4).every((each) => each.naturalWidth > 0)")
    page.keep("search")
    page.find("#more").click()
    page.until("return document.querySelectorAll('.hit').length > 40")


def test_thumbnails_below_the_fold_wait(page):
    page.search("a red circle")
    page.until("return document.querySelector('.hit img').complete")
    assert page.run("return [...document.querySelectorAll('.hit img')].every((each) => each.loading === 'lazy')")


def test_without_a_term_its_pictures_go(page):
    with_red = page.search("a circle")
    assert any("red/" in path for path in with_red[:8])
    page.find("#words").clear()
    page.find("#words").send_keys("red")
    page.find("#minus").click()
    page.until("return document.getElementById('found').textContent.startsWith('Add something')")
    page.find("#words").send_keys("a circle")
    page.settled(page.find("#query .main").click)
    assert not any("red/" in path for path in page.paths()[:8])
    assert sum("circle" in path for path in page.paths()[:8]) >= 4
    page.keep("minus")
    page.settled(page.find("#terms li button:last-child").click)
    assert any("red/" in path for path in page.paths()[:8])


def test_a_picture_dragged_in_finds_itself(page, site):
    picture = site / "pictures" / "green" / "ring-0.png"
    page.settled(lambda: page.drop(picture))
    assert page.paths()[0] == "pictures/green/ring-0.png"
    assert page.find("#terms img").get_attribute("src").startswith("data:image/jpeg")
    assert page.run("return document.getElementById('veil').hidden")


def test_more_like_a_hit_and_the_way_back(page):
    page.search("a red circle")
    page.settled(lambda: page.run("document.querySelector('.deeds button').click()"))
    assert page.all("#terms img")
    page.settled(page.driver.back)
    assert page.find("#words").get_attribute("value") == "a red circle"
    assert not page.all("#terms li")


@pytest.mark.parametrize(("name", "start_s"), EVENTS)
def test_a_moment_plays_from_its_second(page, name, start_s):
    page.run("document.getElementById('filters').open = true")
    page.find("[name=kind]").send_keys("video")
    page.search(f"a {name}")
    page.find(".hit button").click()
    page.until("return document.querySelector('#stage video')?.currentTime > 0")
    at_s = page.run("return document.querySelector('#stage video').currentTime")
    assert abs(at_s - start_s) < 1.0, at_s
    page.until("return document.querySelector('#stage video').currentTime > arguments[0] + 0.2", at_s)
    page.keep(f"moment-{name.replace(' ', '-')}")
    assert page.all("#moments button")


def test_a_picture_that_no_browser_shows_is_shown_small(chromium, tmp_path):
    (tmp_path / "files").mkdir()
    Image.new("RGB", (40, 30), "red").save(tmp_path / "files" / "a.tif")
    encode = encoder(loading.load("demo"))
    build(tmp_path / "index", tmp_path / "files", encode)
    with _listening(create(encode, Index.open(tmp_path / "index"))) as address:
        page = Page(chromium, address)
        page.search("a red circle")
        page.find(".hit button").click()
        page.until("return document.querySelector('#stage img').naturalWidth === 40")


def test_labels_get_probabilities_and_a_place(page, site):
    page.find("#tab-ask").click()
    page.find("#labels").clear()
    page.find("#labels").send_keys("a red circle, a blue square\na green ring")
    page.find("#asked").send_keys(str(site / "pictures" / "green" / "ring-0.png"))
    page.until("return document.querySelectorAll('#answers li').length === 3")
    assert page.find("#answers li").text.startswith("a green ring")
    shares = page.run("return [...document.querySelectorAll('#answers meter')].map((each) => each.value)")
    assert abs(sum(shares) - 1) < 1e-3
    before = page.run("return document.getElementById('view').toDataURL()")
    page.find("#answers button").click()
    page.until("return document.getElementById('view').toDataURL() !== arguments[0]", before)
    page.until("return document.getElementById('seen').textContent.includes('cosine')")
    page.keep("ask")


def test_every_pixel_and_every_box_that_systems_offer(page, site):
    page.find("#tab-ask").click()
    page.find("#labels").clear()
    page.find("#labels").send_keys("a green ring, grass")
    page.drop(site / "pictures" / "green" / "ring-0.png")
    page.until("return document.querySelectorAll('#answers li').length === 2")
    verbs = page.all("#verbs button")
    assert verbs
    verbs[0].click()
    page.until("return document.querySelectorAll('#answers .swatch').length === 2")
    page.keep("segment")


def test_a_broken_picture_is_one_plain_line(page, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page.find("#picture").send_keys(str(tmp_path / "broken.png"))
    page.until("return document.querySelector('#found.fault')")
    assert page.find("#found").text == "broken.png: not a picture that this browser can read"


def test_keys_alone_are_enough(page):
    from selenium.webdriver.common.keys import Keys

    page.run("document.activeElement.blur()")
    page.press("/")
    page.settled(lambda: page.press("a red circle", Keys.ENTER))
    page.run("document.querySelector('.hit button').focus()")
    page.press(Keys.ARROW_RIGHT)
    assert page.run("return document.activeElement.dataset.number") == "1"
    page.press(Keys.ARROW_DOWN, Keys.ARROW_UP, Keys.ENTER)
    assert page.run("return document.getElementById('shown').open")
    page.press(Keys.ESCAPE)
    assert not page.run("return document.getElementById('shown').open")
    page.settled(lambda: page.press("l"))
    assert page.all("#terms li.plus")


def test_a_phone_shows_all_of_it(page):
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    )
    try:
        page.search("a red circle")
        for tab in ("search", "ask", "about"):
            page.find(f"#tab-{tab}").click()
            assert page.run("return document.documentElement.scrollWidth") <= 390, tab
            page.keep(f"phone-{tab}")
        page.find("#tab-search").click()
        small = """return [...document.querySelectorAll('button, .button, summary')].filter((each) =>
            each.checkVisibility() && each.getBoundingClientRect().height < 24).map((each) => each.outerHTML)"""
        assert page.run(small) == []
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
const light = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    if (a < 255) return null;
    const linear = [r, g, b].map((c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
};
const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
        const found = light(getComputedStyle(each).backgroundColor);
        if (found !== null) return found;
    }
    return light(getComputedStyle(document.body).backgroundColor);
};
const faint = [];
for (const element of document.querySelectorAll("body *")) {
    const said = [...element.childNodes].some((each) => each.nodeType === 3 && each.textContent.trim());
    if (!said || !element.checkVisibility() || element.matches(".time, script, option")) continue;
    const [one, two] = [light(getComputedStyle(element).color), behind(element)].sort((a, b) => b - a);
    if ((one + 0.05) / (two + 0.05) < 4.5) faint.push(element.outerHTML.slice(0, 99));
}
return faint;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_in_the_light_and_in_the_dark(page, scheme):
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    page.search("a red circle")
    for tab in ("search", "ask", "about"):
        page.find(f"#tab-{tab}").click()
        assert page.run(CONTRAST) == []
        page.keep(f"{scheme}-{tab}")
    paper = page.run("return getComputedStyle(document.body).backgroundColor")
    page.find("#theme").click()
    assert page.run("return getComputedStyle(document.body).backgroundColor") != paper


NAMELESS = """
return [...document.querySelectorAll("button, a[href], input, select, textarea, img, [role=tabpanel], dialog")].filter(
    (each) => {
        const named = each.ariaLabel || each.title || each.alt || each.textContent.trim() || each.labels?.length ||
            each.getAttribute("aria-labelledby");
        return !named && !(each.tagName === "IMG" && each.hasAttribute("alt"));
    }).map((each) => each.outerHTML.slice(0, 99));
"""


def test_screen_readers_hear_names(page):
    page.search("a red circle")
    assert page.run(NAMELESS) == []
    tree = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {node["role"]["value"] for node in tree if not node["ignored"]}
    assert {"banner", "main", "search", "tablist", "tab", "tabpanel", "status", "list"} <= roles
    assert page.run("return document.documentElement.lang") == "en"


def test_nothing_comes_from_elsewhere(page, served):
    page.search("a red circle")
    asked = page.run("return performance.getEntriesByType('resource').map((each) => each.name)")
    assert asked
    assert all(each.startswith((served, "data:", "blob:")) for each in asked)


def test_facts_of_the_model_and_the_index(page):
    page.find("#tab-about").click()
    facts = page.find("#facts").text
    assert "fingerprint" in facts
    assert "pictures" in facts
    page.keep("about")
