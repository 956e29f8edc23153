"""Transcripts in JSON: of fine-tuning sets for Moshi, of the Whisper family and of services."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ttt_moshi.data.formats.raw import Piece, RawTranscript


def read_alignments(document: Any) -> RawTranscript | None:
    """moshi-finetune: `{"alignments": [[word, [start, end], speaker], ...]}`."""
    if not isinstance(document, dict) or not isinstance(document.get("alignments"), list):
        return None
    pieces = []
    for number, item in enumerate(document["alignments"]):
        try:
            text, (start, end), *speaker = item
        except (TypeError, ValueError):
            raise ValueError(f"alignment {number} is not [word, [start, end], speaker]: {item!r}") from None
        pieces.append(_piece(text, start, end, speaker[0] if speaker else None))
    approximate = document.get("word_times") == "approximate"
    return RawTranscript("alignments", pieces, approximate=approximate, language=_language(document))


def read_speakers(document: Any) -> RawTranscript | None:
    """nu-dialogue: `[{"speaker", "word", "start", "end"}, ...]`; also a list of segments with `text`."""
    if not isinstance(document, list) or not all(isinstance(item, dict) for item in document):
        return None
    if not all({"word", "text"} & set(item) for item in document):
        return None
    return RawTranscript("list of words", [_from_dict(item) for item in document])


def read_whisper(document: Any) -> RawTranscript | None:
    """Whisper, whisper_timestamped, WhisperX, faster-whisper: segments with words, or without."""
    if not isinstance(document, dict) or not isinstance(document.get("segments"), list):
        return None
    segments = document["segments"]
    if not all(isinstance(segment, dict) for segment in segments):
        return None
    loose = document.get("words") or document.get("word_segments")
    if isinstance(loose, list) and not any(segment.get("words") for segment in segments):
        segments = [{"words": loose}]
    pieces = []
    for segment in segments:
        words = segment.get("words")
        if isinstance(words, list) and words:
            pieces += [_from_dict(word, segment) for word in words]
        elif segment.get("text"):
            pieces.append(_from_dict(segment))
    return RawTranscript("Whisper", pieces, language=_language(document))


def read_words(document: Any) -> RawTranscript | None:
    """OpenAI's speech service with times of words alone: `{"text", "words": [{"word", "start", "end"}, ...]}`."""
    words = document.get("words") if isinstance(document, dict) else None
    if not isinstance(words, list) or not words:
        return None
    return RawTranscript("words", [_from_dict(word) for word in words], language=_language(document))


def read_whisper_cpp(document: Any) -> RawTranscript | None:
    """whisper.cpp: `transcription`, whose offsets are milliseconds; words with `--max-len 1`, segments without."""
    items = document.get("transcription") if isinstance(document, dict) else None
    if not isinstance(items, list) or not all(isinstance(_get(item, "offsets"), dict) for item in items):
        return None
    return RawTranscript("whisper.cpp", [
        _piece(item.get("text"), item["offsets"]["from"] / 1000, item["offsets"]["to"] / 1000, item.get("speaker"))
        for item in items
    ])  # fmt: skip


def read_deepgram(document: Any) -> RawTranscript | None:
    """Deepgram: words of the best alternative of every channel."""
    channels = _get(document, "results", "channels")
    if not isinstance(channels, list):
        return None
    pieces = []
    for number, channel in enumerate(channels):
        for word in _get(channel, "alternatives", 0, "words") or []:
            text = word.get("punctuated_word") or word.get("word")
            speaker = word.get("speaker")
            if len(channels) > 1:
                speaker = f"channel {number + 1}"
            elif speaker is not None:
                speaker = f"speaker {speaker}"
            pieces.append(_piece(text, word.get("start"), word.get("end"), speaker))
    return RawTranscript("Deepgram", pieces)


def read_aws(document: Any) -> RawTranscript | None:
    """AWS Transcribe: items, of which punctuation belongs to the word before."""
    items = _get(document, "results", "items")
    if not isinstance(items, list):
        return None
    speakers = dict(_aws_speakers(_get(document, "results", "speaker_labels", "segments") or []))
    for channel in _get(document, "results", "channel_labels", "channels") or []:
        label = str(channel.get("channel_label"))
        speakers |= {(label, item.get("start_time")): label for item in channel.get("items", [])}
    pieces: list[Piece] = []
    for item in items:
        text = _get(item, "alternatives", 0, "content")
        if item.get("type") == "punctuation":
            if pieces and isinstance(text, str):
                pieces[-1].text += text
            continue
        start = item.get("start_time")
        speaker = item.get("speaker_label") or item.get("channel_label") or speakers.get(start)
        pieces.append(_piece(text, _number(start), _number(item.get("end_time")), speaker))
    return RawTranscript("AWS Transcribe", pieces)


def _aws_speakers(segments: list[Any]) -> Iterator[tuple[Any, str]]:
    for segment in segments:
        for item in segment.get("items", []):
            yield item.get("start_time"), item.get("speaker_label")


def _language(document: dict[str, Any]) -> str | None:
    language = document.get("language")
    return language.lower() if isinstance(language, str) and language.strip() else None


def _number(text: Any) -> Any:
    """AWS writes its times as text; that is its format and nothing to be mended."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return text


def _from_dict(item: Any, around: dict[str, Any] | None = None) -> Piece:
    if not isinstance(item, dict):
        raise ValueError(f"{item!r} is not a word with its times")
    text = item.get("word", item.get("text"))
    speaker = item.get("speaker", (around or {}).get("speaker"))
    return _piece(text, item.get("start"), item.get("end"), speaker)


def _piece(text: Any, start: Any, end: Any, speaker: Any) -> Piece:
    if text is not None and not isinstance(text, str):
        raise ValueError(f"a word needs a text, got {text!r}")
    return Piece(text or "", start, end, None if speaker is None else str(speaker))


def _get(value: Any, *keys: str | int) -> Any:
    """`value[keys[0]][keys[1]]...`, None where something on the way is missing."""
    for key in keys:
        if isinstance(key, str):
            value = value.get(key) if isinstance(value, dict) else None
        else:
            value = value[key] if isinstance(value, list) and len(value) > key else None
    return value
