"""Recall at a distance: a task whose answers lie beyond the attention window, and small models to learn it."""

from ttt_moshi.synthetic.recall.base_model import reach, write_base_model
from ttt_moshi.synthetic.recall.measure import make_codes, share_right, share_right_with_memory_of_another
from ttt_moshi.synthetic.recall.recordings import PAIRS, TRAINING_FRAMES, write_recall_test, write_recall_training
from ttt_moshi.synthetic.recall.task import CHANCE, answer_frames, length

__all__ = [
    "CHANCE", "PAIRS", "TRAINING_FRAMES", "answer_frames", "length", "make_codes", "reach", "share_right",
    "share_right_with_memory_of_another", "write_base_model", "write_recall_test", "write_recall_training",
]  # fmt: skip
