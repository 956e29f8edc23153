"""Talking to a trained model: one frame of the user in, one frame of Moshi out, with a memory that can be kept."""

from ttt_moshi.inference.answers import Answer, Question, answer
from ttt_moshi.inference.conversation import Conversation
from ttt_moshi.inference.errors import InferenceError
from ttt_moshi.inference.sampling import Sampling
from ttt_moshi.inference.session import SessionInfo, load_session, save_session, session_info
from ttt_moshi.inference.slots import Reply, Slots, Snapshot
from ttt_moshi.inference.speaker import Speaker, open_checkpoint
from ttt_moshi.inference.transcript import words

__all__ = [
    "Answer", "Conversation", "InferenceError", "Question", "Reply", "Sampling", "SessionInfo", "Slots", "Snapshot",
    "Speaker", "answer", "load_session", "open_checkpoint", "save_session", "session_info", "words",
]  # fmt: skip
