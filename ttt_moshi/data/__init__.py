"""Recordings with transcripts, as the codes and tokens that Moshi is trained on."""

from ttt_moshi.data.batch import Batch
from ttt_moshi.data.cache import CodeCache
from ttt_moshi.data.codec import Codec
from ttt_moshi.data.corpus import Corpus
from ttt_moshi.data.encoded import Alphabet
from ttt_moshi.data.errors import DataError
from ttt_moshi.data.interleaver import TextStyle
from ttt_moshi.data.loader import ClipLoader, EvalSet
from ttt_moshi.data.sources import names_audio
from ttt_moshi.data.streams import StreamBatch, StreamLoader

__all__ = [
    "Alphabet",
    "Batch",
    "ClipLoader",
    "CodeCache",
    "Codec",
    "Corpus",
    "DataError",
    "EvalSet",
    "StreamBatch",
    "StreamLoader",
    "TextStyle",
    "names_audio",
]
