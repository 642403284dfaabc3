"""Teacher, pseudo-labels, ClassMix, masked consistency, rare classes, AdaBN and the alignment of source images."""

import copy
import math
import random
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import TinyNetwork, random_batch, same
from torch import nn

from dada.build import source_loader, target_loader
from dada.commands.replay import replay
from dada.config import cfg, cfg_from_list
from dada.dataset.rare_classes import RareClasses, class_counts, class_probabilities
from dada.dataset.sampler import Draw, StepSampler
from dada.dataset.transforms import TrainTransform
from dada.domain_adaptation import objectives
from dada.domain_adaptation.objectives import build_objective
from dada.domain_adaptation.self_training import mixing, style_transfer, terms
from dada.domain_adaptation.step import Step
from dada.domain_adaptation.teacher import Teacher
from dada.model.batch_norm import convert_domain_batch_norm, select_domain
from dada.normalization import CAFFE_BGR, TORCHVISION_RGB
from dada.runs import find_snapshots, run_of
from dada.training import trainer as trainer_module
from dada.training.adabn import adapt_batch_norm, statistics_loader
from dada.training.checkpoint import read_checkpoint
from dada.training.loop import train
from dada.training.post_mortem import read_post_mortem
from dada.training.rng import seed_all
from dada.training.trainer import NonFiniteLoss, Trainer

CPU = torch.device("cpu")
ON = ["SELF_TRAINING.LAMBDA_MIX=1", "SELF_TRAINING.LAMBDA_MIC=1", "SELF_TRAINING.MIC_PATCH=8", "SELF_TRAINING.THRESHOLD=0.2"]


def unchanged(images):
    return images


class Network(TinyNetwork):
    """With batch norm and dropout."""

    normalization = TORCHVISION_RGB

    def __init__(self, num_classes=5, **heads):
        super().__init__(num_classes, **heads)
        self.stem = nn.Sequential(self.stem, nn.BatchNorm2d(6), nn.Dropout(0.5))


@pytest.fixture
def network():
    return Network()


def step_of(network, teacher=None, **options) -> Step:
    return Step(network, random_batch(seed=1), random_batch(seed=2), teacher=teacher, **options)


# --- teacher -------------------------------------------------------------------------------------------------


def test_the_teacher_is_the_average_by_hand(network):
    teacher = Teacher(network, decay=0.6)
    names = dict(network.named_parameters())
    expected = {name: p.detach().clone() for name, p in names.items()}
    for t in range(5):
        with torch.no_grad():
            for p in network.parameters():
                p.add_(torch.randn_like(p))
        teacher.update(network, t)
        a = min(1 - 1 / (t + 1), 0.6)
        expected = {name: a * old + (1 - a) * names[name].detach() for name, old in expected.items()}
        for name, p in teacher.network.named_parameters():
            torch.testing.assert_close(p, expected[name])
            assert t > 0 or torch.equal(p, names[name])


def test_the_teacher_normalises_with_the_target_batch_without_dropout_and_leaves_the_student_alone(network):
    network.train()
    student = copy.deepcopy(network.state_dict())
    step = step_of(network, Teacher(network, 0.9))
    reference = copy.deepcopy(network)
    reference.stem[2].eval()
    assert torch.equal(step.teacher_outputs.logits, reference(step.target.image).logits)
    assert same(dict(network.state_dict()), dict(student)) and network.stem[2].training
    running = step._teacher.network.stem[1].running_mean
    torch.testing.assert_close(running, 0.1 * network.stem[0](step.target.image).mean((0, 2, 3)).detach())


def test_the_teacher_holds_the_statistics_that_the_policy_freezes_and_takes_the_targets_norms(network):
    network.stem[1].eval()
    frozen = Teacher(network, 0.9).network
    frozen(random_batch().image)
    assert torch.equal(frozen.stem[1].running_mean, torch.zeros(6))
    network.train()
    convert_domain_batch_norm(network)
    step = step_of(network, Teacher(network, 0.9))
    _ = step.teacher_outputs
    source, target = step._teacher.network.stem[1].norm_layers
    assert source.num_batches_tracked == 0 and target.num_batches_tracked == 1


def test_pseudo_labels_are_the_teachers_at_image_size_and_carry_no_gradient(network):
    step = step_of(network, Teacher(network, 0.9))
    probabilities = F.interpolate(step.teacher_outputs.logits, (32, 40), mode="bilinear", align_corners=True).softmax(1)
    assert torch.equal(step.pseudo_labels, probabilities.argmax(1))
    assert torch.equal(step.pseudo_confidence, probabilities.max(1).values)
    assert not step.pseudo_confidence.requires_grad


def test_the_weight_of_an_image_is_its_share_of_confident_pixels():
    confidence = torch.tensor([[[0.9, 0.5], [0.95, 0.9]], [[0.1, 0.2], [0.3, 0.91]]])
    assert terms.confident_share(confidence, 0.9).tolist() == [0.75, 0.25]


def test_the_weighted_cross_entropy_by_hand():
    logits = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    labels = torch.tensor([[[0, 255], [2, 1]], [[1, 1], [255, 0]]])
    weights = torch.rand(2, 2, 2, dtype=torch.float64)
    total = sum(
        -weights[b, y, x] * logits[b, :, y, x].log_softmax(0)[labels[b, y, x]]
        for b in range(2)
        for y in range(2)
        for x in range(2)
        if labels[b, y, x] != 255
    )
    torch.testing.assert_close(terms.weighted_cross_entropy(logits, labels, weights), total / 8)


# --- ClassMix and masks --------------------------------------------------------------------------------------


def test_half_of_the_classes_of_each_image_are_pasted_whole():
    labels = torch.tensor([0, 1, 2, 3, 4, 255, 255, 0]).view(1, 2, 4).repeat(40, 1, 1)
    labels[20:] = torch.tensor([3, 3, 7, 7, 255, 255, 255, 255]).view(2, 4)
    mask = mixing.class_mask(labels, 8)
    drawn = Counter()
    for label, chosen in zip(labels, mask):
        pasted, kept = set(label[chosen].tolist()), set(label[~chosen].tolist())
        assert 255 not in pasted and not pasted & kept
        assert len(pasted) == (3 if 0 in label else 1)
        drawn.update(pasted)
    assert set(drawn) == {0, 1, 2, 3, 4, 7}


def test_an_image_without_labels_pastes_nothing():
    assert not mixing.class_mask(torch.full((1, 3, 3), 255), 5).any()


def test_the_mix_term_is_the_formula_by_hand(network, monkeypatch):
    mask = torch.rand(2, 32, 40) < 0.5
    monkeypatch.setattr(terms, "class_mask", lambda labels, k: mask)
    network.eval()
    step = step_of(network, Teacher(network, 0.9))
    loss, notes = terms.class_mix(0.25, unchanged)(step)
    image = torch.where(mask[:, None], step.source.image, step.target.image)
    labels = torch.where(mask, step.source.label, step.pseudo_labels)
    q = (step.pseudo_confidence >= 0.25).float().mean((1, 2))
    logits = F.interpolate(network(image).logits, (32, 40), mode="bilinear", align_corners=True)
    cross_entropy = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(loss, torch.where(mask, cross_entropy, q[:, None, None] * cross_entropy).mean())
    assert q.min() > 0 and q.max() < 1
    agreement = (logits.argmax(1) == step.pseudo_labels)[~mask].float().mean()
    torch.testing.assert_close(notes.scalars["mix/agreement"], agreement)


def test_fewer_source_images_are_pasted_again():
    network = TinyNetwork(5)
    source, target = random_batch(1, seed=1), random_batch(3, seed=2)
    step = Step(network, source, target, teacher=Teacher(network, 0.9))
    loss, notes = terms.class_mix(0.5, unchanged)(step)
    assert loss.isfinite() and notes.pictures["mixed"].shape == (3, 3, 32, 40)


def test_patches_are_hidden_whole_at_the_ratio():
    visible = mixing.patch_mask((20, 33, 40), 0.7, 8)
    assert visible.shape == (20, 1, 33, 40) and visible.dtype == torch.bool
    first = visible[..., :32, :].unfold(2, 8, 8).unfold(3, 8, 8)
    assert ((first.float().mean((-1, -2)) % 1) == 0).all()
    assert 0.25 < visible.float().mean() < 0.35
    assert mixing.patch_mask((1, 8, 8), 1.0, 4).sum() == 0 and mixing.patch_mask((1, 8, 8), 0.0, 4).all()


def test_the_masked_term_is_the_formula_by_hand_and_keeps_the_running_statistics(network, monkeypatch):
    visible = torch.rand(2, 1, 32, 40) < 0.3
    monkeypatch.setattr(terms, "patch_mask", lambda size, ratio, patch, device: visible)
    network.stem[2].eval()
    step = step_of(network, Teacher(network, 0.9))
    before = copy.deepcopy(dict(network.stem[1].named_buffers()))
    loss = terms.masked_consistency(0.25, 0.7, 8, unchanged)(step).loss
    assert same(dict(network.stem[1].named_buffers()), before) and network.stem[1].momentum == 0.1
    q = (step.pseudo_confidence >= 0.25).float().mean((1, 2))
    logits = F.interpolate(network(step.target.image * visible).logits, (32, 40), mode="bilinear", align_corners=True)
    expected = (q[:, None, None] * F.cross_entropy(logits, step.pseudo_labels, reduction="none")).mean()
    torch.testing.assert_close(loss, expected)


def test_strong_colours_change_each_image_by_itself_and_come_from_torchs_generator():
    images = TORCHVISION_RGB(torch.randint(256, (1, 3, 12, 12)).repeat(6, 1, 1, 1))
    change = mixing.strong_colors(TORCHVISION_RGB, 0.25, 0.5)
    torch.manual_seed(3)
    changed = change(images)
    torch.manual_seed(3)
    assert torch.equal(changed, change(images))
    assert len({tuple(image.flatten()[:9].tolist()) for image in changed}) >= 4
    rgb = TORCHVISION_RGB.to_rgb(changed)
    assert rgb.min() > -0.01 and rgb.max() < 255.01
    assert mixing.strong_colors(TORCHVISION_RGB, 0.0, 0.0)(images) is images


# --- terms in an objective -----------------------------------------------------------------------------------


def objective_of(*pairs):
    cfg_from_list(["NUM_CLASSES=16", "DATA_TRANSFORM.RANDOM_RESIZE_AND_CROP=True", *pairs])
    return build_objective(cfg, CPU)


def test_everything_is_off_by_default_and_each_part_alone_is_one_term():
    plain = objective_of()
    assert [t.name for t in plain.terms] == ["loss_seg_src_main"] and plain.style is None
    assert not plain.uses_target and not plain.uses_teacher
    for key, name in (("LAMBDA_MIX", "loss_mix"), ("LAMBDA_MIC", "loss_mic")):
        objective = objective_of(f"SELF_TRAINING.{key}=0.5", "SELF_TRAINING.START=7")
        assert {t.name: (t.weight, t.start) for t in objective.terms}[name] == (0.5, 7) and len(objective.terms) == 2
        assert objective.uses_teacher and objective.uses_target and not objective.uses_view
        cfg_from_list([f"SELF_TRAINING.{key}=0"])
    weights = ("LAMBDA_CONTRASTIVE_MAIN", "LSR_W", "LAMBDA_CONSISTENCY", "LAMBDA_ENTROPY")
    styled = objective_of("CONTRASTIVE_LEARNING=True", *(f"TRAIN.{weight}=0" for weight in weights))
    assert styled.uses_target and not styled.adapts and not styled.uses_teacher


@pytest.mark.parametrize("method", ["MinEnt", "AdvEnt"])
def test_they_add_to_every_method_and_to_association(method):
    names = [t.name for t in objective_of(f"TRAIN.DA_METHOD={method}", "CONTRASTIVE_LEARNING=True", *ON).terms]
    assert len(set(names)) == len(names) and {"loss_mix", "loss_mic", "loss_fass"} <= set(names)


def test_gradients_reach_the_student_only_and_nothing_runs_before_the_start():
    network = Network(16)
    objective = objective_of(*ON, "SELF_TRAINING.START=1")
    teacher = Teacher(network, 0.9)
    early = step_of(network, teacher)
    assert set(objective(early, 0).terms) == {"loss_seg_src_main"} and "teacher_outputs" not in vars(early)
    losses = objective(step_of(network, teacher), 1).terms
    (losses["loss_mix"][1] + losses["loss_mic"][1]).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in (network.stem[0].weight, network.head_main.weight))
    assert all(p.grad is None and not p.requires_grad for p in teacher.network.parameters())


def test_no_term_changes_with_the_targets_labels():
    network = Network(16)
    objective = objective_of(*ON, "CONTRASTIVE_LEARNING=True")
    results = []
    for shift in (0, 1):
        target = random_batch(seed=2)
        target = target._replace(label=(target.label + shift) % 5, depth=target.depth + shift)
        torch.manual_seed(5)
        step = Step(copy.deepcopy(network), random_batch(seed=1), target, teacher=Teacher(network, 0.9), style=objective.style)
        results.append({n: v.item() for n, (_, v) in objective(step, 0).terms.items()})
    assert results[0] == results[1] and results[0]["loss_mix"] > 0 and results[0]["loss_mic"] > 0


def test_the_notes_compare_teacher_and_student_where_both_are_there():
    network = Network(16)
    step = step_of(network, Teacher(network, 0.9))
    _ = step.target_outputs
    notes = objective_of(*ON)(step, 0).notes.scalars
    assert {"teacher/confident", "teacher/entropy", "teacher/agreement", "mix/agreement", "mic/agreement"} <= set(notes)
    assert all(0 <= note <= 1 and not note.requires_grad for note in notes.values())


@pytest.mark.parametrize(
    "pairs, message",
    [
        (
            ["SELF_TRAINING.LAMBDA_MIX=1", "DATA_TRANSFORM.RANDOM_RESIZE_AND_CROP=False"],
            r"must have one size.*\(1280, 760\) and \(1024, 512\)",
        ),
        (["TRAIN.LAMBDA_SEG_MAIN=0", *ON, "SELF_TRAINING.START=5"], "SELF_TRAINING.START 5"),
    ],
)
def test_options_that_cannot_be_are_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        objective_of(*pairs)


# --- source images like the target ---------------------------------------------------------------------------


def test_colour_transfer_gives_the_targets_mean_and_deviation_in_lab():
    source, target = 0.3 + 0.3 * torch.rand(2, 3, 16, 16), 0.2 + 0.4 * torch.rand(2, 3, 9, 9)
    moved, wanted = style_transfer.rgb_to_lab(style_transfer.color_transfer(source, target)), style_transfer.rgb_to_lab(target)
    torch.testing.assert_close(moved.mean((2, 3)), wanted.mean((2, 3)), rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(moved.std((2, 3), correction=0), wanted.std((2, 3), correction=0), rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(style_transfer.color_transfer(source, source), source, rtol=0, atol=1e-4)


def test_cielab_is_what_the_standard_says():
    colors = torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1]])[:, :, None, None]
    expected = torch.tensor([[100.0, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]])
    torch.testing.assert_close(style_transfer.rgb_to_lab(colors)[..., 0, 0], expected, rtol=0, atol=0.02)
    rgb = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(style_transfer.lab_to_rgb(style_transfer.rgb_to_lab(rgb)), rgb, rtol=0, atol=1e-5)


@pytest.mark.parametrize("normalization", [TORCHVISION_RGB, CAFFE_BGR])
def test_source_images_are_changed_once_before_the_network_sees_them(normalization):
    change = style_transfer.source_style(normalization)
    source, target = (normalization(torch.randint(256, (2, 3, 32, 40))) for _ in range(2))
    seen = []

    def network(image):
        seen.append(image)
        return TinyNetwork(5)(image)

    batches = (random_batch(seed=k)._replace(image=image) for k, image in enumerate((source, target)))
    step = Step(network, *batches, style=change)
    _ = step.source_outputs
    assert seen[0] is step.source_image and step.source.image is source
    assert not torch.equal(step.source_image, source)
    rgb = normalization.to_rgb(step.source_image)
    assert rgb.min() > -0.01 and rgb.max() < 255.01
    alike = style_transfer.source_style(normalization)(source[:1], source[:1])
    torch.testing.assert_close(normalization.to_rgb(alike), normalization.to_rgb(source[:1]), rtol=0, atol=0.1)


def test_each_source_image_takes_after_its_own_target_image():
    change = style_transfer.source_style(TORCHVISION_RGB)
    source, target = (TORCHVISION_RGB(torch.randint(256, (count, 3, 32, 40))).double() for count in (3, 2))
    changed = change(source, target)
    assert changed.dtype == source.dtype
    for k, partner in enumerate((0, 1, 0)):  # begins again where there are fewer
        assert torch.equal(changed[k : k + 1], change(source[k : k + 1], target[partner : partner + 1]))


# --- AdaBN ---------------------------------------------------------------------------------------------------


def test_adapted_statistics_are_those_of_the_images_and_nothing_else_changes(network):
    network.train()
    before = copy.deepcopy(network.state_dict())
    batches = [random_batch(seed=k).image for k in range(3)]
    assert adapt_batch_norm(network, iter(batches)) is network
    maps = [network.stem[0](batch).detach() for batch in batches]
    norm = network.stem[1]
    torch.testing.assert_close(norm.running_mean, torch.cat(maps).mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, torch.stack([m.var((0, 2, 3)) for m in maps]).mean(0))
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items() if "running" not in k and "tracked" not in k)
    assert norm.momentum == 0.1 and all(m.training for m in network.modules())


def test_only_the_targets_norms_are_adapted(network):
    convert_domain_batch_norm(network)
    select_domain(network, 0)
    adapt_batch_norm(network, [random_batch().image])
    source, target = network.stem[1].norm_layers
    assert torch.equal(source.running_mean, torch.zeros(6)) and not torch.equal(target.running_mean, torch.zeros(6))


def test_what_cannot_be_adapted_is_said(network):
    with pytest.raises(ValueError, match="TinyNetwork has no batch norm.*TRAIN.ADABN_IMAGES to 0"):
        adapt_batch_norm(TinyNetwork(5), [random_batch().image])
    with pytest.raises(ValueError, match="at least one batch of target images"):
        adapt_batch_norm(network, [])
    cfg_from_list(["TRAIN.ADABN_IMAGES=2"])  # known before the training, not after it
    with pytest.raises(ValueError, match="no batch norm"):
        statistics_loader(cfg, TinyNetwork(5), 2)


# --- rare classes --------------------------------------------------------------------------------------------

COUNTS = np.array([[900, 100, 0, 0], [990, 0, 10, 0], [1000, 0, 0, 0]])  # the last class is nowhere


def test_class_probabilities_are_daformers_formula_and_met_by_the_draws():
    f = COUNTS.sum(0) / COUNTS.sum()
    weights = [math.exp((1 - share) / 0.5) if share else 0 for share in f]
    classes = RareClasses(COUNTS, 0.5)
    np.testing.assert_allclose(classes.probabilities, np.array(weights) / sum(weights))
    draws = [classes.draw(3, "source", step, 0) for step in range(3000)]
    assert draws == [classes.draw(3, "source", step, 0) for step in range(3000)]
    frequency = np.bincount([wanted for _, wanted in draws], minlength=4) / 3000
    np.testing.assert_allclose(frequency, classes.probabilities, atol=0.03)
    assert {i for i, wanted in draws if wanted == 1} == {0} and {i for i, wanted in draws if wanted == 2} == {1}
    evenly = Counter(i for i, wanted in draws if wanted == 0)
    assert max(evenly.values()) < 1.3 * min(evenly.values())
    assert class_probabilities(f, 0.001)[2] > 0.9999  # no overflow at low temperatures
    with pytest.raises(ValueError, match="no source label holds a pixel of a trained class"):
        RareClasses(np.zeros((2, 3), dtype=int), 0.5)


def test_a_resumed_run_draws_the_same_classes():
    draw = RareClasses(COUNTS, 0.5).draw
    whole = list(StepSampler(3, 2, seed=5, stop_step=30, by_class=[draw]))
    assert list(StepSampler(3, 2, seed=5, start_step=11, stop_step=30, by_class=[draw])) == whole[11:]
    assert {d.wanted for batch in whole for d in batch} == {0, 1, 2}


def test_a_crop_shows_the_class_that_it_was_drawn_for():
    pixels = np.zeros((64, 256), dtype=np.uint8)
    pixels[10:40, 200:230] = 3
    label, image = Image.fromarray(pixels), Image.new("RGB", (256, 64))
    crop = TrainTransform(TORCHVISION_RGB, crop=(64, 64), flip=0.0)

    def hits(**options):
        torch.manual_seed(0)
        return sum(int((crop(image, label, **options).label == 3).sum() > 20) for _ in range(30))

    assert hits() < 20 and hits(wanted=3) >= 27
    torch.manual_seed(0)
    plain = crop(image, label)
    torch.manual_seed(0)
    assert torch.equal(plain.image, crop(image, label, wanted=-1).image)


def test_classes_are_counted_once_and_the_file_is_used_again(tiny_cfg, tmp_path, monkeypatch):
    cfg_from_list(["TRAIN.RARE_CLASS_TEMPERATURE=0.1"])
    loader = source_loader(cfg, TORCHVISION_RGB, steps=3)
    counts = class_counts(loader.dataset, tmp_path / "counts")
    by_hand = [[(np.asarray(loader.dataset.read_label(i)) == c).sum() for c in range(16)] for i in range(4)]
    assert counts.tolist() == by_hand
    batches = list(loader)
    assert len(batches) == 3 and len(list((tmp_path / "runs/class_counts").glob("*.npy"))) == 1
    monkeypatch.setattr(type(loader.dataset), "read_label", None)
    assert class_counts(loader.dataset, tmp_path / "counts").tolist() == by_hand


def test_a_sample_is_drawn_with_its_class(tiny_cfg):
    dataset = source_loader(cfg, TORCHVISION_RGB, steps=1).dataset
    sign = 8  # small in this image: most crops miss it
    shown = {wanted: sum((dataset[Draw(3, k, 1, wanted)].label == sign).any().item() for k in range(8)) for wanted in (-1, sign)}
    assert shown[-1] < 4 and shown[sign] == 8


# --- whole runs ----------------------------------------------------------------------------------------------

ALL = [
    *ON,
    "SELF_TRAINING.START=1",
    "CONTRASTIVE_LEARNING=True",
    "TRAIN.RARE_CLASS_TEMPERATURE=0.5",
    "TRAIN.LEARNING_RATE=0.01",
    "TRAIN.MAX_ITERS=5",
    "TRAIN.CHECKPOINT_EVERY=1",
    "DATA_TRANSFORM.CROPSIZE=32",
    "TRAIN.ADABN_IMAGES=3",
]


@pytest.fixture
def small(tiny_cfg, monkeypatch):
    monkeypatch.setattr(trainer_module, "build_network", lambda cfg, weights, **_: Network(cfg.NUM_CLASSES))
    cfg_from_list(ALL)
    return partial(train, cfg)


def test_a_run_with_everything_on_goes_on_exactly(small):
    small(run_of(cfg))  # this one counts the classes, the next ones find them counted
    folder = run_of(cfg).snapshots
    whole = read_checkpoint(folder / "checkpoint_5.pth")
    assert set(whole["teacher"]) == set(whole["state_dict"])
    cfg_from_list(["EXP_NAME=again", "TRAIN.EARLY_STOP=3"])
    small(run_of(cfg))
    seed_all(random.randrange(1000))
    cfg_from_list(["TRAIN.EARLY_STOP=0"])
    small(run_of(cfg), resume="auto")
    resumed = read_checkpoint(run_of(cfg).snapshots / "checkpoint_5.pth")
    assert all(same(resumed[key], whole[key]) for key in ("state_dict", "teacher", "optimizers", "rng"))
    assert not same(dict(whole["teacher"]), dict(whole["state_dict"]))


def test_snapshots_hold_the_targets_statistics_and_the_teacher_has_its_own(small):
    small(run_of(cfg))
    folder = run_of(cfg).snapshots
    kept = read_checkpoint(folder / "checkpoint_5.pth")
    assert find_snapshots(folder) == [folder / "model_5.pth"]
    for name, key in (("model", "state_dict"), ("teacher", "teacher")):
        network = Network(16)
        network.load_state_dict(kept[key])
        images = [b.image for b in target_loader(cfg, TORCHVISION_RGB, steps=2, plain=True)]
        written = torch.load(folder / f"{name}_5.pth", weights_only=True)["state_dict"]
        assert same(dict(adapt_batch_norm(network, images).state_dict()), dict(written))
        assert not torch.equal(written["stem.1.running_mean"], kept[key]["stem.1.running_mean"])


def test_a_step_that_fails_is_computed_again_with_its_teacher_and_its_random_numbers(small, monkeypatch):
    calls = []

    def fails_at_last(step):
        calls.append(step)
        return step.source_logits.mean() * (math.nan if len(calls) > 3 else 0.0)

    monkeypatch.setattr(objectives, "source_lovasz", fails_at_last)
    cfg_from_list(["TRAIN.LAMBDA_LOVASZ=1"])
    with pytest.raises(NonFiniteLoss, match="loss_lovasz = nan"):
        small(run_of(cfg))
    content = read_post_mortem(run_of(cfg).snapshots / "post_mortem_3.pth")
    assert {"loss_mix", "loss_mic"} <= set(content["values"])
    result = replay(cfg, content)
    assert result.reproduced and result.exact
    without = {key: value for key, value in content.items() if key != "teacher"}
    assert not replay(cfg, without).exact


def test_a_trainer_without_a_teacher_saves_none():
    network = TinyNetwork(16)
    trainer = Trainer(network, objective_of(), torch.optim.SGD(network.parameters(), lr=0.1), max_iterations=2)
    assert "teacher" not in trainer.state_dict()
