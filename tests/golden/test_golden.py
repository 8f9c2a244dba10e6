"""Training, imputing and scoring give the numbers that were frozen in golden.json."""

import json
import math

import pytest
from golden.make_golden import CASES, FLOAT64, GOLDEN, compute, flat, rounding

FROZEN = json.loads(GOLDEN.read_text(encoding="utf-8"))
ROUNDED_ALIKE = rounding() == FROZEN["rounding"]
# Cases of more than three seconds.
SLOW = ("recommended",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("golden")


def test_every_case_is_frozen():
    assert set(CASES) == set(FROZEN["cases"])


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in FROZEN["cases"]])
def test_numbers_are_those_that_were_frozen(case, folder):
    if not ROUNDED_ALIKE and case not in FLOAT64:
        pytest.skip(
            "this machine rounds float32 differently from the one that wrote golden.json; write it anew before a change"
        )
    found, frozen = dict(flat(compute(case, folder))), dict(flat(FROZEN["cases"][case]))
    assert found.keys() == frozen.keys()
    changed = [f"{name}: {found[name]!r}, was {frozen[name]!r}" for name in frozen if not same(found[name], frozen[name])]
    assert not changed, f"{case}: {len(changed)} of {len(frozen)} numbers changed\n" + "\n".join(changed)


def same(found, frozen):
    return (math.isnan(found) and math.isnan(frozen)) or math.isclose(found, frozen, rel_tol=1e-9, abs_tol=1e-9)
