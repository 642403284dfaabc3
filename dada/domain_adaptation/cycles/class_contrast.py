r"""Contrast with the distributions of the classes, in place of cycles between two images: no pairs are needed.

Xie et al., "SePiCo: Semantic-Guided Pixel Contrast for Domain Adaptive Semantic Segmentation", TPAMI 2023
(arXiv:2204.08808). Features of each class k, of both domains, are taken for draws from a normal distribution with mean m_k
and variances v_k (a diagonal covariance). A pixel with direction q and label y is to resemble its own class:

    ProtoCL    L = -log  exp(q.m_y / T) / sum_k exp(q.m_k / T)
    DistCL     L = -q.m_y / T + log sum_k exp(q.m_k / T + q^2.v_k / (2 T^2))

DistCL is the mean of the contrast over infinitely many draws of each class, or a little more: for normal m the mean of
exp(q.m / T) is exp(q.m_k / T + q^2.v_k / (2 T^2)), and the mean of a logarithm is at most the logarithm of the mean. With v = 0 it
is ProtoCL.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dada.domain_adaptation.contrastive_learning import direction, labels_at
from dada.domain_adaptation.cycles.term import probabilities_at_features
from dada.domain_adaptation.parallel.ranks import joint_mean, joint_sum
from dada.domain_adaptation.step import Step

FORMS = ("proto", "dist")


class ClassStatistics:
    r"""Mean and variance of the features of each class, as moving averages.

    A class that is among the pixels has mean and variance m', v' there, and then

        v <- a v + (1 - a) v' + a (1 - a) (m - m')^2,      m <- a m + (1 - a) m'

    which are those of the mixture of both; a class that is met for the first time takes m', v'. A class that is not among the pixels
    keeps what it has. In a run of several processes the pixels are those of all.

    Args:
        num_classes: K.
        momentum: a, at least 0 and less than 1.

    Raises:
        ValueError: momentum out of its range.
    """

    def __init__(self, num_classes: int, momentum: float) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"CLASS_CONTRAST.MOMENTUM is {momentum}; expected at least 0 and less than 1, for example 0.99")
        self.num_classes = num_classes
        self.momentum = momentum
        self.mean = torch.zeros(num_classes, 0)  # (K, C) once it has seen a pixel
        self.variance = torch.zeros(num_classes, 0)
        self.met = torch.zeros(num_classes, dtype=torch.bool)  # classes that have been among the pixels

    @torch.no_grad()
    def update(self, x: Tensor, labels: Tensor) -> None:
        """Take in some pixels.

        Args:
            x: (N, C). labels: (N,) ids; others than 0 .. K - 1 are left out.
        """
        if not self.mean.shape[1]:
            self.mean, self.variance = (x.new_zeros(self.num_classes, x.shape[1]) for _ in range(2))
        # From a checkpoint they may come from another device.
        self.mean, self.variance, self.met = self.mean.to(x), self.variance.to(x), self.met.to(x.device)
        known = (labels >= 0) & (labels < self.num_classes)
        onehot_NK = torch.zeros(len(x), self.num_classes + 1, dtype=x.dtype, device=x.device)
        onehot_NK = onehot_NK.scatter_(1, torch.where(known, labels, self.num_classes)[:, None], 1)[:, : self.num_classes]
        count_K1 = joint_sum(onehot_NK.sum(dim=0))[:, None]
        mean = joint_sum(onehot_NK.mT @ x) / count_K1.clamp(min=1)
        deviation = torch.where(known[:, None], x - mean[torch.where(known, labels, 0)], 0.0)
        variance = joint_sum(onehot_NK.mT @ deviation.square()) / count_K1.clamp(min=1)
        there = count_K1 > 0
        share = torch.where(self.met[:, None], 1 - self.momentum, 1.0).to(x.dtype) * there  # of what is new
        # New tensors: a graph that still waits for its backward pass may hold the old ones.
        between = share * (1 - share) * (mean - self.mean).square()
        self.variance = (1 - share) * self.variance + share * variance + between
        self.mean = torch.lerp(self.mean, mean, share)
        self.met = self.met | there[:, 0]

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "variance": self.variance, "met": self.met}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean, self.variance, self.met = state["mean"], state["variance"], state["met"]


def directions(x: Tensor) -> Tensor:
    """(B, C, H, W) features -> (B*H*W, C) of length 1, what statistics and loss compare; zeros stay zeros."""
    return direction(x.flatten(2).mT.flatten(0, 1))


def class_contrast(
    x: Tensor,
    labels: Tensor,
    mean: Tensor,
    variance: Tensor | None,
    met: Tensor,
    *,
    temperature: float,
    weights: Tensor | None = None,
) -> Tensor:
    """DistCL, or ProtoCL without `variance`: the mean over the pixels whose class has been met, in nats.

    Args:
        x: (N, C) directions. labels: (N,) ids; pixels of others than the K classes are left out.
        mean, variance: (K, C), constants. met: (K,) bool, the classes that are contrasted.
        weights: (N,), of a weighted mean; constants. None: 1.

    Returns:
        0-dim; 0, with zero gradient, where no pixel counts.
    """
    mean, known = mean.to(x), (labels >= 0) & (labels < len(met))
    labels = torch.where(known, labels, 0)
    known = known & met[labels]
    linear = x @ mean.mT / temperature
    scores = linear if variance is None else linear + x.square() @ variance.to(x).mT / (2 * temperature**2)
    scores = torch.where(met, scores, torch.finfo(x.dtype).min)
    each = scores.logsumexp(dim=1) - linear.gather(1, labels[:, None])[:, 0]
    share = known.to(x.dtype) if weights is None else known * weights.detach().to(x.dtype)
    total = share.sum()
    return joint_mean((each * share).sum() / torch.where(total > 0, total, 1.0), total)


class ClassContrastTerm:
    """Features of both domains against the distributions of the classes, see above; the mean of both domains.

    The distributions are those of the source's features, by its labels; the step's own are taken in first. Target pixels
    count where their pseudo-label is sure.

    Args:
        num_classes: K.
        form: "dist" or "proto".
        temperature, momentum: see there.
        threshold: least probability of a pseudo-label.
        teacher: pseudo-labels are the teacher's, not the network's.

    Raises:
        ValueError: a temperature or a momentum out of its range.
    """

    def __init__(
        self, num_classes: int, *, form: str, temperature: float, momentum: float, threshold: float, teacher: bool
    ) -> None:
        if temperature <= 0:
            raise ValueError(f"CLASS_CONTRAST.TEMPERATURE is {temperature}; expected more than 0, for example 0.1")
        self.statistics = ClassStatistics(num_classes, momentum)
        self.form = form
        self.temperature = temperature
        self.threshold = threshold
        self.teacher = teacher

    def __call__(self, step: Step) -> Tensor:
        labels = labels_at(step.source.label, step.source_outputs.features.shape[-2:]).flatten()
        source, target = directions(step.source_outputs.features), directions(step.target_outputs.features)
        with torch.no_grad():
            probabilities = probabilities_at_features(step.teacher_outputs if self.teacher else step.target_outputs)
            confidence, pseudo = (x.flatten() for x in probabilities.max(dim=1))
            self.statistics.update(source, labels)
        s = self.statistics
        variance = s.variance if self.form == "dist" else None
        of_domains = (
            class_contrast(x, y, s.mean, variance, s.met, temperature=self.temperature, weights=w)
            for x, y, w in ((source, labels, None), (target, pseudo, confidence >= self.threshold))
        )
        return sum(of_domains) / 2

    def state_dict(self) -> dict[str, Any]:
        return self.statistics.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.statistics.load_state_dict(state)
