"""`data report`: its numbers are those of a dialogue that was made to have them, and the page needs nothing else."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile

from ttt_moshi.cli.main import main
from ttt_moshi.data.report.clips import CLIP_SECONDS, choose
from ttt_moshi.data.report.measure import Measured, pauses, script
from ttt_moshi.data.sources import Line

RATE = 24000
# Who speaks from when to when: Moshi 0, the user 1.
TURNS = [(0, 1.0, 4.0), (1, 4.5, 7.5), (0, 8.5, 12.5), (1, 12.0, 15.0), (0, 16.0, 19.0)]
SECONDS = 30.0


@pytest.fixture
def data(tmp_path):
    """One dialogue of 30 s: 10 s of Moshi with 20 words, 6 s of the user, half a second of both."""
    samples = np.random.default_rng(0).normal(0, 1e-4, (round(SECONDS * RATE), 2))
    words = []
    for speaker, start, end in TURNS:
        inside = slice(round(start * RATE), round(end * RATE))
        t = np.arange(inside.stop - inside.start) / RATE
        samples[inside, speaker] += 0.25 * np.sin(2 * np.pi * 300 * (1 + speaker) * t)
        name = ("SPEAKER_MAIN", "SPEAKER_OTHER")[speaker]
        words += [["hello", [at, at + 0.4], name] for at in np.arange(start, end - 0.1, 0.5).tolist()]
    folder = tmp_path / "data"
    folder.mkdir()
    soundfile.write(folder / "a.wav", samples, RATE)
    (folder / "a.json").write_text(json.dumps({"alignments": words}))
    (folder / "data.jsonl").write_text(json.dumps({"path": "a.wav", "duration": SECONDS}) + "\n")
    return folder


class Page(HTMLParser):
    """The text of a page, and everything that it would load."""

    def __init__(self, html: str):
        super().__init__()
        self.loads: list[str] = []
        self.words: list[str] = []
        self.kinds: list[str] = []
        self._hidden = False
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden = tag in ("style", "script")
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]
        self.kinds += [value or "" for name, value in attrs if tag == "span" and name == "class"]

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words.append(data)


def test_the_numbers_are_those_of_the_dialogue(data, tmp_path, capsys):
    assert main(["data", "report", str(data), "--out", str(tmp_path / "p" / "page.html")]) == 0
    assert "page.html: 1 recording, 0 problems" in capsys.readouterr().out
    page = Page((tmp_path / "p" / "page.html").read_text())
    assert "0:30 of audio in 1 recording" in page.text and "20 words of Moshi" in page.text
    shares = {
        who: float(part) for who, part in re.findall(r"(Moshi|both at once|user|silence) ([\d.]+)\xa0?\s?%", page.text)
    }
    expected = {"Moshi": 9.5 / 30, "both at once": 0.5 / 30, "user": 5.5 / 30, "silence": 14.5 / 30}
    assert shares == pytest.approx({who: 100 * part for who, part in expected.items()}, abs=0.3)
    assert re.search(r"speech (0:10|0:09) 0:0[56] words 20 12 words a minute of speech 12\d 1[23]\d", page.text), (
        page.text
    )
    level = float(re.search(r"level of speech, median (-[\d.]+)\sdB", page.text)[1])
    assert level == pytest.approx(20 * np.log10(0.25 / np.sqrt(2)), abs=0.3)
    assert "Pauses between turns median 0.75 s" in page.text  # of 0.5, 1.0, -0.5 and 1.0 s
    assert "Nothing: no problem and no note" in page.text


def test_the_page_needs_nothing_else_and_can_be_listened_to(data, tmp_path):
    main(["data", "report", str(data), "--out", str(tmp_path / "page.html"), "--clips", "2"])
    html = (tmp_path / "page.html").read_text()
    page = Page(html)
    assert len(page.loads) == 2 and all(source.startswith("data:audio/mpeg;base64,") for source in page.loads)
    assert "http" not in html and "url(" not in html
    original, _ = soundfile.read(data / "a.wav", always_2d=True)
    starts = [
        sum(int(n) * s for n, s in zip(at.split(":"), (60, 1), strict=True))
        for at in re.findall(r"from (\d+:\d\d)<", html)
    ]
    for source, start in zip(page.loads, starts, strict=True):
        clip, rate = soundfile.read(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert rate == RATE and len(clip) == pytest.approx(CLIP_SECONDS * RATE, abs=2500)
        # Within the second that the page's clock rounds off.
        loud = [
            np.sqrt(np.square(part).mean(axis=0))
            for part in (clip, original[start * RATE : round((start + CLIP_SECONDS) * RATE)])
        ]
        assert loud[0] == pytest.approx(loud[1], rel=0.15, abs=0.01)
    assert "tokens are shown too" in page.text and not page.kinds.count("pad t0")


def test_the_tokens_are_those_of_the_text_stream(data, tmp_path, tokenizer):
    (tmp_path / "t.model").write_bytes(tokenizer.serialized_model_proto())
    argv = ["data", "report", str(data), "--out", str(tmp_path / "page.html"), "--clips", "1"]
    assert main([*argv, "--tokenizer", str(tmp_path / "t.model")]) == 0
    page = Page((tmp_path / "page.html").read_text())
    kinds = [kind.split()[0] for kind in page.kinds if " t" in kind]
    assert len(kinds) == 150, "frames of twelve seconds"
    # The clip is from 8.96 s: of Moshi's words, those of half of a turn that ends at 12.5 s and of one from 16 s on.
    pieces = len(tokenizer.encode("hello"))
    begun = [at for s, a, b in TURNS if s == 0 for at in np.arange(a, b - 0.1, 0.5) if 8.96 <= at < 20.96]
    assert kinds.count("word") == pytest.approx(pieces * len(begun), abs=2)
    assert kinds.count("epad") == pytest.approx(len(begun), abs=1) and kinds.count("absent") == 0


def test_what_was_prepared_and_what_is_wrong_is_on_it(data, tmp_path):
    soundfile.write(data / "b.wav", np.zeros((RATE, 2)), RATE)
    with (data / "data.jsonl").open("a") as file:
        file.write('{"path": "b.wav", "duration": 1.0}\n{"path": "<b>c.wav", "duration": 1.0}\n')
    done = {"source": "x.mp3", "left_out": None, "done": ["resampled from 8000 Hz", "3 words without times"]}
    also = {"source": "z.mp3", "left_out": None, "done": ["resampled from 8000 Hz", "5 words without times"]}
    (data / "prepare.json").write_text(
        json.dumps({"recordings": [done, also, {"source": "y.mp3", "left_out": "too short"}]})
    )
    assert main(["data", "report", str(data), "--out", str(tmp_path / "page.html")]) == 1
    html = (tmp_path / "page.html").read_text()
    page = Page(html)
    for told in (
        "missing recording 1 <b>c.wav",
        "silent from beginning to end",
        "resampled from 8000 Hz 2 x.mp3",
        "N words without times 2 x.mp3: 3 words",
        "too short 1 y.mp3",
        "1 of the recordings are pre-tokenized or cannot be read",
    ):
        assert told in page.text
    assert "<b>c.wav" not in html


def test_languages_that_transcripts_name_are_kept_and_shown(data, tmp_path):
    """From what Whisper writes, through `prepare`, to the page."""
    words = json.loads((data / "a.json").read_text())["alignments"]
    samples, rate = soundfile.read(data / "a.wav")
    calls = tmp_path / "calls"
    calls.mkdir()
    for number, language in enumerate(("de", "Cy", None)):
        soundfile.write(calls / f"{number}.wav", samples * (1 - 0.1 * number), rate)
        mine = [{"word": text, "start": a, "end": b} for text, (a, b), who in words if who == "SPEAKER_MAIN"]
        document = {"segments": [{"words": mine}], **({"language": language} if language else {})}
        (calls / f"{number}.json").write_text(json.dumps(document))
    assert main(["data", "prepare", str(calls), "--out", str(tmp_path / "set")]) == 0
    named = [json.loads((tmp_path / f"set/recordings/{n}.json").read_text()).get("language") for n in range(3)]
    assert named == ["de", "cy", None]
    argv = ["data", "report", str(tmp_path / "set"), "--clips", "1", "--out", str(tmp_path / "page.html")]
    assert main(argv) == 0
    assert "language named in 1 transcript, cy in 1" in Page((tmp_path / "page.html").read_text()).text


def measured(seconds: float) -> Measured:
    line = Line(None, 1, f"{seconds}.wav", seconds)  # type: ignore[arg-type]
    return Measured(line, seconds, (), 0.0, 0.0, (), None, None, frozenset(), False)  # type: ignore[arg-type]


def test_clips_lie_evenly_over_all_the_audio():
    chosen = choose([measured(3600), measured(5), measured(1800)], 10)
    assert len(chosen) == 10 and [recording.seconds for recording, _, _ in chosen].count(3600) in (6, 7)
    assert all(start + length <= each.seconds + 1e-9 and length == CLIP_SECONDS for each, start, length in chosen)
    assert len(choose([measured(30)], 10)) == 2
    assert [round(length, 2) for _, _, length in choose([measured(5)], 10)] == [5.0]


def test_turns_and_scripts():
    masks = np.zeros((2, 500), bool)
    masks[0, 0:100] = masks[1, 130:200] = masks[0, 150:170] = masks[0, 190:300] = True
    assert pauses(masks) == pytest.approx([0.6, -0.2])  # what begins and ends inside of a turn takes none
    assert [script(word) for word in ("naïve", "Привет", "おはよう", "早上", "42")] == [
        "Latin", "Cyrillic", "Hiragana", "Cjk", "words without letters",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clips", "0"], "--clips"),
        (["--tokenizer", "{data}/none.model"], "--tokenizer"),
        (["--tokenizer", "{data}/a.json"], "not a SentencePiece model"),
        (["--out", "{data}"], "is a folder"),
    ],
)
def test_bad_values_are_one_line(data, tmp_path, capsys, options, message):
    options = [option.format(data=data) for option in options]
    assert main(["data", "report", str(data), "--out", str(tmp_path / "page.html"), *options]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1 and not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("out", ["data.jsonl", "a.wav", "link.jsonl"])
def test_nothing_but_a_page_is_replaced(data, tmp_path, capsys, out):
    (data / "link.jsonl").symlink_to("data.jsonl")
    before = (data / out).read_bytes()
    command = ["data", "report", str(data / "data.jsonl"), "--clips", "1", "--out"]
    assert main([*command, str(data / out)]) == 2
    told = capsys.readouterr().err
    assert f"{data / out} is there and is no page" in told and told.count("\n") == 1
    assert (data / out).read_bytes() == before
    (tmp_path / "page.html").touch()
    for _ in range(2):  # of nothing, and of a page
        assert main([*command, str(tmp_path / "page.html")]) == 0
    assert "<title>Data: " in (tmp_path / "page.html").read_text()


def test_one_bad_file_costs_no_page(data, tokenizer, tmp_path, capsys):
    for name in ("corrupt", "empty"):
        (data / f"{name}.json").write_bytes((data / "a.json").read_bytes())
    samples, rate = soundfile.read(data / "a.wav")
    soundfile.write(data / "corrupt.wav", 0.9 * samples, rate)
    (data / "corrupt.json").write_text('{"alignments": [["hello", [0.1')
    soundfile.write(data / "empty.wav", samples[:0], rate)
    listed = {"empty": 0.0, "a": SECONDS, "corrupt": SECONDS}
    (data / "data.jsonl").write_text(
        "\n".join(json.dumps({"path": f"{name}.wav", "duration": seconds}) for name, seconds in listed.items())
    )
    (tmp_path / "t.model").write_bytes(tokenizer.serialized_model_proto())
    argv = ["data", "report", str(data), "--tokenizer", str(tmp_path / "t.model"), "--out", str(tmp_path / "page.html")]
    assert main(argv) == 1
    page = Page((tmp_path / "page.html").read_text())
    for told in ("bad transcript 1 corrupt.json", "too short 1 empty.wav"):
        assert told in page.text
    assert re.search(r"\ba\.wav from 0:\d\d ", page.text)
    assert re.search(r"corrupt\.wav from 0:\d\d, without a transcript that can be read", page.text)
    # Of what has no audio at all there is nothing to hear, and everything to tell.
    (data / "data.jsonl").write_text('{"path": "empty.wav", "duration": 0.0}')
    assert main(argv) == 1
    assert "too short 1 empty.wav" in Page((tmp_path / "page.html").read_text()).text
    assert "Traceback" not in capsys.readouterr().err


def test_nothing_to_hear_is_an_error(data, tmp_path, capsys):
    (data / "a.wav").write_text("no")
    assert main(["data", "report", str(data), "--out", str(tmp_path / "page.html")]) == 2
    assert "data check" in capsys.readouterr().err
