"""A change of coordinates that suits approximate indexes for inner products: equal norms of items, equal scales of both sides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class InnerProductTransform:
    """Changes items and queries so that their inner products stay, and near items are those that the same queries find.

    Graphs and cells are made of items alone: they fail where a coordinate is large in items and small in queries, and where items differ in
    length. So every coordinate of an item is multiplied by `scale` [r] (float64, above 0) and that of a query divided by it, and items get
    one coordinate more, zero in queries, that gives all of them the same length (Bachrach et al., RecSys 2014).
    """

    scale: Float[np.ndarray, " r"]

    @classmethod
    def of(cls, items: Float[np.ndarray, "n r"], queries: Float[np.ndarray, "q r"]) -> InnerProductTransform:
        """The scale under which every coordinate has the same root mean square in items and in queries; 1 where it is zero in either."""
        ours, theirs = (np.square(part).mean(axis=0) if len(part) else np.zeros(part.shape[1]) for part in (items, queries))
        return cls.of_mean_squares(ours, theirs)

    @classmethod
    def of_mean_squares(cls, items: Float[np.ndarray, " r"], queries: Float[np.ndarray, " r"]) -> InnerProductTransform:
        """The same from the mean squares of every coordinate."""
        theirs, ours = np.sqrt(queries), np.sqrt(items)
        known = (theirs > 0) & (ours > 0)
        return cls(np.where(known, np.sqrt(np.divide(theirs, ours, where=known, out=np.ones_like(ours))), 1.0))

    def longest(self, vectors: Float[np.ndarray, "n r"]) -> float:
        """The largest squared length of scaled items."""
        return float(np.square(vectors * self.scale).sum(axis=1).max(initial=0.0))

    def items(self, vectors: Float[np.ndarray, "n r"], longest: float | None = None) -> Float[np.ndarray, "n r+1"]:
        """float32; `longest` is the largest squared length of all items where `vectors` are some of them."""
        scaled = vectors * self.scale
        squares = np.square(scaled).sum(axis=1)
        most = squares.max(initial=0.0) if longest is None else longest
        rest = np.sqrt(np.maximum(most - squares, 0.0))
        return np.concatenate([scaled, rest[:, None]], axis=1).astype(np.float32)

    def queries(self, vectors: Float[np.ndarray, "q r"]) -> Float[np.ndarray, "q r+1"]:
        """float32."""
        return np.pad(vectors / self.scale, ((0, 0), (0, 1))).astype(np.float32)
