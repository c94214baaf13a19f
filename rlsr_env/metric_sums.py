"""Weighted sums of metrics, by name: `0.5*ssim+0.5*dtw`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rlsr_env.metrics import Metric

# A number, as far as Python's float can read it, and a name. The exponent's sign must not be taken for the next term's.
_TERM = re.compile(r"(?:(?P<weight>[0-9.]+(?:[eE][+-]?[0-9]+)?)\*)?(?P<name>[A-Za-z_]\w*)")


def weighted_sum(text: str, metrics: Mapping[str, Metric]) -> Metric:
    """Make one metric of several.

    Every term is oriented so that more is better: the values of a metric of which less is better are subtracted. Units
    are not reconciled; the weights have to do that.

    Args:
        text: Terms `weight*name` or `name`, joined by `+`.
        metrics: The metrics that have names.

    Returns:
        A metric whose name is the text without spaces. More is better; it has a gradient, equal values for equal
        pictures, and a block map where all terms have; its smallest picture is the largest of theirs.

    Raises:
        ValueError: For a term of another form, an unknown name, or a weight that is not a positive number.
    """
    terms = tuple(_term(term, text, metrics) for term in _split(text))
    judges = [judge for _, judge in terms]
    return Metric(
        re.sub(r"\s", "", text),
        _Sum(terms),
        differentiable=all(judge.differentiable for judge in judges),
        deterministic=all(judge.deterministic for judge in judges),
        min_size=max(judge.min_size for judge in judges),
        source="weighted sum, each term oriented so that more is better",
        block_map=_SumOfMaps(terms) if all(judge.block_map is not None for judge in judges) else None,
        value_range=(_sum_of_bounds(terms, 0), _sum_of_bounds(terms, 1)),
    )


Terms = tuple[tuple[float, Metric], ...]


@dataclass(frozen=True)
class _Sum:
    """The terms' values, weighted, oriented and added up."""

    terms: Terms

    def __call__(self, sr_image: Tensor, hr_image: Tensor) -> Tensor:
        """Judge pictures, `(B,)` float64."""
        return torch.stack([_signed(*term) * term[1](sr_image, hr_image).double() for term in self.terms]).sum(0)


@dataclass(frozen=True)
class _SumOfMaps:
    """The terms' block maps, weighted, oriented and added up."""

    terms: Terms

    def __call__(self, sr_image: Tensor, hr_image: Tensor) -> Tensor:
        """Judge blocks, `(K * P, H / 8, W / 8)`."""
        return torch.stack([_signed(*term) * term[1].blocks(sr_image, hr_image) for term in self.terms]).sum(0)


def _signed(weight: float, judge: Metric) -> float:
    """The weight by which a metric's own values enter the sum."""
    return weight if judge.higher_is_better else -weight


def _sum_of_bounds(terms: Terms, end: int) -> float:
    """The sum's least (0) or greatest (1) value."""
    return sum(
        _signed(weight, judge) * judge.value_range[end if judge.higher_is_better else 1 - end]
        for weight, judge in terms
    )


def _split(text: str) -> list[str]:
    """The terms between the plus signs; one within a number's exponent joins nothing."""
    return [term.strip() for term in re.split(r"(?<![0-9.][eE])\+", text)]


def _term(term: str, text: str, metrics: Mapping[str, Metric]) -> tuple[float, Metric]:
    """Weight and metric of one term."""
    parts = _TERM.fullmatch(re.sub(r"\s*\*\s*", "*", term))
    try:
        weight = float(parts["weight"] or 1) if parts else math.nan
    except ValueError:  # such as 1.2.3
        weight = math.nan
    if parts is None or not 0 < weight < math.inf:
        raise ValueError(
            f"cannot read {term!r} in the sum of metrics {text!r}; its terms are weight*name, with a positive weight "
            "(each counts so that more is better), joined by +: 0.5*ssim+0.5*dtw"
        )
    if parts["name"] not in metrics:
        raise ValueError(
            f"Unknown metric {parts['name']!r} in the sum {text!r}; use one of {', '.join(sorted(metrics))}."
        )
    return weight, metrics[parts["name"]]
