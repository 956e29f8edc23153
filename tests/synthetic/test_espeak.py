"""espeak-ng through its library: a pure function of text and voice, with true times."""

from __future__ import annotations

import _ctypes
import ctypes
import hashlib
import json
import subprocess
import sys
from itertools import pairwise

import espeakng_loader
import numpy as np
import pytest

from ttt_moshi.synthetic.dialogues import MOSHI_VOICES, USER_VOICES
from ttt_moshi.synthetic.espeak import RMS_LEVEL, SAMPLE_RATE, SpeechError, Voice, speak

US = Voice("en-us")
TEXT = "Alice lives in Paris, with three dogs. It is nice there."

FRESH_PROCESS = """
import hashlib, json, sys
from ttt_moshi.synthetic.espeak import Voice, speak
for name, rate, pitch in json.load(sys.stdin):
    print(hashlib.sha256(speak(sys.argv[1], Voice(name, rate, pitch)).samples.tobytes()).hexdigest())
"""


def test_samples_depend_on_text_and_voice_alone() -> None:
    """The other process starts seconds later, so a noise generator seeded with the time would show."""
    voices = MOSHI_VOICES + USER_VOICES
    here = [hashlib.sha256(speak(TEXT, voice).samples.tobytes()).hexdigest() for voice in voices]
    again = [hashlib.sha256(speak(TEXT, voice).samples.tobytes()).hexdigest() for voice in voices]
    reversed_list = json.dumps([(v.name, v.rate, v.pitch) for v in reversed(voices)])
    command = [sys.executable, "-c", FRESH_PROCESS, TEXT]
    elsewhere = subprocess.run(command, input=reversed_list, capture_output=True, text=True, check=True).stdout.split()
    assert here == again == elsewhere[::-1]
    assert len(set(here)) == len(voices), "every voice sounds different"


def test_words_cover_the_speech_and_nothing_else() -> None:
    utterance = speak(TEXT, US)
    assert [word.text for word in utterance.words] == TEXT.split()
    times = [time for word in utterance.words for time in (word.start, word.end)]
    assert times == sorted(times) and times[-1] <= utterance.duration
    spoken = np.zeros(len(utterance.samples), bool)
    for word in utterance.words:
        assert 0.05 < word.end - word.start < 1.0
        spoken[round(word.start * SAMPLE_RATE) : round(word.end * SAMPLE_RATE)] = True
    energy = np.square(utterance.samples)
    assert energy[spoken].sum() > 0.99 * energy.sum()
    comma = (utterance.words[3].end, utterance.words[4].start)
    stop = (utterance.words[6].end, utterance.words[7].start)
    assert comma[1] - comma[0] > 0.1 and stop[1] - stop[0] > 0.1, "pauses belong to no word"


def test_a_number_of_several_spoken_words_is_one_written_word() -> None:
    words = speak("In 1999, two dogs ran", US).words
    assert [word.text for word in words] == ["In", "1999,", "two", "dogs", "ran"]
    assert words[1].end - words[1].start > 0.8


def test_words_that_are_spoken_as_one_are_all_there() -> None:
    text = "I am in the park - of the city, to be happy."
    words = speak(text, US).words
    assert [word.text for word in words] == [word for word in text.split() if word != "-"]
    assert all(before.end <= after.start + 1e-9 for before, after in pairwise(words))
    assert all(word.end - word.start > 0.02 for word in words)


def test_level_is_the_same_for_every_voice() -> None:
    for voice in MOSHI_VOICES + USER_VOICES:
        samples = speak(TEXT, voice).samples
        # The level is set on what is kept, so this is exact up to float32.
        assert np.sqrt(np.mean(np.square(samples))) == pytest.approx(RMS_LEVEL, rel=1e-3)
        assert np.abs(samples).max() < 1.0


def test_phoneme_input_gives_minimal_pairs() -> None:
    word, nonword = speak("br'Ik", US, phonemes=True), speak("bl'Ik", US, phonemes=True)
    assert [p.text.strip("'") for p in word.phones if not p.text.startswith("_")] == ["b", "r", "I", "k"]
    assert [p.text.strip("'") for p in nonword.phones if not p.text.startswith("_")] == ["b", "l", "I", "k"]
    assert word.words == ()


@pytest.mark.parametrize("text", ["", "  ", "...", "-"])
def test_nothing_to_say_is_refused(text: str) -> None:
    with pytest.raises(SpeechError):
        speak(text, US)


def test_an_unknown_voice_is_named() -> None:
    with pytest.raises(SpeechError, match="no voice 'nobody'"):
        speak("hello", Voice("nobody"))
    with pytest.raises(SpeechError, match="no voice variant 'f99'"):
        speak("hello", Voice("en-us+f99"))
    assert speak("hello", US).duration > 0.1, "and the next utterance works"


def test_a_library_in_use_elsewhere_is_refused_because_its_state_would_leak() -> None:
    other = ctypes.CDLL(espeakng_loader.get_library_path())
    try:
        with pytest.raises(SpeechError, match="process of its own"):
            speak("hello", US)
    finally:
        _ctypes.dlclose(other._handle)
    assert speak("hello", US).duration > 0.1
