"""What each method minimises: a list of named, weighted loss terms.

A term reads a `Step`, one batch of each domain with the network's outputs on it, and returns a scalar, or a `TermValue`
where there is more to log. `Step` runs the network when a term first asks for an output, so a method costs only what its terms
use, and the training loop needs to know no method. `CONTRASTIVE_LEARNING` appends the terms of `contrastive_terms` to whatever
method is chosen, and the weights of the SELF_TRAINING section those of `self_training_terms`.

To add a method: write its terms as functions of a Step and enter a list of them in METHODS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dada.config import not_imported
from dada.domain_adaptation import losses
from dada.domain_adaptation.adversarial import Adversary, InputMap, depth_entropy_map, entropy_map_of, probability_map
from dada.domain_adaptation.association_term import association_term
from dada.domain_adaptation.self_training.mixing import strong_colors
from dada.domain_adaptation.self_training.style_transfer import source_style
from dada.domain_adaptation.self_training.terms import class_mix, masked_consistency
from dada.domain_adaptation.step import Notes, Step, TermValue
from dada.normalization import TORCHVISION_RGB, Normalization


class Term(NamedTuple):
    """One addend of the objective: weight * compute(step), from iteration `start` on."""

    name: str
    weight: float
    compute: Callable[[Step], Tensor | TermValue]
    start: int = 0
    # What must be loaded for it: "source" alone, "target" too, "view", the target's second view, or "labelled", the source and
    # the labelled images of the target.
    reads: str = "target"
    adversary: Adversary | None = None  # the discriminator that learns beside this term
    start_option: str = ""  # which sets `start`
    teacher: bool = False  # whether it reads the teacher's predictions: Step.teacher_outputs, pseudo_labels, ...
    source: bool = False  # whether it reads the source too, and is left out where there is none


class Losses(NamedTuple):
    """The losses and logged values of a step."""

    terms: dict[str, tuple[float, Tensor]]  # (weight, value) of every active term by name; 0-dim values, not yet weighted
    notes: Notes

    @property
    def total(self) -> Tensor:
        return sum(weight * value for weight, value in self.terms.values())


class Objective(NamedTuple):
    """All terms of a run, the discriminators that some of them play against, and what is done to source images first."""

    terms: list[Term]
    adversaries: list[Adversary]
    style: Callable[[Tensor, Tensor], Tensor] | None = None  # see Step
    left_out: tuple[str, ...] = ()  # terms beside the supervised ones that TRAIN.SOURCE_FREE does without

    @property
    def adapts(self) -> bool:
        """Whether the network learns from target images."""
        return bool(self.adversaries) or any(term.reads != "source" for term in self.terms)

    @property
    def uses_target(self) -> bool:
        return bool(self.adversaries) or self.style is not None or any(term.reads in ("target", "view") for term in self.terms)

    @property
    def uses_labelled(self) -> bool:
        return any(term.reads == "labelled" for term in self.terms)

    @property
    def uses_teacher(self) -> bool:
        return any(term.teacher for term in self.terms)

    @property
    def uses_view(self) -> bool:
        return any(term.reads == "view" for term in self.terms)

    def active(self, iteration: int) -> list[Term]:
        return [t for t in self.terms if iteration >= t.start]

    def __call__(self, step: Step, iteration: int) -> Losses:
        terms, notes = {}, []
        for term in self.active(iteration):
            value = term.compute(step)
            loss, told = value if isinstance(value, TermValue) else (value, Notes())
            _check_loss(term, loss)
            terms[term.name] = term.weight, loss
            notes.append(told)
        return Losses(terms, Notes.joined(notes))


def _check_loss(term: Term, loss: Any) -> None:
    """Raise ValueError, naming the term, if `loss` is not something that a network can learn from."""
    found = ""
    if not isinstance(loss, Tensor):
        found = f"a {type(loss).__name__}"
    elif loss.ndim or not loss.is_floating_point():
        found = f"a tensor of shape {tuple(loss.shape)} and type {str(loss.dtype).removeprefix('torch.')}"
    if found:
        code = getattr(term.compute, "__code__", None)
        where = f" ({code.co_filename}, line {code.co_firstlineno})" if code else ""
        raise ValueError(
            f"the term {term.name}{where} gives {found}, expected a scalar: a floating-point tensor of shape () that was "
            "computed from the outputs of the network, such as a mean()"
        )


# ---- terms on the source -------------------------------------------------------------------------------------------


def source_cross_entropy(step: Step) -> Tensor:
    return losses.cross_entropy(step.source_logits, step.source.label)


def source_cross_entropy_aux(step: Step) -> Tensor:
    logits = step.upsample(step.source_outputs.aux_logits, step.source.label)
    return losses.cross_entropy(logits, step.source.label)


def source_lovasz(step: Step) -> Tensor:
    return losses.lovasz_softmax(step.source_logits.softmax(dim=1), step.source.label)


def source_depth(masked: bool) -> Callable[[Step], Tensor]:
    """berHu of the predicted against the true inverse depth (DADA), where that was measured or everywhere."""

    def depth(step: Step) -> Tensor:
        truth = step.source.depth
        valid = losses.valid_depth(truth) if masked else None
        return losses.berhu(step.upsample(step.source_outputs.depth, truth), truth, valid)

    return depth


# ---- terms on the target -------------------------------------------------------------------------------------------


def target_cross_entropy(step: Step) -> Tensor:
    """Of the images of TARGET_LABELLED."""
    logits, label = step.labelled_outputs.logits, step.labelled.label
    return losses.cross_entropy(step.upsample(logits, label), label)


def target_entropy(step: Step) -> Tensor:
    """MinEnt of ADVENT: mean normalised entropy of the target prediction at image resolution."""
    return losses.entropy_loss_from_logits(step.upsample(step.target_outputs.logits, step.target.image))


def target_entropy_aux(step: Step) -> Tensor:
    return losses.entropy_loss_from_logits(step.upsample(step.target_outputs.aux_logits, step.target.image))


def target_consistency(threshold: float) -> Callable[[Step], TermValue]:
    """The second view must be predicted as the first one is, where that prediction is confident."""

    def consistency(step: Step) -> TermValue:
        loss, confident = losses.consistency_loss(step.target_outputs.logits, step.first_view_outputs.logits, threshold)
        return TermValue(loss, Notes({"target/confident": confident}))

    return consistency


# ---- cycle association ---------------------------------------------------------------------------------------------


def lsr(domain: str, threshold: float) -> Callable[[Step], Tensor]:
    return lambda step: losses.lsr(getattr(step, f"{domain}_outputs").logits, threshold)


def _association(cfg: Any, level: str) -> Term:
    """The term of one level, "fass" or "cass"."""
    train = cfg.TRAIN
    compute = association_term(level, cfg.NUM_CLASSES, aggregate=train.APPLY_SPAGG, alpha=train.SPAGG_ALPHA)
    return Term(f"loss_{level}", train.LAMBDA_CONTRASTIVE_MAIN, compute, source=True)


def contrastive_terms(cfg: Any) -> list[Term]:
    """The terms that CONTRASTIVE_LEARNING adds, at the weights of the cfg."""
    train = cfg.TRAIN
    terms = [_association(cfg, "fass")]
    if train.APPLY_MULTILAYER_ASSOCIATION:
        terms += [
            _association(cfg, "cass"),
            Term("loss_lsr_src", train.LSR_W, lsr("source", train.LSR_THRES), source=True),
            Term("loss_lsr_trg", train.LSR_W, lsr("target", train.LSR_THRES)),
        ]
    terms += [
        Term("loss_consistency", train.LAMBDA_CONSISTENCY, target_consistency(train.CONSISTENCY_THRESHOLD), reads="view"),
        Term("loss_entropy", train.LAMBDA_ENTROPY, target_entropy),
    ]
    return [term._replace(start=train.CONTRASTIVE_START, start_option="TRAIN.CONTRASTIVE_START") for term in terms]


# ---- self-training -------------------------------------------------------------------------------------------------


def self_training_terms(cfg: Any, normalization: Normalization) -> list[Term]:
    """The terms of the SELF_TRAINING section, at their weights.

    Raises:
        ValueError: images of the domains differ in size.
    """
    options = cfg.SELF_TRAINING
    sizes = [tuple(cfg.TRAIN[f"INPUT_SIZE_{domain}"]) for domain in ("SOURCE", "TARGET")]
    mixes = options.LAMBDA_MIX and not cfg.TRAIN.SOURCE_FREE
    if mixes and not cfg.DATA_TRANSFORM.RANDOM_RESIZE_AND_CROP and sizes[0] != sizes[1]:
        raise ValueError(
            "SELF_TRAINING.LAMBDA_MIX pastes source pixels onto target images, which must have one size: set "
            "DATA_TRANSFORM.RANDOM_RESIZE_AND_CROP to True, or TRAIN.INPUT_SIZE_SOURCE and TRAIN.INPUT_SIZE_TARGET, now "
            f"{sizes[0]} and {sizes[1]}, to one size"
        )
    colors = strong_colors(normalization, options.COLOR_JITTER, options.BLUR)
    mic = masked_consistency(options.THRESHOLD, options.MIC_RATIO, options.MIC_PATCH, colors)
    terms = [
        Term("loss_mix", options.LAMBDA_MIX, class_mix(options.THRESHOLD, colors), teacher=True, source=True),
        Term("loss_mic", options.LAMBDA_MIC, mic, teacher=True),
    ]
    return [term._replace(start=options.START, start_option="SELF_TRAINING.START") for term in terms]


# ---- methods -------------------------------------------------------------------------------------------------------


def _source_only(cfg: Any, device: torch.device) -> list[Term]:
    return []


def _min_ent(cfg: Any, device: torch.device) -> list[Term]:
    terms = [Term("loss_ent_main", cfg.TRAIN.LAMBDA_ENT_MAIN, target_entropy)]
    if cfg.TRAIN.MULTI_LEVEL:
        terms.append(Term("loss_ent_aux", cfg.TRAIN.LAMBDA_ENT_AUX, target_entropy_aux))
    return terms


def _fooling(name: str, weight: float, input_map: InputMap, cfg: Any, device: torch.device, **options: Any) -> list[Term]:
    """The adversarial term on one map, with its discriminator; none at weight 0, which would train it for nothing."""
    if weight == 0:
        return []
    adversary = Adversary(name, input_map, cfg.NUM_CLASSES, cfg.TRAIN, device, **options)
    return [Term(f"loss_adv_trg_{name}", weight, adversary.fool, adversary=adversary, source=True)]


def _adv_ent(cfg: Any, device: torch.device) -> list[Term]:
    terms = _fooling("main", cfg.TRAIN.LAMBDA_ADV_MAIN, entropy_map_of("logits"), cfg, device)
    if cfg.TRAIN.MULTI_LEVEL:
        terms += _fooling("aux", cfg.TRAIN.LAMBDA_ADV_AUX, entropy_map_of("aux_logits"), cfg, device)
    return terms


def _dada(cfg: Any, device: torch.device) -> list[Term]:
    seen = depth_entropy_map if cfg.USE_DEPTH else entropy_map_of("logits")
    # DADA does not halve the two parts of the discriminator's loss; ADVENT does.
    return _fooling("main", cfg.TRAIN.LAMBDA_ADV_MAIN, seen, cfg, device, halve=False)


def _plca_adv(cfg: Any, device: torch.device) -> list[Term]:
    # PLCA calls the source 1 and the target 0; who is called what changes nothing but the sign of the answer.
    return _fooling("main", cfg.TRAIN.LAMBDA_ADV_MAIN, probability_map, cfg, device, betas=(0.9, 0.999))


METHODS: dict[str, Callable[[Any, torch.device], list[Term]]] = {
    "source_only": _source_only,
    "MinEnt": _min_ent,
    "AdvEnt": _adv_ent,
    "DADA": _dada,
    "PLCA_adv": _plca_adv,
}


def build_objective(cfg: Any, device: torch.device, normalization: Normalization = TORCHVISION_RGB) -> Objective:
    """The terms of `cfg`: source terms, those of TRAIN.DA_METHOD, of CONTRASTIVE_LEARNING and of SELF_TRAINING.

    A term of weight 0 is left out, not computed; with TRAIN.SOURCE_FREE so is one that reads the source.

    Args:
        normalization: of the images, for what changes their colours.

    Raises:
        ValueError: unknown method, IMPORTS that are not imported, batches that do not pair up, batch norms that nothing
            trains, or nothing to minimise.
    """
    train = cfg.TRAIN
    if missing := not_imported(cfg):
        raise ValueError(missing)
    if train.DA_METHOD not in METHODS:
        raise ValueError(f"TRAIN.DA_METHOD {train.DA_METHOD!r} is not one of {', '.join(METHODS)}")
    terms = [
        Term("loss_seg_src_main", train.LAMBDA_SEG_MAIN, source_cross_entropy),
        Term("loss_lovasz", train.LAMBDA_LOVASZ * (train.ITER_SIZE if cfg.LEGACY.PLCA_LOVASZ_FACTOR else 1), source_lovasz),
    ]
    if train.MULTI_LEVEL:
        terms.append(Term("loss_seg_src_aux", train.LAMBDA_SEG_AUX, source_cross_entropy_aux))
    if cfg.USE_DEPTH:
        masked = not cfg.LEGACY.UNMASKED_DEPTH
        terms.append(Term("loss_depth_src_main", train.LAMBDA_DEPTH_MAIN, source_depth(masked)))
    terms = [term._replace(reads="source") for term in terms]
    if cfg.TARGET_LABELLED:
        terms.append(Term("loss_seg_trg", train.LAMBDA_SEG_TARGET, target_cross_entropy, reads="labelled"))
    terms += METHODS[train.DA_METHOD](cfg, device)
    if cfg.CONTRASTIVE_LEARNING:
        paired = train.LAMBDA_CONTRASTIVE_MAIN != 0 and not train.SOURCE_FREE
        if paired and train.BATCH_SIZE_SOURCE != train.BATCH_SIZE_TARGET:
            raise ValueError(
                "CONTRASTIVE_LEARNING pairs every source image with a target image: TRAIN.BATCH_SIZE_SOURCE "
                f"{train.BATCH_SIZE_SOURCE} and TRAIN.BATCH_SIZE_TARGET {train.BATCH_SIZE_TARGET} must be equal"
            )
        terms += contrastive_terms(cfg)
    terms += self_training_terms(cfg, normalization)
    terms = [t for t in terms if t.weight != 0]
    left_out: tuple[str, ...] = ()
    if train.SOURCE_FREE:
        left_out = tuple(t.name for t in terms if t.source)
        terms = [t for t in terms if not (t.source or t.reads == "source")]
        if not terms:
            without = f"; {', '.join(left_out)} would read the source" if left_out else ""
            raise ValueError(
                f"TRAIN.SOURCE_FREE learns from the target alone, and no term of this configuration does{without}. Set "
                "SELF_TRAINING.LAMBDA_MIC, or with CONTRASTIVE_LEARNING TRAIN.LAMBDA_CONSISTENCY or TRAIN.LAMBDA_ENTROPY"
            )
    recolours = cfg.CONTRASTIVE_LEARNING and train.COLOR_TRANSFER and not train.SOURCE_FREE
    style = source_style(normalization) if recolours else None
    objective = Objective(terms, [t.adversary for t in terms if t.adversary is not None], style, left_out)
    if not objective.active(0):
        raise ValueError(
            "no loss term has a weight at iteration 0: set TRAIN.LAMBDA_SEG_MAIN above 0, or start the others at once "
            f"(TRAIN.CONTRASTIVE_START is {train.CONTRASTIVE_START}, SELF_TRAINING.START {cfg.SELF_TRAINING.START})"
        )
    if train.DOMAIN_BN and not objective.adapts:
        raise ValueError(
            f"TRAIN.DOMAIN_BN trains batch norms for the target, but no term of TRAIN.DA_METHOD {train.DA_METHOD} reads the "
            "target; a test would use them as they began. Set it to False, or choose a method that adapts"
        )
    return objective
