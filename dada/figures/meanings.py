"""One sentence for each scalar that training logs, shown beside its curve; methods.md has the equations."""

from __future__ import annotations

MEANINGS = {
    "eval/mIoU": "mean IoU of the evaluations in training, on TRAIN.EVAL_SPLIT",
    "test/mIoU": "mean IoU of the test reports, one for each tested snapshot, in percent",
    "loss": "what training minimises: all terms, each times its weight",
    "loss_seg_src_main": "cross-entropy on the labelled source",
    "loss_seg_src_aux": "cross-entropy on the source, at the auxiliary head",
    "loss_lovasz": "Lovász-Softmax on the source, a surrogate of 1 - IoU",
    "loss_depth_src": "berHu error of the depth predicted on the source",
    "loss_fass": "cycle association of features: minus log-probability of the way there and back, mean over closed cycles",
    "loss_cass": "cycle association of class probabilities: as loss_fass",
    "loss_lsr": "draws the mean log-probability of each pixel to a threshold; its gradient matters, not its value",
    "loss_consistency": "cross-entropy between two views of the same target pixels, where the first is sure",
    "loss_ent": "entropy of the predictions on the target, from 0 (sure) to 1",
    "loss_adv_trg": "how well the discriminator still tells the target from the source; the network makes it small",
    "loss_d_": "error of the discriminator on this domain; 0.69 is guessing, half of it where the loss is halved",
    "loss_mix": "cross-entropy on target images with pasted source classes, towards the teacher's labels",
    "loss_mic": "cross-entropy on target images with hidden patches, towards the teacher's labels",
    "fass/closed": "share of labelled source pixels whose cycle through the features ends in their own class",
    "fass/covered": "different target pixels for each closed cycle: near 0, all cycles turn around at the same few",
    "fass/confidence": "probability of the source's class at the target pixels where closed cycles turn around",
    "cass/closed": "share of labelled source pixels whose cycle through the class probabilities ends in their own class",
    "cass/covered": "as fass/covered, for class probabilities",
    "cass/confidence": "as fass/confidence, for class probabilities",
    "target/confident": "share of target pixels at which the first of two views is sure",
    "teacher/confident": "share of target pixels at which the teacher is sure",
    "teacher/entropy": "entropy of the teacher's predictions on the target, from 0 to 1",
    "teacher/agreement": "share of target pixels at which network and teacher say the same",
    "mix/agreement": "the same on mixed images, where they show the target",
    "mic/agreement": "the same on masked images",
    "lr/group": "learning rate of a group of parameters",
}


def meaning(tag: str) -> str:
    """The sentence for a logged tag; empty for one that is not known, of a term that somebody added."""
    name = tag.removeprefix("data/")
    fitting = [known for known in MEANINGS if name == known or (known != "loss" and name.startswith(known))]
    return MEANINGS[max(fitting, key=len)] if fitting else ""
