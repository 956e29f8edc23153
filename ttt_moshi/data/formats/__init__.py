"""Readers of transcripts, one per format, chosen by content (`table`)."""

from ttt_moshi.data.formats.raw import Piece, RawTranscript
from ttt_moshi.data.formats.table import SUFFIXES, read_raw

__all__ = ["SUFFIXES", "Piece", "RawTranscript", "read_raw"]
