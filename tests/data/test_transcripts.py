"""Every format of transcripts against the same words, in every encoding, and what is mended, asked and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ttt_moshi.data import DataError
from ttt_moshi.data.transcripts import Untimed, Word, alignments, read_any, read_transcript

SAID = [
    ("Good", 0.5, 0.8, 0), ("café", 0.8, 1.3, 0), ("hello", 1.6, 2.0, 1), ("there", 2.0, 2.4, 1),
    ("today", 3.0, 3.5, 0),
]  # fmt: skip


NAMES = ("Agent", "Customer")


def srt_clock(seconds: float, mark: str = ",") -> str:
    return f"00:{int(seconds) // 60:02}:{int(seconds) % 60:02}{mark}{round(seconds % 1 * 1000):03}"


def srt(names: tuple[str, str] = NAMES) -> str:
    cues = [f"{i}\n{srt_clock(a)} --> {srt_clock(b)}\n{names[s]}: {w}" for i, (w, a, b, s) in enumerate(SAID, 1)]
    return "\n\n".join(cues) + "\n"


def vtt() -> str:
    cues = [
        f"{srt_clock(a, '.')} --> {srt_clock(b, '.')} align:start\n<v {NAMES[s]}><c>{w}</c></v>" for w, a, b, s in SAID
    ]
    return "WEBVTT\n\nNOTE by hand\n\n" + "\n\n".join(cues) + "\n"


def textgrid(short: bool) -> str:
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", "xmax = 4"]
    lines += ["tiers? <exists>", "size = 2", "item []:"]
    for number, name in enumerate(NAMES):
        own = [(w, a, b) for w, a, b, s in SAID if s == number]
        edges, at = [], 0.0
        for word, start, end in own:
            if start > at:
                edges.append(("", at, start))
            edges.append((word, start, end))
            at = end
        edges.append(("", at, 4.0))
        lines += [f"    item [{number + 1}]:", '        class = "IntervalTier"', f'        name = "{name}"']
        lines += ["        xmin = 0", "        xmax = 4", f"        intervals: size = {len(edges)}"]
        for i, (word, start, end) in enumerate(edges, 1):
            lines += [
                f"        intervals [{i}]:",
                f"            xmin = {start}",
                f"            xmax = {end}",
                f'            text = "{word}"',
            ]
    if short:
        lines = [line.split("=")[-1].split("?")[-1].strip() for line in lines if "=" in line or "?" in line]
        lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", *lines[2:]]
    return "\n".join(lines) + "\n"


def elan() -> str:
    slots, tiers = [], {0: [], 1: []}
    for i, (word, start, end, speaker) in enumerate(SAID):
        for slot, at in ((f"a{i}", start), (f"b{i}", end)):
            slots.append(f'<TIME_SLOT TIME_SLOT_ID="{slot}" TIME_VALUE="{round(at * 1000)}"/>')
        tiers[speaker].append(
            f'<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="x{i}" TIME_SLOT_REF1="a{i}" TIME_SLOT_REF2="b{i}">'
            f"<ANNOTATION_VALUE>{word}</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>"
        )
    body = "".join(f'<TIER TIER_ID="t{s}" PARTICIPANT="{n}">{"".join(tiers[s])}</TIER>' for s, n in enumerate(NAMES))
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<ANNOTATION_DOCUMENT AUTHOR="" VERSION="3.0">'
        f"<TIME_ORDER>{''.join(slots)}</TIME_ORDER>{body}</ANNOTATION_DOCUMENT>"
    )


def dicts(word: str = "word") -> list[dict[str, object]]:
    return [{word: w, "start": a, "end": b, "speaker": NAMES[s]} for w, a, b, s in SAID]


def aws() -> dict[str, object]:
    items = [
        {"type": "pronunciation", "start_time": str(a), "end_time": str(b), "alternatives": [{"content": w}],
         "speaker_label": f"spk_{s}"}
        for w, a, b, s in SAID
    ]  # fmt: skip
    return {"jobName": "x", "results": {"transcripts": [], "items": items}}


def segments() -> dict[str, object]:
    made = [
        {"id": i, "start": a, "end": b, "text": f" {w}", "speaker": NAMES[s],
         "words": [{"word": f" {w}", "start": a, "end": b, "probability": 0.9}]}
        for i, (w, a, b, s) in enumerate(SAID)
    ]  # fmt: skip
    return {"text": "", "segments": made, "language": "en"}


def ctm(channels: tuple[str, str]) -> str:
    return ";; made by hand\n" + "".join(f"call {channels[s]} {a:.2f} {b - a:.2f} {w} 0.9\n" for w, a, b, s in SAID)


def rttm() -> str:
    return "".join(f"LEXEME call 1 {a} {b - a:.2f} {w} lex {NAMES[s]} 0.9\n" for w, a, b, s in SAID)


def labelled(*names: str) -> dict[str, object]:
    return {"alignments": [[w, [a, b], names[s]] for w, a, b, s in SAID]}


def deepgram(channels: int) -> dict[str, object]:
    found = []
    for channel in range(channels):
        words = [
            {"word": w.lower(), "punctuated_word": w, "start": a, "end": b, **({"speaker": s} if channels == 1 else {})}
            for w, a, b, s in SAID
            if channels == 1 or s == channel
        ]
        found.append({"alternatives": [{"words": words}, {"words": []}]})
    return {"results": {"channels": found}}


def around(words: list[dict[str, object]], **extra: object) -> dict[str, object]:
    return {"segments": [{"start": 0, "end": 4, "text": "", "words": words}], **extra}


def apart() -> dict[str, object]:
    return {"segments": [{"text": "x", "start": 0, "end": 4}], "words": dicts()}


def sides() -> list[dict[str, object]]:
    return [{"speaker": "AB"[s], "word": w, "start": a, "end": b} for w, a, b, s in SAID]


# name of the file, content, label of Moshi
FORMATS: dict[str, tuple[str, Callable[[], object], str | None]] = {
    "moshi-finetune": ("a.json", lambda: labelled("SPEAKER_MAIN", "SPEAKER_01"), None),
    "diarized alignments": ("a.json", lambda: labelled("SPEAKER_00", "SPEAKER_01"), "SPEAKER_00"),
    "nu-dialogue": ("a.json", sides, None),
    "named words": ("a.json", dicts, "agent"),
    "list of segments": ("a.json", lambda: dicts("text"), "Agent"),
    "Whisper": ("a.json", segments, "Agent"),
    "Whisper, words apart": ("a.json", apart, "Agent"),
    "whisper_timestamped": ("a.json", lambda: around(dicts("text")), "Agent"),
    "WhisperX": ("a.json", lambda: around(dicts(), word_segments=dicts()), "Agent"),
    "Deepgram": ("a.json", lambda: deepgram(1), "speaker 0"),
    "Deepgram, channels": ("a.json", lambda: deepgram(2), "channel 1"),
    "AWS Transcribe": ("a.json", aws, "spk_0"),
    "SRT": ("a.srt", srt, "Agent"),
    "SRT, numbered speakers": ("a.srt", lambda: srt(("Speaker 1", "Speaker 2")), "speaker 1"),
    "WebVTT": ("a.vtt", vtt, "Agent"),
    "TextGrid": ("a.TextGrid", lambda: textgrid(short=False), "Agent"),
    "TextGrid, short": ("a.TextGrid", lambda: textgrid(short=True), "Agent"),
    "ELAN": ("a.eaf", elan, "Agent"),
    "CTM": ("a.ctm", lambda: ctm(("1", "2")), None),
    "CTM, letters": ("a.ctm", lambda: ctm(("A", "B")), None),
    "RTTM": ("a.rttm", rttm, "Agent"),
}
ENCODINGS = {
    "UTF-8": lambda text: text.encode(),
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16 BE": lambda text: text.encode("utf-16-be"),
    "Latin-1": lambda text: text.encode("latin-1"),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_in_every_encoding_has_the_same_words(tmp_path, name, encoding):
    """Under a name that says nothing of the format too: the content decides."""
    file, content, label = FORMATS[name]
    document = content()
    text = document if isinstance(document, str) else json.dumps(document, ensure_ascii=False)
    for path in (tmp_path / file, tmp_path / "b.json"):
        path.write_bytes(ENCODINGS[encoding](text))
        found = read_transcript(path, "A", label)
        assert [(w.text, w.start, w.end, w.speaker == "SPEAKER_MAIN") for w in found.words] == [
            (w, pytest.approx(a, abs=1e-3), pytest.approx(b, abs=1e-3), s == 0) for w, a, b, s in SAID
        ]
        assert not found.repairs and not found.approximate
        assert any("Windows-1252" in remark for remark in found.remarks) == (encoding == "Latin-1")


@pytest.mark.parametrize("name", [name for name, (_, _, label) in FORMATS.items() if label])
def test_who_moshi_is_is_asked_and_never_guessed(tmp_path, name):
    file, content, label = FORMATS[name]
    document = content()
    (tmp_path / file).write_text(document if isinstance(document, str) else json.dumps(document))
    for wrong in (None, "Nobody"):
        with pytest.raises(DataError, match="--moshi_label") as error:
            read_transcript(tmp_path / file, "A", wrong)
        assert label.lower() in str(error.value).lower() and "\n" not in str(error.value)


@pytest.mark.parametrize(("moshi", "main"), [("A", ["yes"]), ("B", ["no", "never"])])
def test_either_side_may_be_moshi(tmp_path, moshi, main):
    words = [("A", "yes", 0, 1), ("B", "no", 1, 2), ("B", "never", 2, 3)]
    document = [{"speaker": s, "word": w, "start": a, "end": b} for s, w, a, b in words]
    (tmp_path / "a.json").write_text(json.dumps(document))
    found = read_transcript(tmp_path / "a.json", moshi)
    assert [w.text for w in found.words if w.speaker == "SPEAKER_MAIN"] == main and len(found.words) == 3


@pytest.fixture
def write(tmp_path):
    def write(document: object, name: str = "a.json") -> Path:
        path = tmp_path / name
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return path

    return write


def test_moshi_finetunes_layout_is_kept(write):
    path = write({"alignments": [["hello", [0.5, 0.9], "SPEAKER_MAIN"], ["hm", [0.1, 0.2], "SPEAKER_00"]], "x": 1})
    found = read_transcript(path)
    assert found.words == (Word("hm", 0.1, 0.2, "SPEAKER_00"), Word("hello", 0.5, 0.9, "SPEAKER_MAIN"))
    assert alignments(found.words)[1] == ["hello", [0.5, 0.9], "SPEAKER_MAIN"]


def main(*entries: tuple[str, object, object]) -> dict[str, object]:
    return {"alignments": [[text, [start, end], "SPEAKER_MAIN"] for text, start, end in entries]}


def test_words_are_ordered_by_start_and_ties_keep_their_order(write):
    path = write(main(("c", 2, 3), ("a", 1, 2), ("b", 1, 1.5)))
    assert [word.text for word in read_transcript(path).words] == ["a", "b", "c"]


def test_white_space_inside_words_is_one_space(write):
    assert read_transcript(write(main((" New\nYork ", 0, 1)))).words[0].text == "New York"


def test_no_words_is_a_transcript_too(write):
    assert read_transcript(write({"alignments": []})).words == ()
    assert read_transcript(write([])).words == ()


def test_approximate_times_are_marked(write):
    assert read_transcript(write({"alignments": [], "word_times": "approximate"})).approximate


def one_of_five(start: object, end: object) -> dict[str, object]:
    return main(("a", 0.0, 0.5), ("b", 0.5, 1.0), ("mended", start, end), ("c", 2.0, 2.5), ("d", 2.5, 3.0))


@pytest.mark.parametrize(
    ("start", "end", "times", "repair"),
    [
        (None, None, (1.0, 2.0), "without times"),
        (float("nan"), 1.5, None, "without times"),
        ("now", "then", (1.0, 2.0), "without times"),
        (True, True, (1.0, 2.0), "without times"),
        (1.2, None, (1.2, 1.69), "without times"),
        (float("inf"), float("inf"), (1.0, 2.0), "without times"),
        ("1.2", "1.6", (1.2, 1.6), "written as text"),
        (-0.1, 0.3, (0.0, 0.3), "negative"),
        (-7, -6, None, "left out"),
    ],
)
def test_a_bad_time_costs_one_word_at_most_and_is_counted(write, start, end, times, repair):
    found = read_transcript(write(json.dumps(one_of_five(start, end))))
    (told,) = [what for what in found.repairs if repair in what]
    assert found.repairs[told] == 1
    mended = [word for word in found.words if word.text == "mended"]
    assert len(found.words) - len(mended) == 4
    if repair == "left out":
        assert not mended
    elif times is not None:
        assert (mended[0].start, mended[0].end) == pytest.approx(times)
    assert found.repaired_share == pytest.approx(0.0 if repair == "written as text" else 0.2)


def test_times_that_lack_at_either_end_are_found(write):
    found = read_transcript(write(main(("a", None, None), ("b", 1.0, 1.5), ("c", None, None), ("d", None, None))))
    assert [word.text for word in found.words] == ["a", "b", "c", "d"]
    assert 0 <= found.words[0].start < found.words[0].end <= 1.0
    assert 1.5 <= found.words[2].start < found.words[2].end <= found.words[3].start < found.words[3].end < 2.5


def tiers_of_praat(*tiers: tuple[str, str]) -> str:
    """Each tier says its words in the first seconds, one a second, or all in one stretch where they hold a comma."""
    rows = []
    for name, text in tiers:
        parts = [text] if "," in text else text.split()
        edges = "".join(f'{i}\n{i + 1}\n"{part}"\n' for i, part in enumerate(parts))
        rows.append(f'"IntervalTier"\n"{name}"\n0\n9\n{len(parts)}\n{edges}')
    return f'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n9\n<exists>\n{len(tiers)}\n{"".join(rows)}'


def tiers_of_elan(*tiers: tuple[str, str, str, str]) -> str:
    """`(name, participant, parent, words)`, one word a second."""
    slots = "".join(f'<TIME_SLOT TIME_SLOT_ID="t{i}" TIME_VALUE="{i * 1000}"/>' for i in range(9))
    rows = []
    for name, participant, parent, text in tiers:
        facts = f'TIER_ID="{name}"' + (f' PARTICIPANT="{participant}"' if participant else "")
        facts += f' PARENT_REF="{parent}"' if parent else ""
        notes = "".join(
            f'<ANNOTATION><ALIGNABLE_ANNOTATION TIME_SLOT_REF1="t{i}" TIME_SLOT_REF2="t{i + 1}">'
            f"<ANNOTATION_VALUE>{word}</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>"
            for i, word in enumerate(text.split())
        )
        rows.append(f"<TIER {facts}>{notes}</TIER>")
    return f"<ANNOTATION_DOCUMENT><TIME_ORDER>{slots}</TIME_ORDER>{''.join(rows)}</ANNOTATION_DOCUMENT>"


@pytest.mark.parametrize(
    ("name", "text", "words", "left_out"),
    [
        ("a.TextGrid", tiers_of_praat(("Anna - utterances", "hi, you"), ("Anna - words", "hi you")), "hi you",
         ["Anna - utterances"]),
        ("a.TextGrid", tiers_of_praat(("text", "hi, you"), ("word", "hi you"), ("phones", "h i j u")), "hi you",
         ["text", "phones"]),
        ("a.TextGrid", tiers_of_praat(("Anna", "hi, you"), ("anna - words", "hi you"), ("Ben", "no")), "hi no you",
         ["Anna"]),
        ("a.TextGrid", tiers_of_praat(("A words", ""), ("A transcript", "hi, you"), ("A text", "hi, you")),
         "hi, you", ["A text"]),
        ("a.eaf", tiers_of_elan(("utt", "Anna", "", "hi"), ("tokens", "Anna", "utt", "hi you"), ("b", "Ben", "", "no")),
         "hi no you", ["utt"]),
        ("a.eaf", tiers_of_elan(("Anna", "", "", "hi"), ("part", "", "Anna", ""), ("of", "Anna", "part", "hi you")),
         "hi you", ["Anna"]),
        ("a.eaf", tiers_of_elan(("utterances", "Anna", "", "hi"), ("words", "Anna", "", "hi you")), "hi you",
         ["utterances"]),
        ("a.eaf", tiers_of_elan(("Anna-words", "Anna", "", "hi you"), ("Anna-phones", "", "Anna-words", "h i j u")),
         "hi you", ["Anna-phones"]),
        ("a.eaf", tiers_of_elan(("utt", "Anna", "", "hi you"), ("words", "Anna", "utt", "")), "hi you", []),
    ],
)  # fmt: skip
def test_a_speaker_with_several_tiers_says_every_word_once(write, name, text, words, left_out):
    found = read_transcript(write(text, name), "A", "Anna")
    assert " ".join(word.text for word in found.words) == words
    assert list(found.remarks) == [f"tier `{tier}` is left out" for tier in left_out]


def test_longer_stretches_are_spread_and_marked(write):
    found = read_transcript(write("1\n00:00:01,000 --> 00:00:03,000\none two three\nfour [laughs]\n", "a.srt"))
    assert [word.text for word in found.words] == ["one", "two", "three", "four"]
    assert found.words[0].start == 1.0 and found.words[-1].end == 3.0 and found.approximate
    assert [count for what, count in found.repairs.items() if "marks" in what] == [1]


@pytest.mark.parametrize(
    ("text", "label", "pairs"),
    [
        ("hello there", None, "M:hello M:there"),
        ("hello\nA: there\nB: you\nall\nA: bye", None, "M:hello M:there U:you U:all M:bye"),
        ("Agent: hello\nCustomer: hi: there", "agent", "M:hello U:hi: U:there"),
        ("Customer: hi\nAgent: hello", "Agent", "U:hi M:hello"),
        ("Speaker 1: hi\nSpeaker 2: hello", "Speaker 2", "U:hi M:hello"),
        ("SPEAKER_00: hi\nSPEAKER_01: hello", "SPEAKER_01", "U:hi M:hello"),
        ("a: hi\nb: hello", None, "M:hi U:hello"),
        ("- Anna: hi\n- Bo: hello", "Bo", "U:hi M:hello"),
        ("[Anna]: hi\n[Bo]: hello [coughs]", "Anna", "M:hi U:hello"),
        ("at 10:30 we open", None, "M:at M:10:30 M:we M:open"),
    ],
)
def test_plain_text_and_its_labels(write, text, label, pairs):
    found = read_any(write(text, "a.txt"), "A", label)
    assert isinstance(found, Untimed)
    assert " ".join(f"{'M' if who == 'SPEAKER_MAIN' else 'U'}:{word}" for who, word in found.pairs) == pairs


@pytest.mark.parametrize("stamp", ["[00:00:0{}]", "(0:0{})", "00:00:0{}.000", "00:0{} -"])
def test_lines_that_begin_with_a_time(write, stamp):
    text = f"{stamp.format(1)} A: one two\n{stamp.format(4)} B: three\n{stamp.format(5)} A: four\nfive\n"
    found = read_transcript(write(text, "a.txt"))
    assert [(w.text, w.speaker == "SPEAKER_MAIN") for w in found.words] == [
        ("one", True), ("two", True), ("three", False), ("four", True), ("five", True),
    ]  # fmt: skip
    assert [found.words[i].start for i in (0, 2, 3)] == [1, 4, 5] and found.approximate
    assert all(a.end <= b.start for a, b in zip(found.words, found.words[1:], strict=False))


@pytest.mark.parametrize(
    "line",
    [
        "[00:00:01.000 --> 00:00:05.500]  {}: {}",
        "[00:00:01 - 00:00:05.5] {}: {}",
        "(0:01 \u2013 0:05,5): {}: {}",
        "00:01 - 00:05.5 {}: {}",
        "00:00:01.000 --> 00:00:05.500 {}: {}",
        "00:00:01.000 - 00:00:05.500\n{}: {}\n",
        "[1.00s -> 5.50s] {}: {}",
        "1.000000\t5.500000\t{}: {}",
    ],
)
def test_lines_that_begin_with_a_start_and_an_end(write, line):
    """As Whisper and faster-whisper print them, as Audacity's labels, and as people write them."""
    text = f"{line.format('Anna', 'good day')}\n{line.format('Ben', 'you')}\n"
    found = read_transcript(write(text, "a.txt"), "A", "Anna")
    assert {(w.text, w.start, w.end, w.speaker == "SPEAKER_MAIN") for w in found.words} == {
        ("good", 1.0, 3.5, True), ("day", 3.5, 5.5, True), ("you", 1.0, 5.5, False),
    }  # fmt: skip
    assert not found.repairs and found.approximate


def test_a_label_without_a_time_keeps_its_words_from_the_speaker_before(write):
    found = read_transcript(write("[0:01]\nA: hi\nB: there\n[0:04]\nA: bye\n", "a.txt"))
    assert [(w.text, w.speaker == "SPEAKER_MAIN") for w in found.words] == [
        ("hi", True),
        ("there", False),
        ("bye", True),
    ]
    assert [found.words[i].start for i in (0, 2)] == [1, 4] and 1 < found.words[1].start < 4
    assert [count for what, count in found.repairs.items() if "without times" in what] == [1]


@pytest.mark.parametrize(
    "text",
    [
        "[0:01 to 0:05] hello\n[0:05 to 0:08] you",
        "[0:01 / 0:05] hello",
        "[0:01 --> 0:05 hello",
        "0:01 --> hello",
        "[0:01] 0:05 hello",
        "A: 0:01 - 0:05 hello\nB: 0:05 - 0:08 you",
        "A call\n0:01 hello\n0:05 you",
        "A call\n[0:01] A: hello\n[0:05] B: you",
        "Speaker 1  0:01\nhello\n\nSpeaker 2  0:05\nyou",
        "A [0:01 - 0:05] hello\nB [0:05 - 0:08] you",
        "A (0:01 - 0:05): hello\nB (0:05 - 0:08): you",
    ],
)
def test_times_that_would_be_taught_as_words_are_refused(write, text):
    with pytest.raises(DataError, match=r"(begins with|has) a time"):
        read_any(write(text, "a.txt"))


def test_times_that_are_said_are_words(write):
    found = read_any(write("A: 10:30 or so\nB: we open\nat 10:30\n", "a.txt"))
    assert [word for _, word in found.pairs] == ["10:30", "or", "so", "we", "open", "at", "10:30"]


@pytest.mark.parametrize(
    ("text", "words", "going_on"),
    [
        ("1\n{0}\none\n\ntwo\n\n2\n{1}\nthree\n", ["one two", "three"], 1),
        ("1\n{0}\n\none\n\n2\n{1}\n\nthree\n\nfour", ["one", "three four"], 2),
        ("1\n{0}\none\n2\n{1}\nthree\n", ["one", "three"], 0),
        ("1\n{0}\none\n \n2\n\n{1}\nthree\n", ["one", "three"], 0),
        ("{0}\none\n2\n{1}\nthree\n", ["one 2", "three"], 0),
        ("WEBVTT\n\n{0}\none\n\n\ntwo\n\nthe second\n{1}\nthree\n", ["one two", "three"], 1),
        ("WEBVTT\n\n{0} align:start\nNOTE one\n\nNOTE by\nhand\n\n{1}\nthree\n\nNOTE end", ["NOTE one", "three"], 0),
    ],
)
def test_an_empty_line_costs_no_words_of_a_caption(write, text, words, going_on):
    times = "00:00:01.000 --> 00:00:02.000", "00:00:03.000 --> 00:00:04.000"
    found = read_transcript(write(text.format(*times), "a.srt"))
    assert [" ".join(w.text for w in found.words if a <= w.start < a + 1) for a in (1, 3)] == words
    assert list(found.remarks) == ([f"captions that go on after an empty line: {going_on}"] if going_on else [])


@pytest.mark.parametrize(
    ("name", "document", "message"),
    [
        ("a.srt", "1\n0:01.0 --> 0:02.0\nhi\n\n2\n0:03.0 --> 0:04.0 you\n", "the times in `0:03.0 --> 0:04.0 you`"),
        ("a.json", "", "it is empty"),
        ("a.json", '{"alignments": [["a", [0, 1]', "not valid JSON"),
        ("a.json", {"words": []}, "no known layout"),
        ("a.json", "3", "none of the known formats"),
        ("a.json", {"alignments": {}}, "no known layout"),
        ("a.json", {"alignments": [["a", [0, 1], "SPEAKER_MAIN"], ["a", 3, "S"]]}, "alignment 1 is not"),
        ("a.json", {"alignments": [[7, [0, 1], "S"]]}, "a word needs a text, got 7"),
        ("a.json", ["a"], "no known layout"),
        ("a.json", [{"speaker": "C", "word": "a", "start": 0, "end": 1}], "has the speakers C"),
        ("a.json", {"segments": [{"words": ["a"]}]}, "is not a word with its times"),
        ("a.txt", "hello there", "words without times"),
        ("a.txt", "   \n", "it is empty"),
        ("a.txt", "[laughter]", "holds no words"),
        ("a.txt", "Good morning.\nNote: we are closed\nAnna: oh", "begins with `Note:`"),
        ("a.rttm", "SPEAKER call 1 0.5 1.0 <NA> <NA> Anna <NA> <NA>\n", "has no words"),
        ("a.TextGrid", textgrid(short=False)[:400], "ends in the middle"),
        ("a.eaf", elan()[:500], "no whole XML"),
        ("a.docx", "hello", "none of the known formats"),
    ],
)
def test_what_cannot_be_used_is_named(write, name, document, message):
    path = write(document, name)
    with pytest.raises(DataError, match=message) as error:
        read_transcript(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_other_scripts_are_no_accents(tmp_path):
    (tmp_path / "a.txt").write_bytes("Доброе утро, это булочная".encode("cp1251"))
    with pytest.raises(DataError, match="save it as UTF-8"):
        read_any(tmp_path / "a.txt")


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="no transcript at"):
        read_transcript(tmp_path / "none.json")
