"""What the text and user streams may be in an evaluation."""

from typing import Literal

TextMode = Literal["absent", "pad", "given", "sampled"]
UserMode = Literal["silence", "absent", "natural"]
TEXT_MODES: tuple[TextMode, ...] = ("absent", "pad", "given", "sampled")
USER_MODES: tuple[UserMode, ...] = ("silence", "absent", "natural")
