"""Loss terms that learn from a teacher's pseudo-labels on the target; each works alone or together with any method.

Passes over mixed and masked images are passes of their own, with the batch norms of the target. Masked images, of which
no test will ever see one, leave the running statistics alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dada.domain_adaptation.losses import entropy_loss_from_logits
from dada.domain_adaptation.self_training.mixing import class_mask, paste, patch_mask
from dada.domain_adaptation.step import Notes, Step, TermValue
from dada.model.batch_norm import TARGET
from dada.parallel.ranks import joint_mean


def confident_share(confidence: Tensor, threshold: float) -> Tensor:
    """q: of each image, the share of pixels whose confidence (B, H, W) is at least `threshold`. (B,), 0 to 1.

    It weights all pixels of the image: Tranheden et al. (DACS), WACV 2021, arXiv:2007.08702.
    """
    return (confidence >= threshold).float().mean(dim=(1, 2))


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Mean over ALL pixels of weight * -log softmax(logits)[label]; pixels labelled 255 count as 0.

    Args:
        logits: (B, K, H, W).
        labels: (B, H, W) int64.
        weights: (B, H, W).
    """
    loss = weights * F.cross_entropy(logits, labels, ignore_index=255, reduction="none")
    return joint_mean(loss.mean(), loss.numel())


def class_mix(threshold: float, colors: Callable[[Tensor], Tensor]) -> Callable[[Step], TermValue]:
    """DACS: half of the classes of a source image pasted onto a target image, labels alike.

    Target image k takes from source image k, or from the first ones again where there are fewer. Pasted pixels have their
    true labels and weight 1, the others the teacher's labels and the confident share q of their image.

    Args:
        threshold: of the confidence.
        colors: the augmentation of the mixed image.
    """

    def mix(step: Step) -> TermValue:
        logits = step.teacher_outputs.logits
        pairs = torch.arange(len(logits), device=logits.device) % len(step.source.label)
        true = step.source.label[pairs]
        mask = class_mask(true, logits.shape[1])
        share = confident_share(step.pseudo_confidence, threshold)
        image = colors(paste(mask, step.source_image[pairs], step.target.image))
        labels = paste(mask, true, step.pseudo_labels)
        weights = paste(mask, torch.ones_like(step.pseudo_confidence), share[:, None, None].expand(mask.shape))
        predicted = step.upsample(step.forward(image, TARGET).logits, image)
        scalars = {**_of_teacher(step, share), "mix/agreement": _agreement(predicted, step.pseudo_labels, ~mask)}
        return TermValue(weighted_cross_entropy(predicted, labels, weights), Notes(scalars, pictures={"mixed": image}))

    return mix


def masked_consistency(
    threshold: float, ratio: float, patch: int, colors: Callable[[Tensor], Tensor]
) -> Callable[[Step], TermValue]:
    """MIC: a target image of which most patches are hidden must be predicted as the teacher predicts the whole.

    Hoyer et al., CVPR 2023 (arXiv:2212.01322), on all pixels, weighted by the confident share q of the image. Hidden
    pixels are 0 after normalisation.

    Args:
        threshold: of the confidence.
        ratio, patch: see `patch_mask`.
        colors: the augmentation of the image before it is masked.
    """

    def mic(step: Step) -> TermValue:
        target = step.target.image
        visible = patch_mask((len(target), *target.shape[-2:]), ratio, patch, target.device)
        share = confident_share(step.pseudo_confidence, threshold)
        image = colors(target) * visible
        predicted = step.upsample(step.forward(image, TARGET, keep_statistics=True).logits, image)
        loss = weighted_cross_entropy(predicted, step.pseudo_labels, share[:, None, None].expand(visible[:, 0].shape))
        scalars = {**_of_teacher(step, share), "mic/agreement": _agreement(predicted, step.pseudo_labels)}
        return TermValue(loss, Notes(scalars, pictures={"masked": image}))

    return mic


def _of_teacher(step: Step, share: Tensor) -> dict[str, Tensor]:
    """How sure the teacher is, and whether the student says the same; the same numbers for each term. Shares (B,)."""
    notes = {
        "teacher/confident": joint_mean(share.mean(), len(share)),
        "teacher/entropy": entropy_loss_from_logits(step.teacher_outputs.logits),
    }
    if "target_outputs" in vars(step):  # a term has paid for them
        student = step.target_outputs.logits.detach()
        notes["teacher/agreement"] = _agreement(student, step.teacher_outputs.logits.argmax(dim=1))
    return notes


def _agreement(logits: Tensor, labels: Tensor, where: Tensor | None = None) -> Tensor:
    """Share of pixels at which the most likely class is `labels`."""
    where = torch.ones_like(labels, dtype=torch.bool) if where is None else where
    same = (logits.detach().argmax(dim=1) == labels) & where
    count = where.sum()
    return joint_mean(same.sum() / count.clamp(min=1), count)
