"""How tokens are drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; the defaults are the official generator's.

    Args:
        greedy: take the likeliest token each time.
        temp, top_k: temperature and number of candidates of audio codes.
        temp_text, top_k_text: likewise of text tokens.
        pad_bias: added to the logit of the text token for "no word now": above 0 Moshi speaks less, below 0 more.
    """

    greedy: bool = False
    temp: float = 0.8
    top_k: int = 250
    temp_text: float = 0.7
    top_k_text: int = 25
    pad_bias: float = 0.0

    def wordless(self) -> Sampling:
        """The same without any word: for the frame that is drawn with a prompt."""
        return replace(self, pad_bias=math.inf)

    @classmethod
    def of(cls, recommended: Mapping[str, Any], **chosen: Any) -> Sampling:
        """What was chosen, else what the base model's configuration recommends, else the official defaults.

        Args:
            recommended: `lm_gen_config`; `use_sampling: false` in it means greedy.
            chosen: fields of this class; None is no choice.
        """
        names = set(cls.__dataclass_fields__)
        base = cls(**{name: value for name, value in recommended.items() if name in names})
        if recommended.get("use_sampling") is False:
            base = replace(base, greedy=True)
        return replace(base, **{name: value for name, value in chosen.items() if value is not None})
