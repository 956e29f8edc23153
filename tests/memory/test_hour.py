"""A memory that forgets does not wear out: what it is worth stays what it was, over thirty times a clip. A minute."""

import numpy as np

from benchmarks.memory import measure
from benchmarks.memory.arms import WINDOW
from benchmarks.memory.curves import LANGUAGES, Steps, binned, prepare, train

FRAMES = 8192
BINS = (128, 256, 1024, 4096, FRAMES)
STEPS = Steps(clips=150, carried=30)


def test_a_memory_that_forgets_is_worth_as_much_after_8192_frames(tmp_path):
    place = prepare(LANGUAGES["chain"], tmp_path, 0, STEPS, documents=4, test_frames=FRAMES)
    model = train(place.models, "ttt-delta-both", 0, STEPS)[1].model
    codes = measure.read_codes(model, place.test_data, FRAMES)
    nll = {}
    for name, control in {"writing": None, **measure.controls(WINDOW)}.items():
        with measure.ablated(model, control):
            nll[name] = np.array(binned(measure.semantic_nll(model, codes), BINS)).mean(0)
    for control in ("reset", "inner lr 0"):
        gain = nll[control] - nll["writing"]
        assert gain.min() >= 0.15, control
        assert gain[-1] >= gain[0] - 0.05, control
