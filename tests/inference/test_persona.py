"""What a prompt says is remembered when attention has long lost it, through the command that people type."""

import pytest

from benchmarks.memory import persona
from ttt_moshi.synthetic.recall.base_model import reach

NAMES = persona.NAMES[:4]


@pytest.mark.slow  # a training, and eleven minutes of conversations
def test_a_name_given_in_words_is_told_beyond_ten_windows_and_by_memory_alone(tmp_path):
    assert 10 * reach(persona.WINDOW) < persona.ASKED
    checkpoint, _ = persona.train(tmp_path, seed=0)
    users = persona.write_users(tmp_path / "users", recordings=2)
    told = persona.ask_command(checkpoint, users, tmp_path / "told", NAMES)
    assert persona.share(told) >= 0.9, told
    for control in persona.CONTROLS:
        guessed = persona.ask_without(control, checkpoint, users, tmp_path / control, NAMES)
        assert persona.share(guessed) <= 0.25, (control, guessed)
