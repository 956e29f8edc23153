"""One dialogue's transcript as tools and people write it, right and wrong, each with what must become of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

from tests.data.made import dialogue
from ttt_moshi.data.transcripts import MAIN_SPEAKER, OTHER_SPEAKER, Word

RATE = 8000
SECONDS = 32.0
SAMPLES, WORDS = dialogue(11, SECONDS, RATE)
MINE = [word for word in WORDS if word.speaker == MAIN_SPEAKER]
NAMES = ("Agent", "Customer")
EXACT = 0.011
ROUGH = 0.8
"""seconds by which the start of a word is off, in the median, where longer stretches share their time"""


@dataclass(frozen=True)
class Case:
    """A transcript and the right answer to it."""

    name: str
    suffix: str
    content: Callable[[], Any]
    """bytes, text, or what becomes JSON"""
    answer: str = "used"
    """used, repaired (and counted), told (used, and what is wrong with it is said) or refused"""
    says: str = ""
    """a pattern that the line about it must have"""
    label: str | None = None
    """who is Moshi"""
    off: float = EXACT
    """seconds by which starts may be off: the largest, from half a second on the median"""
    gone: tuple[int, ...] = ()
    """of Moshi's words, those that cannot be used"""
    channels: int = 2

    def bytes(self) -> bytes:
        content = self.content()
        if isinstance(content, bytes):
            return content
        return (content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)).encode()


def who(word: Word) -> int:
    return 0 if word.speaker == MAIN_SPEAKER else 1


def turns() -> list[tuple[int, list[Word]]]:
    return [(speaker, list(words)) for speaker, words in groupby(WORDS, who)]


def text_of(words: list[Word]) -> str:
    return " ".join(word.text for word in words)


def clock(seconds: float, mark: str = ",", hours: bool = True) -> str:
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    return ("00:" if hours else "") + f"{whole // 60:02}:{whole % 60:02}{mark}{thousandths:03}"


def alignments(
    names: tuple[str, str] = (MAIN_SPEAKER, OTHER_SPEAKER),
    change: Callable[[int, Word], Any] = lambda _, word: [word.start, word.end],
) -> dict[str, Any]:
    """moshi-finetune's; `change` gives the times of word number n of Moshi, or of -1 for the user's."""
    counted = iter(range(len(WORDS)))
    return {"alignments": [[w.text, change(-1 if who(w) else next(counted), w), names[who(w)]] for w in WORDS]}


def one(number: int, start: Any, end: Any) -> Callable[[], dict[str, Any]]:
    """Other times for one word of Moshi."""
    return lambda: alignments(change=lambda n, w: [start, end] if n == number else [w.start, w.end])


def moved(by: float) -> Callable[[], dict[str, Any]]:
    return lambda: alignments(change=lambda _, w: [max(0, w.start + by), max(0.01, w.end + by)])


def times(factor: float) -> Callable[[], dict[str, Any]]:
    return lambda: alignments(change=lambda _, w: [w.start * factor, w.end * factor])


def dicts(names: tuple[str, str] = NAMES, key: str = "word", space: str = "") -> list[dict[str, Any]]:
    return [{key: space + w.text, "start": w.start, "end": w.end, "speaker": names[who(w)]} for w in WORDS]


def mine(key: str = "word", space: str = "") -> list[dict[str, Any]]:
    return [{key: space + w.text, "start": w.start, "end": w.end, "probability": 0.9} for w in MINE]


def segment(words: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"text": "", "segments": [{"id": 0, "start": 0, "end": SECONDS, "text": "", "words": words}], **more}


def missing_one() -> dict[str, Any]:
    words = dicts(("SPEAKER_00", "SPEAKER_01"))
    del words[1]["start"], words[1]["end"]
    return segment(words)


def missing_many() -> dict[str, Any]:
    return segment([{key: value for key, value in word.items() if i % 3 or key == "word"} for i, word in
                    enumerate(mine())])  # fmt: skip


def whisper_segments() -> dict[str, Any]:
    return {"segments": [{"start": words[0].start, "end": words[-1].end, "text": " " + text_of(words)}
                         for speaker, words in turns() if speaker == 0]}  # fmt: skip


def whisper_cpp() -> dict[str, Any]:
    return {"transcription": [{"offsets": {"from": round(1000 * w.start), "to": round(1000 * w.end)},
                               "text": f" {w.text}"} for w in MINE]}  # fmt: skip


def deepgram(channels: bool) -> dict[str, Any]:
    rows = [[w for w in WORDS if who(w) == c] for c in (0, 1)] if channels else [list(WORDS)]
    return {"results": {"channels": [{"alternatives": [{"words": [
        {"word": w.text, "punctuated_word": w.text, "start": w.start, "end": w.end, "speaker": who(w)} for w in row
    ]}]} for row in rows]}}  # fmt: skip


def aws(channels: bool) -> dict[str, Any]:
    label = "channel_label" if channels else "speaker_label"
    names = ("ch_0", "ch_1") if channels else ("spk_0", "spk_1")
    return {"results": {"items": [{"type": "pronunciation", "start_time": f"{w.start:.3f}", "end_time": f"{w.end:.3f}",
            "alternatives": [{"content": w.text}], label: names[who(w)]} for w in WORDS]}}  # fmt: skip


def cues(mark: str = ",", wrap: Callable[[int, str], str] = lambda s, t: f"{NAMES[s]}: {t}", only: bool = False) -> str:
    lines = []
    for number, (speaker, words) in enumerate(turns(), 1):
        if not (only and speaker):
            times = f"{clock(words[0].start, mark)} --> {clock(words[-1].end, mark)}"
            lines.append(f"{number}\n{times}\n{wrap(speaker, text_of(words))}\n")
    return "\n".join(lines)


def vtt(body: str) -> str:
    return "WEBVTT\nKind: captions\n\nSTYLE\n::cue { color: red }\n\nNOTE by hand\n\n" + body


def rolling() -> str:
    """As video sites write: each cue shows the line before again, and times inside of the new one."""
    made, before = [], ""
    own = [words for speaker, words in turns() if speaker == 0]
    for words, after in zip(own, [*own[1:], None], strict=True):
        inside = "".join(f"<{clock(w.start, '.')}><c> {w.text}</c>" for w in words[1:])
        until = words[-1].end if after is None else after[0].start - 0.01
        shown = f"{before or ' '}\n{words[0].text}{inside}"
        made.append(f"{clock(words[0].start, '.')} --> {clock(until, '.')} align:start\n{shown}")
        before = text_of(words)
        made.append(f"{clock(until, '.')} --> {clock(until + 0.01, '.')} align:start\n{before}\n ")
    return "WEBVTT\nKind: captions\n\n" + "\n\n".join(made) + "\n"


def tier(name: str, words: list[Word], kind: str = "IntervalTier") -> str:
    edges, at = [], 0.0
    for word in words:
        start = max(word.start, at)
        if start > at:
            edges.append((at, start, ""))
        edges.append((start, max(word.end, start + 0.001), word.text))
        at = edges[-1][1]
    edges.append((at, SECONDS, ""))
    rows = "".join(f'{a}\n{b}\n"{text}"\n' for a, b, text in edges)
    return f'"{kind}"\n"{name}"\n0\n{SECONDS}\n{len(edges)}\n{rows}'


def textgrid(*tiers: str) -> str:
    head = f'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n{SECONDS}\n<exists>\n{len(tiers)}\n'
    return head + "".join(tiers)


def two_tiers() -> str:
    return textgrid(*(tier(name, [w for w in WORDS if who(w) == s]) for s, name in enumerate(NAMES)))


def phones(words: list[Word]) -> list[Word]:
    """Two a word."""
    return [Word(p, a, b, w.speaker) for w in words
            for p, a, b in (("HH", w.start, (w.start + w.end) / 2), ("AH0", (w.start + w.end) / 2, w.end))]  # fmt: skip


def stretches() -> list[Word]:
    """Moshi's turns as one long word each."""
    own = [words for speaker, words in turns() if speaker == 0]
    return [Word(text_of(words), words[0].start, words[-1].end, MAIN_SPEAKER) for words in own]


def elan() -> str:
    slots = "".join(f'<TIME_SLOT TIME_SLOT_ID="{e}{i}" TIME_VALUE="{round(1000 * at)}"/>'
                    for i, w in enumerate(WORDS) for e, at in (("a", w.start), ("b", w.end)))  # fmt: skip
    tiers = ""
    for speaker, name in enumerate(NAMES):
        rows = "".join(
            f'<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="x{i}" TIME_SLOT_REF1="a{i}" TIME_SLOT_REF2="b{i}">'
            f"<ANNOTATION_VALUE>{w.text}</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>"
            for i, w in enumerate(WORDS) if who(w) == speaker
        )  # fmt: skip
        tiers += f'<TIER TIER_ID="{name}">{rows}</TIER>'
    return f'<?xml version="1.0"?>\n<ANNOTATION_DOCUMENT><TIME_ORDER>{slots}</TIME_ORDER>{tiers}</ANNOTATION_DOCUMENT>'


def ctm(channels: tuple[str, str] = ("1", "2"), more: str = "") -> str:
    rows = [f"call {channels[who(w)]} {w.start:.3f} {w.end - w.start:.3f} {w.text}{more}\n" for w in WORDS]
    return ";; by a recogniser\n" + "".join(rows)


def rttm() -> str:
    return "".join(f"LEXEME call 1 {w.start:.3f} {w.end - w.start:.3f} {w.text} lex {NAMES[who(w)]} 0.9 <NA>\n"
                   for w in WORDS)  # fmt: skip


def plain(names: tuple[str, str] = ("A", "B"), stamp: Callable[[float], str] = lambda _: "") -> str:
    return "".join(f"{stamp(words[0].start)}{names[s]}: {text_of(words)}\n" for s, words in turns())


def starts_and_ends() -> str:
    """As Whisper prints what it hears."""
    return "".join(f"[{clock(words[0].start, '.', hours=False)} --> {clock(words[-1].end, '.', hours=False)}]  "
                   f"{NAMES[s]}: {text_of(words)}\n" for s, words in turns())  # fmt: skip


def others() -> dict[str, Any]:
    """The words of another call."""
    return {"alignments": [[w.text, [w.start, w.end], w.speaker] for w in dialogue(12, SECONDS, RATE)[1]]}


def all_moshis() -> dict[str, Any]:
    return {"alignments": [[w.text, [w.start, w.end], MAIN_SPEAKER] for w in WORDS]}


def marked() -> dict[str, Any]:
    made = alignments()
    made["alignments"][2][0] = "[laughter]"
    return made


def relabelled(form: str) -> str:
    """The turns as text with labels of another form than `Agent: `."""
    return re.sub(r"(?m)^(\w+): ", lambda match: form.format(match[1]), plain(NAMES))


MINE_ONCE = {"word": "you", "start": MINE[0].start, "end": MINE[0].end}
LABELS = ("SPEAKER_00", "SPEAKER_01")
OTHER_FORMS = (
    "({}) ",
    "[{}] ",
    "{} - ",
    "{} \u2013 ",
    "{}> ",
    "{}\t",
    "**{}:** ",
    "*{}*: ",
    "{} 00:07 ",
    "{} (00:07): ",
    "{}\n",
)
HALF = WORDS.index(MINE[13])
MARKED = tuple(i for i, w in enumerate(MINE) if w is WORDS[2])
CASES: list[Case] = [
    # As the tools write them.
    Case("moshi-finetune", ".json", alignments),
    Case("nu-dialogue", ".json", lambda: dicts(("A", "B"))),
    Case("nu-dialogue, small letters", ".json", lambda: dicts(("a", "b"))),
    Case("alignments of a diarizer", ".json", lambda: alignments(LABELS), label="SPEAKER_00"),
    Case("alignments without speakers", ".json", lambda: {"alignments": [[w.text, [w.start, w.end]] for w in MINE]}),
    Case("list of segments", ".json", lambda: dicts(key="text"), label="agent"),
    Case("Whisper, words", ".json", lambda: segment(mine(space=" "))),
    Case("Whisper, segments", ".json", whisper_segments, says="approximate", off=ROUGH),
    Case("whisper_timestamped", ".json", lambda: segment(mine("text"), language="en")),
    Case("WhisperX, diarized", ".json", lambda: segment(dicts(LABELS), word_segments=dicts(LABELS)), label=LABELS[0]),
    Case("WhisperX, words apart", ".json", lambda: {**whisper_segments(), "word_segments": mine()}),
    Case("OpenAI, words and segments", ".json", lambda: {**whisper_segments(), "words": mine()}),
    Case("OpenAI, words alone", ".json", lambda: {"task": "transcribe", "text": text_of(MINE), "words": mine()}),
    Case("whisper.cpp, words", ".json", whisper_cpp),
    Case("Deepgram, diarized", ".json", lambda: deepgram(False), label="speaker 0"),
    Case("Deepgram, channels", ".json", lambda: deepgram(True), label="channel 1"),
    Case("AWS, speakers", ".json", lambda: aws(False), label="spk_0"),
    Case("AWS, channels", ".json", lambda: aws(True), label="ch_0"),
    Case("SRT, labels", ".srt", cues, says="approximate", label="Agent", off=ROUGH),
    Case("SRT, the agent alone", ".srt", lambda: cues(wrap=lambda _, t: t, only=True), says="approximate", off=ROUGH),
    Case("SRT, markup", ".srt", lambda: cues(wrap=lambda _, t: f"{{\\an8}}<i>{t}</i>", only=True), off=ROUGH),
    Case("SRT, points for commas", ".srt", lambda: cues(".", lambda _, t: t, only=True), off=ROUGH),
    Case("WebVTT, voices", ".vtt", lambda: vtt(cues(".", lambda s, t: f"<v {NAMES[s]}>{t}</v>")), label="Agent",
         off=ROUGH),
    Case("WebVTT, labels", ".vtt", lambda: vtt(cues(".")), label="Agent", off=ROUGH),
    Case("WebVTT, rolling", ".vtt", rolling, "repaired", "shown again by the next caption"),
    Case("TextGrid, two tiers", ".TextGrid", two_tiers, label="Agent", off=0.1),
    Case("TextGrid, one tier", ".TextGrid", lambda: textgrid(tier("words", MINE)), off=0.1),
    Case("TextGrid of an aligner", ".TextGrid", lambda: textgrid(tier("words", MINE), tier("phones", phones(MINE))),
         says="tier `phones` is left out", off=0.1),
    Case("TextGrid of an aligner, mono", ".TextGrid",
         lambda: textgrid(tier("words", MINE), tier("phones", phones(MINE))), off=0.1, channels=1),
    Case("TextGrid of an aligner, speakers", ".TextGrid", lambda: textgrid(*(
        t for s, n in enumerate(NAMES) for own in [[w for w in WORDS if who(w) == s]]
        for t in (tier(f"{n} - words", own), tier(f"{n} - phones", phones(own))))), label="Agent", off=0.1),
    Case("TextGrid, utterances and words", ".TextGrid", lambda: textgrid(tier("utterances", stretches()),
         tier("words", MINE)), says="tier `utterances` is left out", off=0.1),
    Case("ELAN", ".eaf", elan, label="Agent"),
    Case("CTM, numbers", ".ctm", ctm),
    Case("CTM, letters, confidence", ".ctm", lambda: ctm(("A", "B"), " 0.93")),
    Case("RTTM with words", ".rttm", rttm, label="Agent"),
    Case("text, A and B", ".txt", plain, says="spread over the voiced parts", off=ROUGH),
    Case("text, names", ".txt", lambda: plain(NAMES), says="spread over the voiced parts", label="agent", off=ROUGH),
    Case("text, diarizer's labels", ".txt", lambda: plain(LABELS), label="SPEAKER_00", off=ROUGH),
    Case("text, numbered speakers", ".txt", lambda: plain(("Speaker 1", "Speaker 2")), label="Speaker 1", off=ROUGH),
    *(Case(f"text, {form!r}", ".txt", partial(relabelled, form), says="spread", label="agent", off=ROUGH)
      for form in OTHER_FORMS),
    Case("text, times", ".txt", lambda: plain(stamp=lambda t: f"[{clock(t, '.')}] "), says="approximate", off=ROUGH),
    Case("text, starts and ends", ".txt", starts_and_ends, says="approximate", label="Agent", off=ROUGH),
    Case("text, the agent alone", ".txt", lambda: text_of(MINE), says="spread over the voiced parts", off=ROUGH),
    # As editors save them.
    Case("byte order mark", ".json", lambda: b"\xef\xbb\xbf" + json.dumps(alignments()).encode()),
    Case("UTF-16", ".ctm", lambda: ctm().encode("utf-16")),
    Case("UTF-16 without a mark", ".ctm", lambda: ctm().encode("utf-16-le")),
    Case("lines of DOS", ".ctm", lambda: ctm().replace("\n", "\r\n")),
    Case("lines of old Macs", ".ctm", lambda: ctm().replace("\n", "\r")),
    Case("another suffix", ".json", ctm),
    # Repaired and counted.
    Case("negative time", ".json", one(0, -0.1, MINE[0].end), "repaired", "1 word with negative times", off=0.7),
    Case("impossible time", ".json", one(3, -70, -69), "repaired", "1 word with impossible times, left out", gone=(3,)),
    Case("no time", ".json", one(1, None, None), "repaired", "1 word without times", off=0.4),
    Case("time as text", ".json", one(3, str(MINE[3].start), str(MINE[3].end)), "repaired", "1 word with times w"),
    Case("not a number", ".json", one(1, math.nan, math.nan), "repaired", "1 word without times", off=0.4),
    Case("WhisperX, a time missing", ".json", missing_one, "repaired", "1 word without times", LABELS[0], off=0.4),
    Case("beyond the end", ".json", one(len(MINE) - 1, MINE[-1].start, SECONDS + 1), "repaired", "1 word ending after"),
    Case("begins after the end", ".json", one(len(MINE) - 1, SECONDS + 1, SECONDS + 2), "repaired",
         "1 word with impossible times", gone=(len(MINE) - 1,)),
    Case("marks", ".json", marked, "repaired", "1 word taken for marks", gone=MARKED),
    Case("end before start", ".json", one(2, MINE[2].end, MINE[2].start), "repaired", "1 word ending before", off=0.45),
    Case("XML's letters", ".vtt", lambda: vtt(cues(".", lambda _, t: t.replace("you", "yo&#117;&nbsp;"), only=True)),
         off=ROUGH),
    Case("marks of other houses", ".txt", lambda: f"{text_of(MINE)} {{breath}} ((inaudible)) (laughs) *coughs* %hm",
         "repaired", "5 words taken for marks", off=ROUGH),
    # Refused by name.
    Case("text, a table", ".txt", lambda: relabelled("{},"), "refused", "as a table does"),
    Case("text, arrows", ".txt", lambda: relabelled(">> "), "refused", "nobody has a name"),
    Case("text, half labelled", ".txt", lambda: f"Hello.\n{relabelled('({}) ')}", "refused", "others do not"),
    Case("text, times behind names", ".txt", lambda: relabelled("{} [0:01 - 0:05] "), "refused", "a time behind"),
    Case("SRT, dashes", ".srt", lambda: cues(wrap=lambda _, t: f"- {t}\n- Yes."), "refused", "a dash for each"),
    Case("said 200 times", ".json", lambda: segment([MINE_ONCE] * 200), "refused", "nobody speaks so fast"),
    Case("empty", ".json", str, "refused", "it is empty"),
    Case("no words", ".json", lambda: {"alignments": []}, "refused", "holds no words"),
    Case("cut", ".json", lambda: json.dumps(alignments())[:300], "refused", "not valid JSON"),
    Case("unknown layout", ".json", lambda: {"monologues": [{"elements": []}]}, "refused", "no known layout"),
    Case("cut TextGrid", ".TextGrid", lambda: two_tiers()[:200], "refused", "ends in the middle"),
    Case("cut ELAN", ".eaf", lambda: elan()[:600], "refused", "no whole XML"),
    Case("RTTM without words", ".rttm", lambda: "SPEAKER call 1 0.5 1.0 <NA> <NA> Anna <NA> <NA>\n", "refused",
         "has no words"),
    Case("Cyrillic code page", ".txt", lambda: ("Доброе утро, это булочная " * 5).encode("cp1251"), "refused", "UTF-8"),
    Case("Japanese code page", ".txt", lambda: ("おはようございます。" * 5).encode("shift_jis"), "refused", "UTF-8"),
    Case("Chinese code page", ".txt", lambda: ("早上好,这里是面包店。" * 5).encode("gb18030"), "refused", "UTF-8"),
    Case("a word processor's file", ".txt", lambda: b"PK\x03\x04\x14\0\x06\0" + bytes(range(256)) * 8, "refused",
         "not text"),
    Case("a web page", ".txt", lambda: f"<!DOCTYPE html>\n<html><body>{text_of(MINE)}</body></html>", "refused",
         "web page"),
    Case("nobody is named", ".json", lambda: alignments(LABELS), "refused", "SPEAKER_00, SPEAKER_01: .*--moshi_label"),
    Case("another name", ".srt", cues, "refused", "none of them is Anna: .*--moshi_label", label="Anna"),
    Case("a label, perhaps", ".txt", lambda: f"Hello.\nNote: closed\n{text_of(MINE)}", "refused", "begins with `Note"),
    Case("two voices in mono", ".json", alignments, "refused", "Moshi would speak for both", channels=1),
    Case("exchanged speakers", ".json", lambda: alignments((OTHER_SPEAKER, MAIN_SPEAKER)), "refused", "exchanged"),
    Case("exchanged sides", ".json", lambda: dicts(("B", "A")), "refused", "exchanged"),
    *(Case(f"shifted by {by} s", ".json", moved(by), "refused", f"about {abs(by):.0f}.. s too {how}")
      for by, how in ((1, "late"), (2, "late"), (5, "late"), (-1, "early"), (-2, "early"))),
    Case("milliseconds", ".json", times(1000), "refused", "milliseconds instead of seconds"),
    Case("hundredths", ".json", times(100), "refused", "milliseconds|hundredths|end after the recording"),
    Case("too fast a clock", ".json", times(0.8), "refused", "do not fit|silent in|too late|too early"),
    Case("another call", ".json", others, "refused", "do not fit|silent in|too late|too early"),
    Case("all are Moshi's", ".json", all_moshis, "refused", "may be the user's"),
    Case("captions of both, unlabelled", ".srt", lambda: cues(wrap=lambda _, t: t), "refused", "may be the user's"),
    Case("only the beginning", ".json", lambda: {"alignments": alignments()["alignments"][:HALF]}, "told",
         r"\d s of speech on Moshi's channel, \d+% of it, have no words", gone=tuple(range(13, len(MINE)))),
    Case("many without times", ".json", missing_many, "refused", "had no usable time, more than 10%"),
    Case("clocks for seconds", ".json", lambda: alignments(change=lambda _, w: [clock(w.start), clock(w.end)]),
         "refused", "had no usable time"),
]  # fmt: skip


def expected(case: Case) -> list[Word]:
    """Moshi's words that must come out."""
    return [word for number, word in enumerate(MINE) if number not in case.gone]
