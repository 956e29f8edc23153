"""Proofs of a checkpoint and of the system: round trip on a small model, and the full size with random weights."""
