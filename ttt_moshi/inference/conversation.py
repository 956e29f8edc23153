"""One conversation in moshi's own streaming mode: what was trained is what talks, 80 milliseconds at a time."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from types import TracebackType

import torch
from moshi.models import LMGen
from moshi.run_inference import get_condition_tensors
from moshi.utils.compile import no_compile
from torch import Tensor

from ttt_moshi.inference.errors import InferenceError
from ttt_moshi.inference.speaker import Speaker


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. None: as the base model's configuration or the official generator has it.

    Args:
        greedy: take the likeliest token each time.
        temp, top_k: temperature and number of candidates of audio codes.
        temp_text, top_k_text: likewise of text tokens.
    """

    greedy: bool = False
    temp: float | None = None
    top_k: int | None = None
    temp_text: float | None = None
    top_k_text: int | None = None

    def options(self) -> dict[str, object]:
        """Arguments of the official generator."""
        chosen = {name: value for name, value in vars(self).items() if name != "greedy" and value is not None}
        return {**chosen, "use_sampling": False} if self.greedy else chosen


@dataclass(frozen=True)
class Reply:
    """One frame of Moshi.

    Args:
        samples: float32 [frame_size], on the CPU; full scale is 1.0.
        piece: sentencepiece piece of the text token ("▁" begins a word), "" where the token is padding.
    """

    samples: Tensor
    piece: str


class Conversation:
    """Hears and says one frame after another. Use as a context manager; tokens are drawn from the global generator.

    The model and the codec of `speaker` are in streaming mode meanwhile, so a speaker holds one conversation at a time.

    Attributes:
        speaker: who talks.
        generator: the official one, in streaming mode.
        frame_size: samples of a frame, at `sample_rate`.
        frames: heard so far.
    """

    def __init__(self, speaker: Speaker, sampling: Sampling | None = None) -> None:
        self.speaker = speaker
        self.sample_rate = int(speaker.mimi.sample_rate)
        self.frame_size = round(speaker.mimi.sample_rate / speaker.mimi.frame_rate)
        self.frames = 0
        model = speaker.model
        self._silent_tokens = (model.text_padding_token_id, model.end_of_text_padding_id)
        conditions = get_condition_tensors(speaker.model_type, model, batch_size=1, cfg_coef=1.0)
        options = {**speaker.generation, **(sampling or Sampling()).options()}
        self.generator = LMGen(model, condition_tensors=conditions, **options)
        self._streaming = ExitStack()

    def __enter__(self) -> Conversation:
        with self._eager():
            self._streaming.enter_context(self.speaker.mimi.streaming(1))
            self._streaming.enter_context(self.generator.streaming(1))
            self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._streaming.close()

    def start_over(self) -> None:
        """Forgets everything, as if the conversation began now."""
        self.speaker.mimi.reset_streaming()
        self.generator.reset_streaming()
        self.frames = 0
        with self._eager():
            self._begin()

    def hear(self, samples: Tensor) -> Reply | None:
        """The user's next frame; Moshi's frame of the same time, None as long as the model's delays hold it back.

        Args:
            samples: float32 [frame_size], on any device.

        Raises:
            InferenceError: another shape, or samples that are not finite.
        """
        if samples.shape != (self.frame_size,):
            raise InferenceError(f"a frame is {self.frame_size} samples, not {list(samples.shape)}")
        if not bool(samples.isfinite().all()):
            raise InferenceError(f"frame {self.frames} holds samples that are not finite")
        mimi = self.speaker.mimi
        with torch.no_grad(), self._eager():
            codes = mimi.encode(samples.to(self.speaker.model.device)[None, None])
            tokens = self.generator.step(codes)
            self.frames += 1
            if tokens is None:
                return None
            sound = mimi.decode(tokens[:, 1:])
        return Reply(sound[0, 0].float().cpu(), self._piece(int(tokens[0, 0, 0])))

    def _begin(self) -> None:
        """The generator's first step reads the initial tokens whatever it is given; frames count from the second."""
        needed = self.speaker.model.num_codebooks - self.speaker.model.dep_q - 1
        device = self.speaker.model.device
        with torch.no_grad():
            self.generator.step(torch.zeros(1, needed, 1, dtype=torch.long, device=device))

    def _piece(self, token: int) -> str:
        return "" if token in self._silent_tokens else self.speaker.tokenizer.id_to_piece(token)

    def _eager(self) -> AbstractContextManager[None]:
        """moshi compiles its functions on first use, which on a CPU takes half a minute and saves nothing."""
        return no_compile() if self.speaker.model.device.type == "cpu" else nullcontext()
