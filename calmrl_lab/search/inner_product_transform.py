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
        theirs, ours = (
            np.sqrt(np.square(part).mean(axis=0)) if len(part) else np.zeros(part.shape[1]) for part in (queries, items)
        )
        known = (theirs > 0) & (ours > 0)
        return cls(np.where(known, np.sqrt(np.divide(theirs, ours, where=known, out=np.ones_like(ours))), 1.0))

    def items(self, vectors: Float[np.ndarray, "n r"]) -> Float[np.ndarray, "n r+1"]:
        """float32."""
        scaled = vectors * self.scale
        squares = np.square(scaled).sum(axis=1)
        rest = np.sqrt(squares.max(initial=0.0) - squares)
        return np.concatenate([scaled, rest[:, None]], axis=1).astype(np.float32)

    def queries(self, vectors: Float[np.ndarray, "q r"]) -> Float[np.ndarray, "q r+1"]:
        """float32."""
        return np.pad(vectors / self.scale, ((0, 0), (0, 1))).astype(np.float32)
