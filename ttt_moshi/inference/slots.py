"""Several conversations in one batch: every tick hears one frame of each that has one, and says one back."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType

import torch
from moshi.utils.compile import no_compile
from torch import Tensor

from ttt_moshi.inference.errors import InferenceError
from ttt_moshi.inference.generator import Generator
from ttt_moshi.inference.rows import Parts, empty_rings, fits, read_row, write_row
from ttt_moshi.inference.sampling import Sampling
from ttt_moshi.inference.speaker import Speaker
from ttt_moshi.moshi.sink import attention_sink
from ttt_moshi.moshi.supported import HIBIKI_OPPOSITE
from ttt_moshi.ttt import StreamLosses

SILENCE = 1e-3
"""amplitude below which a frame is silent: -60 dB of full scale"""

LOSS_EVERY = 5
"""frames of which a processor computes one's inner loss; no divisor of a mini-batch: each of its places comes up"""


@dataclass(frozen=True)
class Reply:
    """One frame of Moshi.

    Args:
        samples: float32 [frame_size], on the CPU; full scale is 1.0.
        piece: sentencepiece piece of the text token ("▁" begins a word), "" where the token is padding or
            says that a text begins or ends.
        tokens: int64 [1 + dep_q], text first, on the CPU.
    """

    samples: Tensor
    piece: str
    tokens: Tensor


@dataclass(frozen=True)
class LayerMemory:
    """What one TTT layer has in its memory of a conversation.

    Args:
        written: how far the first fast weights are from where they began, as a share of the norm of their start.
        loss: inner loss of the frames heard since it was asked for last: the mean square of what the memory's
            prediction of a frame is wrong by. None where nothing was heard.
        untaught: the same of the weights where every conversation begins.
    """

    written: float
    loss: float | None
    untaught: float | None


@dataclass(frozen=True)
class Snapshot:
    """Everything that the next frame of a conversation depends on, and what is known of its memory.

    Args:
        tensors: a row of the streaming states, on the CPU.
        seed: of its draws.
        frames: heard so far.
        memory: what TTT layers had in their memories, by temporal layer, when that was measured last; empty where it
            never was. Nothing depends on it.
    """

    tensors: dict[str, Tensor]
    seed: int
    frames: int
    memory: Mapping[int, LayerMemory] = field(default_factory=dict)


class Slots:
    """Places for conversations that share a model, each as if it were alone. Use as a context manager.

    The model and the codec of `speaker` are in streaming mode meanwhile, so a speaker has one batch of slots at a time.
    A row equals its solo run to rounding: the same tokens, unless a value lies on the edge between two. Not safe to
    call from several threads at once.

    Args:
        watched: whether `memory` can be asked for, which costs a little in every tick.

    Attributes:
        speaker: who talks.
        sampling: how tokens are drawn.
        count: number of slots.
        frame_size: samples of a frame, at `sample_rate`.
        frames: heard so far by the conversation in each slot.
        broken: slots whose memory is no longer finite; they say nothing until the next `join` or `restore`.
    """

    def __init__(self, speaker: Speaker, count: int, sampling: Sampling | None = None, watched: bool = False) -> None:
        self.speaker = speaker
        self.count = count
        self.sample_rate = int(speaker.mimi.sample_rate)
        self.frame_size = round(speaker.mimi.sample_rate / speaker.mimi.frame_rate)
        self.frames = [0] * count
        self.broken: set[int] = set()
        self._seeds = [0] * count
        self._awaiting: set[int] = set()  # the user's first sound
        model = speaker.model
        # Padding, and what begins and ends texts: Hibiki says with it that it has finished.
        control = [token for token in range(speaker.tokenizer.vocab_size()) if speaker.tokenizer.is_control(token)]
        self._silent_tokens = {model.text_padding_token_id, model.end_of_text_padding_id, *control}
        guided = speaker.cfg != 1.0
        conditions = model.conditions(count, speaker.conditions, HIBIKI_OPPOSITE if guided else None) or {}
        self.sampling = Sampling.of(speaker.generation) if sampling is None else sampling
        self._generator = Generator(model, count, self.sampling, condition_tensors=conditions, cfg_coef=speaker.cfg)
        own, after = slice(0, count), slice(count, 2 * count)
        self._parts: Parts = [("generator", self._generator, own), ("model", model, own), ("mimi", speaker.mimi, own)]
        self._parts += [("opposite", model, after)] if guided else []
        self._streams = 2 * count if guided else count
        self._streaming = ExitStack()
        self._watched = watched
        self._losses: StreamLosses | None = None

    def __enter__(self) -> Slots:
        try:
            with self._eager():
                if self._watched:
                    every = 1 if self.speaker.model.device.type == "cuda" else LOSS_EVERY
                    layers = {layer.index: layer.ttt for layer in self.speaker.model.layers if layer.ttt is not None}
                    self._losses = StreamLosses(layers, self._streams, every)
                    self._streaming.callback(self._losses.pause)
                if self.speaker.sink:
                    self._streaming.enter_context(attention_sink(self.speaker.model, self.speaker.sink))
                self._streaming.enter_context(self.speaker.mimi.streaming(self.count))
                self._streaming.enter_context(self._generator.streaming(self.count))
        except BaseException:
            # moshi leaves the modules in streaming mode that it had reached.
            self._streaming.close()
            for _, module, _ in self._parts:
                module._stop_streaming()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._streaming.close()

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Frees model and codec for something else; afterwards the conversations are where they were."""
        modules = {id(module): module for _, module, _ in self._parts}.values()
        states = [(module, module.get_streaming_state()) for module in modules]
        for module, _ in states:
            module._stop_streaming()
        if self._losses is not None:
            self._losses.pause()
        try:
            yield
        finally:
            if self._losses is not None:
                self._losses.listen()
            for module, state in states:
                module.set_streaming_state(state)

    def join(self, slot: int, seed: int, greeting: bool = True) -> None:
        """A new conversation begins in `slot`, whatever was there; the other slots do not notice.

        Args:
            seed: of its draws, from 0 to 2**63 - 1.
            greeting: whether Moshi may say a word before the user makes a sound.
        """
        mask = self._clear(slot, seed, greeting)
        # The generator's first step reads the initial tokens whatever it is given; frames count from the second.
        model = self.speaker.model
        heard = model.num_codebooks - model.dep_q - 1
        with torch.no_grad(), self._eager():
            self._generator.set_exec_mask(mask)
            self._generator.advance(torch.zeros(self.count, heard, 1, dtype=torch.long, device=model.device))

    def read_given(self, codes: Tensor, user: Tensor, seed: int = 0, both_ways: bool = True) -> None:
        """Begins a conversation with given frames; for one slot only (see `prompt.begin_with`).

        Args:
            codes: int64 [K, P], all streams.
            user: float32 [P * frame_size], the user's audio.
            seed: of the conversation's draws, the first of which is made here.
            both_ways: whether the frames are read in both directions, see `Generator.read_given`.
        """
        assert self.count == 1, "a pass over several frames cannot leave other rows alone"
        self._clear(0, seed)
        mimi, device = self.speaker.mimi, self.speaker.model.device
        codes = codes[None].to(device)
        with torch.no_grad(), self._eager():
            self._generator.read_given(codes, both_ways)
            for frame, heard in enumerate(user.to(device).split(self.frame_size)):
                mimi.encode(heard[None, None])
                if self.speaker.speaks:
                    mimi.decode(codes[:, 1 : 1 + self.speaker.model.dep_q, frame : frame + 1])
        self.frames[0] = codes.shape[2]

    def tick(self, frames: Mapping[int, Tensor], ended: Collection[int] = ()) -> dict[int, Reply]:
        """The next frame of the users in some of the slots, and Moshi's frames of the same time.

        Args:
            frames: slot to float32 [frame_size], on the CPU.
            ended: slots of `frames` whose frame is not heard: the model is told that the user's recording has ended, as
                Hibiki's generators tell it, by a code that is otherwise read at the beginning only.

        Returns:
            Replies by slot, without those that the model's delays hold back and those that are broken.

        Raises:
            InferenceError: another shape, or samples that are not finite; nothing was heard by anyone.
        """
        heard = self._together(frames)
        going = sorted(set(frames) - self.broken)
        mimi, model = self.speaker.mimi, self.speaker.model
        with torch.no_grad(), self._eager():
            mask = self._mask(going)
            for slot in self._awaiting & {slot for slot in going if frames[slot].abs().max() >= SILENCE}:
                self._may_speak(slot, True)
            mimi.set_exec_mask(self._mask([slot for slot in going if slot not in ended]))
            self._generator.set_exec_mask(mask)
            codes = mimi.encode(heard.to(model.device))
            if ended:
                codes = codes.index_fill(0, torch.tensor(sorted(ended), device=codes.device), model.initial_token_id)
            tokens, hidden = self._generator.advance(codes)
            for slot in going:
                self.frames[slot] += 1
            speaking = [slot for slot in going if self.frames[slot] >= self._generator.max_delay]
            mimi.set_exec_mask(self._mask(speaking))
            sound = torch.zeros_like(heard, device=model.device)
            if self.speaker.speaks:
                sound = mimi.decode(tokens[:, 1:].clamp(min=0))
            # One copy brings everything to the host. What is not finite anywhere in a memory shows in the hidden state.
            finite = hidden.isfinite().flatten(1).all(dim=1).unflatten(0, (-1, self.count)).all(dim=0)[:, None]
            found = torch.cat([finite.float(), tokens[:, :, 0].float(), sound[:, 0].float()], dim=1).cpu()
        self.broken |= {slot for slot in going if not found[slot, 0]}
        return {slot: self._reply(found[slot, 1:]) for slot in speaking if slot not in self.broken}

    def snapshot(self, slot: int) -> Snapshot:
        """A copy of the conversation in `slot`.

        Raises:
            InferenceError: its memory is not finite, so nothing could go on from it.
        """
        tensors = read_row(self._parts, slot)
        lost = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
        if lost:
            raise InferenceError(f"{why_broken(self.frames[slot])} (the first value that is not finite: {lost[0]})")
        return Snapshot(tensors, self._seeds[slot], self.frames[slot])

    def restore(self, slot: int, snapshot: Snapshot, greeting: bool = True) -> None:
        """Puts a conversation into `slot`; its next frame is what it would have been, bit for bit on the same machine.

        Args:
            greeting: whether Moshi may say a word before the user makes the next sound.

        Raises:
            InferenceError: it is of another model, type or version; nothing was changed.
        """
        if not fits(self._parts, snapshot.tensors):
            raise InferenceError(
                "the conversation has another form than this model's: was it saved with another --dtype or --sink, or "
                "with --cfg in one of both?"
            )
        write_row(self._parts, slot, snapshot.tensors)
        self._occupy(slot, snapshot.seed, snapshot.frames, greeting)

    def memory(self, slot: int) -> dict[int, LayerMemory]:
        """What each TTT layer has in its memory of the conversation in `slot`, by temporal layer (`watched` slots)."""
        assert self._losses is not None, "these slots are not watched"
        written = []
        for index in self._losses.layers:
            layer = self.speaker.model.layers[index]
            start = layer.ttt.inner.W1.detach()  # type: ignore[union-attr]
            now = layer._streaming_state.memory.W1[slot]  # type: ignore[union-attr]
            written.append((now - start).norm() / start.norm())
        losses = self._losses.take(slot)
        if not written:
            return {}
        found = torch.cat([torch.stack(written)[:, None], losses], dim=1).tolist()
        return {
            index: LayerMemory(share, *(None if math.isnan(loss) else loss for loss in (now, start)))
            for index, (share, start, now) in zip(self._losses.layers, found, strict=True)
        }

    def _clear(self, slot: int, seed: int, greeting: bool = True) -> Tensor:
        """Nothing is left in `slot`; the mask of it."""
        mask = self._mask([slot])
        self.speaker.mimi.reset_streaming(mask)
        self._generator.reset_streaming(mask)
        empty_rings(self._parts, slot)
        self._occupy(slot, seed, 0, greeting)
        return mask

    def _occupy(self, slot: int, seed: int, frames: int, greeting: bool) -> None:
        self.frames[slot], self._seeds[slot] = frames, seed
        self._may_speak(slot, greeting)
        self._generator.seeds[slot] = seed
        if self._losses is not None:
            self._losses.take(slot)  # of whoever was there before
        self.broken.discard(slot)

    def _may_speak(self, slot: int, allowed: bool) -> None:
        self._generator.silent[slot] = not allowed
        if allowed:
            self._awaiting.discard(slot)
        else:
            self._awaiting.add(slot)

    def _together(self, frames: Mapping[int, Tensor]) -> Tensor:
        """All slots' frames, float32 [count, 1, frame_size]."""
        heard = torch.zeros(self.count, 1, self.frame_size)
        for slot, samples in frames.items():
            if samples.shape != (self.frame_size,):
                raise InferenceError(f"a frame is {self.frame_size} samples, not {list(samples.shape)}")
            if not bool(samples.isfinite().all()):
                raise InferenceError(f"frame {self.frames[slot]} holds samples that are not finite")
            heard[slot, 0] = samples
        return heard

    def _mask(self, slots: list[int]) -> Tensor:
        mask = torch.zeros(self.count, dtype=torch.bool)
        mask[slots] = True
        return mask.to(self.speaker.model.device)

    def _reply(self, found: Tensor) -> Reply:
        tokens = found[: 1 + self.speaker.model.dep_q].long()
        text = int(tokens[0])
        piece = "" if text in self._silent_tokens else self.speaker.tokenizer.id_to_piece(text)
        return Reply(found[len(tokens) :].clone(), piece, tokens)

    def _eager(self) -> AbstractContextManager[None]:
        """moshi compiles its functions on first use, which takes half a minute and pays on an NVIDIA GPU only."""
        return nullcontext() if self.speaker.model.device.type == "cuda" else no_compile()


def why_broken(frames: int) -> str:
    """What to say of a conversation whose memory is not finite."""
    return (
        f"the memory of this conversation is no longer finite (frame {frames}): it cannot go on and is not saved; "
        "begin anew, or go on from an earlier session"
    )
