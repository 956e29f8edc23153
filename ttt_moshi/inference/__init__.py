"""Talking to a trained model: one frame of the user in, one frame of Moshi out, with a memory that can be kept."""

from ttt_moshi.inference.conversation import Conversation, Reply, Sampling
from ttt_moshi.inference.errors import InferenceError
from ttt_moshi.inference.session import load_session, save_session
from ttt_moshi.inference.speaker import Speaker, open_checkpoint
from ttt_moshi.inference.transcript import Word, words

__all__ = [
    "Conversation", "InferenceError", "Reply", "Sampling", "Speaker", "Word", "load_session", "open_checkpoint",
    "save_session", "words",
]  # fmt: skip
