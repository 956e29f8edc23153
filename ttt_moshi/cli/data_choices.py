"""Options that several commands on data read alike."""

from __future__ import annotations

from ttt_moshi.errors import UserError


def channels_chosen(text: str) -> tuple[int, ...]:
    """`3,1` as numbers."""
    numbers = [int(part) if part.strip().isdigit() else 0 for part in text.split(",")]
    if len(numbers) > 2 or min(numbers) < 1 or len(set(numbers)) < len(numbers):
        raise UserError(f"`--channels` is one number or two different ones, from 1, such as `2,1`; got {text!r}")
    return tuple(numbers)


def shard_chosen(text: str) -> tuple[int, int]:
    """`2/8` as numbers."""
    number, slash, shards = text.partition("/")
    if not (slash and number.isdigit() and shards.isdigit() and 1 <= int(number) <= int(shards)):
        raise UserError(f"`--shard` is a part of how many, from 1/1, such as 2/8; got {text!r}")
    return int(number), int(shards)
