"""The page in Debian's Chromium, with a wav file for a microphone: `make test-browser`."""

from __future__ import annotations

import json
import re
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ttt_moshi.cli.main import main

playwright = pytest.importorskip("playwright.sync_api", reason="the browser extra is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

TALKATIVE = ("--temp_text", "9", "--temp", "2", "--seed", "3")
"""the tiny model has learned little more than silence"""
WAIT = 180_000
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
)  # fmt: skip


@pytest.fixture(scope="module")
def microphone(recording, tmp_path_factory) -> Path:
    """Both sides of a dialogue on one channel: speech from the first second on."""
    sound, rate = soundfile.read(recording)
    path = tmp_path_factory.mktemp("microphone") / "voice.wav"
    soundfile.write(path, sound.sum(axis=1)[: 8 * rate], rate, subtype="PCM_16")
    return path


@pytest.fixture
def browse(microphone):
    """Opens browsers: `with browse() as browser`."""

    @contextmanager
    def browser(*flags: str):
        with playwright.sync_playwright() as play:
            capture = f"--use-file-for-fake-audio-capture={microphone}"
            chromium = play.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, capture, *flags])
            try:
                yield chromium
            finally:
                chromium.close()

    return browser


def open_page(context, port: int, fragment: str = ""):
    page = context.new_page()
    page.set_default_timeout(WAIT)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    page.goto(f"http://127.0.0.1:{port}/{fragment}")
    page.problems = problems
    return page


def start(page) -> None:
    page.get_by_role("button", name="Start talking").click()
    page.get_by_text("Moshi listens").wait_for()


def until(page, condition: str) -> None:
    """Waits for a condition; the page's own policy lets no browser do that by itself."""
    for _ in range(WAIT // 200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(200)
    raise AssertionError(f"never: {condition}; {page.content()}")


def hear_words(page, count: int = 3) -> None:
    until(page, f"document.querySelector('#transcript').textContent.split(' ').length > {count}")


def frames_of(folder: Path, session: str, capsys) -> int:
    capsys.readouterr()
    assert main(["sessions", "show", session, "--sessions", str(folder), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["frames"]


def sessions_in(page) -> list[dict]:
    return json.loads(page.evaluate("localStorage.getItem('ttt-moshi conversations')"))


@pytest.mark.slow
def test_what_is_heard_is_what_generate_says(serve, browse, trained, tmp_path):
    """Words appear, and the audio is that of `generate` for what the microphone sent, with the same seed."""
    server = serve("--max_lag", "inf", *TALKATIVE)
    with browse() as chromium:
        page = open_page(chromium.new_context(accept_downloads=True), server.port, "#format=pcm")
        start(page)
        hear_words(page, 10)
        page.wait_for_timeout(3000)
        assert float(page.locator("#you").evaluate("meter => meter.value")) > 0
        page.get_by_role("button", name="Hang up").click()
        with page.expect_download() as download:
            page.get_by_role("button", name="Audio").click()
        download.value.save_as(tmp_path / "page.wav")
        with page.expect_download() as download:
            page.get_by_role("button", name="Transcript").click()
        download.value.save_as(tmp_path / "page.txt")
        assert page.problems == []
    heard, rate = soundfile.read(tmp_path / "page.wav", dtype="int16")
    assert rate == 24_000 and abs(heard[:, 1].astype(int)).max() > 1000
    soundfile.write(tmp_path / "user.wav", heard[:, 1], rate, subtype="PCM_16")
    arguments = ["--checkpoint_dir", str(trained), "--input", str(tmp_path / "user.wav"), *TALKATIVE]
    assert main(["generate", *arguments, "--out", str(tmp_path / "talk.wav")]) == 0
    said, _ = soundfile.read(tmp_path / "talk.wav", dtype="int16")
    count = int(np.flatnonzero(heard[:, 0])[-1]) + 1
    assert count > 20 * 1920
    assert abs(heard[:count, 0].astype(int) - said[:count, 0]).max() <= 2
    words = [line.split("\t")[1] for line in (tmp_path / "page.txt").read_text().splitlines()]
    expected = [word for word, _, _ in json.loads((tmp_path / "talk.json").read_text())["alignments"]]
    assert len(words) > 3 and words[:-1] == expected[: len(words) - 1]


@pytest.mark.slow
def test_it_remembers_after_a_reload_and_after_the_server_died(serve, browse, tmp_path, capsys):
    """In Opus; two at once."""
    options = ("--max_lag", "inf", "--slots", "2", "--save_seconds", "1", *TALKATIVE)
    server = serve(*options)
    folder = tmp_path / "sessions"
    with browse() as chromium:
        context = chromium.new_context()
        page, other = open_page(context, server.port), open_page(chromium.new_context(), server.port)
        start(page)
        start(other)
        hear_words(page)
        hear_words(other)
        page.get_by_label("Remember this conversation as").fill("my friend")
        page.get_by_role("button", name="Remember", exact=True).click()
        (mine,) = sessions_in(page)
        (theirs,) = sessions_in(other)
        assert mine["name"] == "my friend" and mine["session"] != theirs["session"]
        page.reload()
        page.get_by_role("button", name="Go on with my friend").click()
        page.get_by_text("Moshi listens").wait_for()
        hear_words(page, 1)
        assert page.locator("#transcript time").first.text_content() != "0:00"
        # The line is cut: the page tries again by itself, and finds another server.
        before = frames_of(folder, mine["session"], capsys)
        server.process.kill()
        server.process.wait()
        page.get_by_text("trying again").wait_for()
        serve("--port", str(server.port), *options)
        page.get_by_text("Moshi listens").wait_for()
        page.wait_for_timeout(4000)
        page.get_by_role("button", name="Hang up").click()
        page.get_by_text("Ready.").wait_for()
        for _ in range(100):  # it is saved at the end, and once a second before
            if (after := frames_of(folder, mine["session"], capsys)) > before:
                break
            page.wait_for_timeout(1000)
        assert after > before
        other.get_by_text("Moshi listens").wait_for()
        other.get_by_role("button", name="Forget me").click()
        other.get_by_text("Forgotten").wait_for()
        assert not (folder / f"{theirs['session']}.session").exists()


@pytest.mark.slow
def test_a_prompt_and_the_picture_of_the_memory(serve, browse, tmp_path, capsys):
    server = serve("--max_lag", "inf", "--save_seconds", "1", *TALKATIVE)
    with browse() as chromium:
        page = open_page(chromium.new_context(), server.port)
        page.get_by_label("Who Moshi should be").fill("word " * 300)
        page.get_by_role("button", name="Start talking").click()
        page.get_by_text("The conversation cannot begin so").wait_for()
        page.get_by_label("Who Moshi should be").fill("you are Alice")
        start(page)
        assert page.get_by_label("Who Moshi should be").is_disabled()
        until(page, "document.querySelectorAll('#layers polyline').length === 2")
        until(page, "document.querySelector('#layers polyline').getAttribute('points').split(' ').length > 2")
        caption = page.locator("#layers").get_attribute("aria-label")
        assert re.match(r"Written in \d+:\d\d of conversation, layer 0: [\d.]+ %, layer 1: ", caption), caption
        until(page, "document.querySelectorAll('#losses polyline').length === 2")
        wrong = page.locator("#losses").get_attribute("aria-label")
        assert re.match(r"Wrong about what it hears, layer 0: [\d.]+ %, layer 1: [\d.]+ % of", wrong), wrong
        (mine,) = sessions_in(page)
        page.get_by_role("button", name="Hang up").click()
        assert page.problems == []
    assert frames_of(tmp_path / "sessions", mine["session"], capsys) > 3


@pytest.mark.slow
def test_what_is_wrong_is_said_in_words(serve, browse):
    server = serve("--token", "sesame", "--idle_seconds", "2", "--max_lag", "inf")
    with browse() as chromium:
        context = chromium.new_context()
        page = open_page(context, server.port)
        page.get_by_text("wants a token").wait_for()
        page = open_page(context, server.port, "#token=sesame")
        page.get_by_text("Ready.").wait_for()
        page.evaluate(
            "(navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('no', 'NotAllowedError')), 0)"
        )
        page.get_by_role("button", name="Start talking").click()
        page.get_by_text("The microphone was refused").wait_for()
        server.stop(signal.SIGTERM)


def test_it_works_by_keyboard_and_on_a_phone(serve, browse):
    server = serve(*TALKATIVE)
    with browse() as chromium:
        context = chromium.new_context(viewport={"width": 360, "height": 740}, color_scheme="dark")
        page = open_page(context, server.port)
        page.get_by_text("Ready.").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "talk"
        page.keyboard.press("Enter")
        page.get_by_text("Moshi listens").wait_for()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "mute"
        page.keyboard.press("Space")
        until(page, "document.querySelector('#mute').getAttribute('aria-pressed') === 'true'")
        until(page, "document.querySelector('#you').value === 0")
        nameless = page.evaluate(
            "[...document.querySelectorAll('button, input, meter, [role]')].filter(e => !e.ariaLabel"
            " && !e.textContent.trim() && !e.getAttribute('aria-labelledby') && !e.labels?.length).map(e => e.id)"
        )
        assert nameless == []
