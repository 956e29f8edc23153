"""k-means, and residual codebooks made of it."""

from __future__ import annotations

import torch


def kmeans(
    points: torch.Tensor, count: int, generator: torch.Generator, iterations: int = 12
) -> tuple[torch.Tensor, torch.Tensor]:
    """Centroids [count, D] of points [N, D] and how many points each has (at least 1), by Lloyd's iteration.

    Starts from distinct random points; an empty cluster restarts from the point that is farthest from its centroid.
    """
    centroids = points[torch.randperm(len(points), generator=generator)[:count]].clone()
    if len(centroids) < count:
        raise ValueError(f"{count} clusters need at least as many points, got {len(points)}")
    usage = torch.ones(count)
    for _ in range(iterations):
        distances, nearest = torch.cdist(points, centroids).min(1)
        usage = torch.bincount(nearest, minlength=count).float()
        sums = torch.zeros_like(centroids).index_add_(0, nearest, points)
        centroids = sums / usage.clamp(min=1)[:, None]
        empty = (usage == 0).nonzero()[:, 0]
        centroids[empty] = points[distances.topk(len(empty)).indices]
    return centroids, usage.clamp(min=1)


def residual_codebooks(
    points: torch.Tensor, levels: int, count: int, generator: torch.Generator
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """`levels` codebooks (centroids, usage); each is fitted on what the ones before leave of points [N, D]."""
    codebooks = []
    residual = points
    for _ in range(levels):
        centroids, usage = kmeans(residual, count, generator)
        codebooks.append((centroids, usage))
        residual = residual - centroids[torch.cdist(residual, centroids).argmin(1)]
    return codebooks
