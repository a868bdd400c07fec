"""The one rule by which claims of the paper and of a study are judged."""

from __future__ import annotations

SIGNIFICANCE = 0.05


def verdict(claimed_sign: int, effect: float, p: float) -> str:
    """Judge a claim about the sign of an effect by a test of that effect against zero.

    A claim of no effect cannot be supported by a test that finds none, so it is at best not contradicted.

    Args:
        claimed_sign: +1 or -1; 0: the claim is that there is no effect.
        effect: The estimate; only its sign counts.
        p: The test's p-value, corrected where several claims are judged together.

    Returns:
        "supported", "contradicted" or "undecided"; of a claim of no effect "contradicted" or "not contradicted".
    """
    significant = p < SIGNIFICANCE
    if claimed_sign == 0:
        return "contradicted" if significant else "not contradicted"
    if not significant:
        return "undecided"
    return "supported" if effect * claimed_sign > 0 else "contradicted"
