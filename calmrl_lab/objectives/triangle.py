"""TRIANGLE: the area of the triangle whose corners are a text and two other modalities of an item."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from calmrl_lab.errors import CalmrlError
from calmrl_lab.objectives import objectives
from calmrl_lab.objectives.terms.base import AUDIO, IMAGE, modality_index, not_negative, one_of
from calmrl_lab.objectives.terms.query_to_item import CrossObjective, Sides

FORMS = ("squared", "root")


@objectives.register("triangle")
class TRIANGLE(CrossObjective):
    """The area of the triangle that a text and two other modalities of an item form (TRIANGLE); three modalities.

    Score of text i and item j = minus the area of (t_i, v_j, a_j). `form="squared"`, the released code: -(|u|^2 |w|^2 - <u, w>^2) / 2 with the sides u and w, which is -2 area^2. `form="root"`, the paper: -area (with
    `epsilon` under the root, whose slope is infinite where corners coincide). Released: temperature 0.07, learned; label smoothing 0.1;
    matching weight `alpha` 0.1 (here a substitute head, see `MatchingHead`).
    `corners` names the two modalities beside the query (default: vision and audio, else the first two). Mask: an item is a candidate only if it
    shows both: with a corner missing the triangle has no area, which would be a perfect score. Others are counted in `skipped`. Known
    limit: three points on one line have no area however far apart they are.

    >>> import torch
    >>> from calmrl_lab.objectives import TRIANGLE
    >>> embeddings = torch.nn.functional.normalize(torch.randn(8, 3, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    >>> mask = torch.rand(8, 3, generator=torch.Generator().manual_seed(1)) < 0.8
    >>> objective = TRIANGLE(("vision", "audio", "caption"), dim=16)
    >>> bool(objective(embeddings, mask)["loss"].isfinite())
    True
    """

    name = "triangle"
    scorer = "area"
    aligned_option = "corners"

    def __init__(
        self,
        modalities: tuple[str, ...],
        dim: int,
        query: str | None = None,
        corners: Sequence[str] | None = None,
        form: str = "squared",
        temperature: float = 0.07,
        smoothing: float = 0.1,
        alpha: float = 0.1,
        epsilon: float = 1e-8,
        seed: int = 0,
        negative_temperature: float | None = None,
        detach_gathered: bool = False,
    ) -> None:
        super().__init__(modalities, dim, query, temperature, smoothing, alpha, seed, negative_temperature, detach_gathered)
        if len(modalities) < 3:
            raise CalmrlError(
                f"objective 'triangle' needs three modalities, got {len(modalities)}: {', '.join(modalities)}",
                hint="use gram, whose volume is defined for two",
            )
        self.form = one_of(self.name, "form", form, FORMS)
        self.epsilon = not_negative(self.name, "epsilon", epsilon)
        self.others = self._corners(corners)

    def _corners(self, named: Sequence[str] | None) -> list[int]:
        if named is None:
            usual = [index for name in (*IMAGE, *AUDIO) for index in self.others if self.modalities[index] == name]
            return sorted(usual[:2]) if len(usual) >= 2 else self.others[:2]
        corners = [modality_index(self.name, self.modalities, name, ()) for name in named]
        if len({*corners, self.query}) != 3 or len(corners) != 2:
            raise CalmrlError(
                f"objective 'triangle': corners must be two modalities other than the query '{self.modalities[self.query]}', "
                f"got {', '.join(named)}"
            )
        return corners

    def has_candidate(self, sides: Sides) -> Tensor:
        return sides.shown.all(dim=1)

    def scores(self, sides: Sides, context: Tensor) -> Tensor:
        squares = squared_parallelograms(sides.queries, sides.candidates)
        return -squares / 2 if self.form == "squared" else -(squares + self.epsilon).sqrt() / 2


def squared_parallelograms(queries: Float[Tensor, "q d"], items: Float[Tensor, "n 2 d"]) -> Float[Tensor, "q n"]:
    """|u|^2 |w|^2 - <u, w>^2 for u = t_i - v_j and w = t_i - a_j, at least 0: four times the squared area of the triangle.

    Two matrix products; the differences themselves would be [q, n, d]. `items` are zero where not shown.
    """
    first, second = queries @ items[:, 0].mT, queries @ items[:, 1].mT
    own = queries.square().sum(dim=1, keepdim=True)
    lengths = items.square().sum(dim=2)
    between = own - first - second + (items[:, 0] * items[:, 1]).sum(dim=1)
    square = (own + lengths[:, 0] - 2 * first) * (own + lengths[:, 1] - 2 * second) - between.square()
    return square.clamp_min(0.0)
