"""Every option of the project, in one table: default, type, unit and one sentence of meaning.

Keys carry the names that ADVENT, DADA, PLCA and the fork gave them, so that their YAML files load as they are.
Sizes are (width, height) in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dada.config.option import Option
from dada.config.protocols import PROTOCOLS
from dada.config.removed_options import FOLDERS


def _size(default: tuple[int, ...], meaning: str, **more: Any) -> Option:
    return Option(default, meaning, unit="(width, height) in pixels", length=2, minimum=1, **more)


_COLOR = Option((0, 0, 0), "A colour.", unit="red, green, blue in 0..255", length=3, minimum=0, maximum=255)


def _folder(role: str) -> dict[str, Option]:
    """What a folder of pictures needs to be told; the paths lie below DATA_DIRECTORY_{role}."""
    options = {
        "IMAGES": Option(
            "{split}/images/**/*.*",
            f"Pattern of the image files below DATA_DIRECTORY_{role}: {{split}} is the split, * any part of a name, ** any "
            "folders.",
        ),
        "LABELS": Option(
            "{split}/masks/**/*.*",
            "Pattern of the label files; a label and its image are those for which * and ** stand for the same.",
        ),
        "DEPTH": Option("", "Pattern of the depth files, 16-bit PNG of centimetres, 65535 for unknown; empty: none."),
        "WHITE": Option(
            0.0,
            "What is white in image files of more than 8 bits, for example 4095; 0: the smallest of 1 (fractions), 255, 1023, "
            "2047, 4095, 16383 and 65535 that no number in the file exceeds.",
            minimum=0,
        ),
        "ORIENTATION": Option(
            "auto",
            "Image files that EXIF says are stored turned: 'upright' turns them, 'stored' does not; 'auto' does, unless the "
            "label has the size of the stored picture alone.",
            choices=("auto", "upright", "stored"),
        ),
        "LABEL_FORMAT": Option(
            "ids", "What label files hold: 'ids', a number a pixel (grey or paletted), or 'rgb', colours.", choices=("ids", "rgb")
        ),
        "LABEL_MAP": Option(
            {},
            "Class name, or 'ignore', of each id or colour ('r, g, b' or '#rrggbb') in the files; empty: ids are train "
            "ids, colours those of the classes; a name: ids as Cityscapes, its train ids, SYNTHIA or WildDash 2 have them, "
            "where classes that are not trained are ignored.",
            element=str,
            choices=("cityscapes", "cityscapes_train_ids", "synthia", "wilddash"),
        ),
        "DEFAULT": Option(
            "error",
            "Ids and colours outside LABEL_MAP: 'error' refuses the file, 'ignore' the pixels.",
            choices=("error", "ignore"),
        ),
    }
    return {name: replace(option, each=role.lower()) for name, option in options.items()}


OPTIONS: dict[str, Any] = {
    "SOURCE": Option(
        "SYNTHIA",
        "Labelled dataset to train on: SYNTHIA, GTA5, UrbanSyn, Synscapes, Cityscapes, FoggyCityscapes, ACDC, DarkZurich, "
        "BDD100K, IDD, KITTI, WildDash, Mapillary, CamVid or Folder; or a list of several.",
        each="source",
    ),
    "SOURCE_SHARE": Option(
        1.0, "Of several sources, the proportions in which images are drawn, such as [3, 1].", above=0, each="source"
    ),
    "TARGET": Option(
        "Cityscapes", "Dataset to adapt to, or a list of several; its labels are read for evaluation only.", each="target"
    ),
    "TARGET_SHARE": Option(
        1.0, "As SOURCE_SHARE, of several targets, and of their images with labels (TARGET_LABELLED).", above=0, each="target"
    ),
    "TARGET_LABELLED": Option(
        "",
        "Target images whose labels are trained on: a list file, as DATA_LIST_TARGET; N, evenly spaced ones of "
        "TRAIN.SET_TARGET, or 'random N', by TRAIN.RANDOM_SEED; or 'all', each of those that have a label file; empty: none. Of "
        "several targets, of each.",
        path=True,
        digits=True,
        each="target",
    ),
    "ON_BAD_FILE": Option(
        "fail",
        "Training files that cannot be read: 'fail' ends the run, 'skip' takes another sample.",
        choices=("fail", "skip"),
        role="run",
    ),
    "NUM_WORKERS": Option(4, "Loader processes for each domain and training process; 0: none.", minimum=0, role="run"),
    "DATA_DIRECTORY_SOURCE": Option("data/SYNTHIA", "Folder of the source dataset.", role="machine", path=True, each="source"),
    "DATA_DIRECTORY_TARGET": Option("data/Cityscapes", "Folder of the target dataset.", role="machine", path=True, each="target"),
    "DATA_LIST_SOURCE": Option(
        "", "File with one image per line, {} standing for the split; empty: scan the folder.", path=True, each="source"
    ),
    "DATA_LIST_TARGET": Option("", "As DATA_LIST_SOURCE, for the target.", path=True, each="target"),
    "NUM_CLASSES": Option(
        16, "Label set: 19, 16, 13 or 7 of Cityscapes, 11 of CamVid, or as many as CLASSES.NAMES.", unit="classes", minimum=2
    ),
    "MAPILLARY_VERSION": Option(
        "", "Labels of Mapillary Vistas to read; empty: v1.2 where it is there, else v2.0.", choices=("", "v1.2", "v2.0")
    ),
    "USE_DEPTH": Option(False, "Read source depth, and give the network DADA's depth block to learn it with."),
    "CONTRASTIVE_LEARNING": Option(
        False, "Add to the chosen method cycle association, consistency and entropy, on source images recoloured like the target."
    ),
    "ALIGN_CORNERS": Option(True, "How logits are upsampled to labels: True as in ADVENT, DADA and its fork, False as in PLCA."),
    "CLASSES": {
        "NAMES": Option((), "Your own classes, in order of train ids, which set NUM_CLASSES; empty: built in.", element=str),
        "COLORS": Option((), "Colour of each of CLASSES.NAMES; empty: colours far from each other.", element=_COLOR),
    },
    "FOLDER_SOURCE": _folder("SOURCE"),  # read where SOURCE is Folder
    "FOLDER_TARGET": _folder("TARGET"),
    "IMPORTS": Option(
        (),
        "Python files of your own that add methods, datasets or networks; paths are relative to the YAML file, and several YAML "
        "files add up. The run keeps a copy.",
        element=str,
    ),
    "EXP_NAME": Option("", "Name of the run; empty: {SOURCE}2{TARGET}_{MODEL}_{DA_METHOD}.", role="machine"),
    "EXP_ROOT": Option(
        "experiments",
        "Folder of all runs, which write to snapshots/EXP_NAME and logs/tensorboard/EXP_NAME in it.",
        role="machine",
        path=True,
    ),
    "DEVICE": Option(
        "auto",
        "Where networks run, --device in all scripts. auto: the GPU of GPU_ID where there is one, else the CPU; cuda: that "
        "GPU, or an error; cuda:N: GPU number N; mps: Apple's, untested.",
        choices=("auto", "cpu", "cuda", "cuda:N", "mps"),
        pattern=r"auto|cpu|mps|cuda(:\d+)?",
        role="machine",
    ),
    "GPU_ID": Option(0, "GPU that DEVICE auto or cuda takes, in the first process; -1: the CPU.", minimum=-1, role="machine"),
    "DATA_TRANSFORM": {
        "RANDOM_RESIZE_AND_CROP": Option(False, "Train on crops of randomly resized images (PLCA); False: crops of INPUT_SIZE."),
        "LOADSIZE": Option(760, "With random crops the shorter side is in [LOADSIZE, 1.3 LOADSIZE].", unit="pixels", minimum=1),
        "CROPSIZE": Option(730, "Side of the square crop.", unit="pixels", minimum=1),
        "FLIP": Option(0.0, "Probability of a horizontal flip.", minimum=0, maximum=1),
        "COLOR_JITTER": Option(0.0, "Strength of colour jitter on images of both domains; 0: none.", minimum=0, maximum=1),
    },
    "TRAIN": {
        "SET_SOURCE": Option("all", "Split of the source dataset.", each="source"),
        "SET_TARGET": Option("train", "Split of the target dataset.", each="target"),
        "BATCH_SIZE_SOURCE": Option(
            1, "Source images in a forward pass, shared evenly among all processes.", unit="images", minimum=1
        ),
        "BATCH_SIZE_TARGET": Option(1, "Target images in a forward pass, over all processes.", unit="images", minimum=1),
        "BATCH_SIZE_LABELLED": Option(
            1, "As BATCH_SIZE_SOURCE, of the images of TARGET_LABELLED, which have a pass of their own.", unit="images", minimum=1
        ),
        "ITER_SIZE": Option(1, "Forward passes whose gradients are averaged into one step.", minimum=1),
        "INPUT_SIZE_SOURCE": _size((1280, 760), "Size of source images in training, unless RANDOM_RESIZE_AND_CROP."),
        "INPUT_SIZE_TARGET": _size((1024, 512), "Size of target images in training, unless RANDOM_RESIZE_AND_CROP."),
        "INFO_SOURCE": Option("", "JSON with the source's names, palette and id map; empty: built in.", path=True, each="source"),
        "INFO_TARGET": Option("", "As INFO_SOURCE, for the target.", path=True, each="target"),
        "IMG_MODE": Option(
            "", "Channel order and normalization; empty: those that the weights were trained with.", choices=("", "BGR", "RGB")
        ),
        "IMG_MEAN": Option(
            (104.00698793, 116.66876762, 122.67891434),
            "Mean that IMG_MODE BGR subtracts.",
            unit="blue, green, red in 0..255",
            element=float,
            length=3,
            minimum=0,
            maximum=255,
        ),
        "MODEL": Option(
            "DeepLabv2",
            "Network: DeepLabv2, DeepLabv2_depth (the depth block whatever USE_DEPTH says), resnet-18, resnet-34, "
            "resnet-50, resnet-18_undilated (the fork's), or timm:NAME.",
        ),
        "MULTI_LEVEL": Option(False, "Add the auxiliary head on layer3."),
        "HEAD_BIAS": Option(True, "Bias in the classifier head; PLCA's head has none."),
        "OUTPUT_STRIDE": Option(
            8, "Input pixels per feature pixel of timm encoders; vision transformers have theirs.", choices=(8, 16, 32)
        ),
        "BN_POLICY": Option(
            "train",
            "What of batch norm trains: 'train', all; 'frozen_affine', statistics (ADVENT, DADA); 'eval', none.",
            choices=("train", "frozen_affine", "eval"),
        ),
        "DOMAIN_BN": Option(False, "Give source and target batch norms of their own (PLCA's MODEL.DOMAIN_BN)."),
        "RESTORE_FROM": Option(
            "", "Initial weights: a file, 'imagenet' for the encoder's own, or 'random', as if empty.", role="span", path=True
        ),
        "RESTORE_HEAD": Option(True, "Take the head of RESTORE_FROM too; False starts it and the depth block anew.", role="span"),
        "ACCEPT_LICENCE": Option(
            "", "Licence of the encoder's weights that is not permissive but that you accept; see docs/models.md.", role="span"
        ),
        "FREEZE_ENCODER": Option(False, "Train the heads alone: the encoder, batch norms too, stays as RESTORE_FROM gives it."),
        "ADAPTER": Option(
            "", "'lora' freezes a vision transformer and trains low-rank matrices beside it.", choices=("", "lora")
        ),
        "LORA_RANK": Option(8, "Rank r of those matrices.", minimum=1),
        "LORA_ALPHA": Option(8.0, "They are scaled by LORA_ALPHA / LORA_RANK.", above=0),
        "LORA_LAYERS": Option(
            ("qkv", "proj"),
            "Products that get them, in every block: qkv and proj of attention, mlp.",
            element=Option("qkv", "Products.", choices=("qkv", "proj", "mlp")),
        ),
        "OPTIMIZER": Option("SGD", "Optimizer of the segmentation network.", choices=("SGD", "AdamW")),
        "LEARNING_RATE": Option(2.5e-4, "Base learning rate of the backbone.", minimum=0),
        "LR_MULT": Option(10.0, "Learning rate of the heads, as a multiple of LEARNING_RATE.", minimum=0),
        "LAYER_DECAY": Option(
            1.0,
            "Factor of the learning rate from each block of the backbone to the one before it; 1.0: none.",
            above=0,
            maximum=1,
        ),
        "LEARNING_RATE_D": Option(1e-4, "Learning rate of the discriminators (Adam).", minimum=0),
        "MOMENTUM": Option(0.9, "Momentum of SGD.", minimum=0, below=1),
        "WEIGHT_DECAY": Option(5e-4, "Weight decay of the segmentation network.", minimum=0),
        "DECAY_NORMS": Option(True, "Decay all weights; False spares norms, biases, layer scales, tokens and positions."),
        "POWER": Option(0.9, "Exponent of the poly schedule.", minimum=0),
        "WARMUP_ITERS": Option(0, "Iterations over which the learning rate rises linearly.", minimum=0),
        "RECOMPUTE": Option(False, "Compute activations of residual blocks again in the backward pass: less memory, more time."),
        "CHANNELS_LAST": Option(False, "Keep tensors channels-last, which makes convolutions faster on CPUs and recent GPUs."),
        "MATMUL_PRECISION": Option(
            "",
            "Products of float32 matrices, in training and prediction: highest (float32), high (TF32 on CUDA) or medium "
            "(bfloat16 where that is faster); empty: high on CUDA, exact on a CPU.",
            choices=("", "highest", "high", "medium"),
        ),
        "BF16": Option(False, "Run the networks in bfloat16 autocast; losses stay in float32."),
        "COMPILE": Option(
            False, "Compile the network with torch.compile, which takes minutes; where that fails, it runs uncompiled."
        ),
        "DA_METHOD": Option("source_only", "Method (docs/methods.md): source_only, MinEnt, AdvEnt, DADA or PLCA_adv."),
        "SOURCE_FREE": Option(False, "Adapt RESTORE_FROM, a trained network, to target images alone; no source file is opened."),
        "LAMBDA_SEG_MAIN": Option(1.0, "Weight of the source cross-entropy.", minimum=0),
        "LAMBDA_SEG_TARGET": Option(1.0, "Weight of the cross-entropy of TARGET_LABELLED.", minimum=0),
        "LAMBDA_SEG_AUX": Option(0.1, "Weight of the source cross-entropy of the auxiliary head.", minimum=0),
        "LAMBDA_LOVASZ": Option(0.0, "Weight of the source Lovasz-Softmax loss.", minimum=0),
        "LAMBDA_DEPTH_MAIN": Option(0.001, "Weight of the source berHu depth loss, with USE_DEPTH.", minimum=0),
        "LAMBDA_ADV_MAIN": Option(0.001, "Weight of the adversarial loss.", minimum=0),
        "LAMBDA_ADV_AUX": Option(0.0002, "Weight of the adversarial loss of the auxiliary head.", minimum=0),
        "LAMBDA_ENT_MAIN": Option(0.001, "Weight of the target entropy, of MinEnt.", minimum=0),
        "LAMBDA_ENT_AUX": Option(0.0002, "Weight of the target entropy of the auxiliary head, of MinEnt.", minimum=0),
        "LAMBDA_CONTRASTIVE_MAIN": Option(0.1, "Weight of the association losses.", minimum=0),
        "LAMBDA_CONSISTENCY": Option(
            0.3, "Weight of the consistency of two views of a target image, of which other terms then read the second.", minimum=0
        ),
        "LAMBDA_ENTROPY": Option(0.01, "Weight of the target entropy, of CONTRASTIVE_LEARNING.", minimum=0),
        "CONSISTENCY_THRESHOLD": Option(
            0.9, "Pixels count in the consistency loss if the first view's class has this probability.", minimum=0, maximum=1
        ),
        "CONTRASTIVE_START": Option(0, "First iteration with CONTRASTIVE_LEARNING; before it the source is learnt.", minimum=0),
        "RARE_CLASS_TEMPERATURE": Option(
            0.0, "Draw source images by class, rare ones more often, at this temperature (DAFormer: 0.01); 0: off.", minimum=0
        ),
        "COLOR_TRANSFER": Option(
            True, "With CONTRASTIVE_LEARNING: give source images the target's means and deviations in CIELAB."
        ),
        "ADABN_IMAGES": Option(
            0,
            "Target images from which a snapshot's batch norms take their statistics (AdaBN); 0: none.",
            unit="images",
            minimum=0,
        ),
        "ADABN_SHARE": Option(
            1.0, "Share of the target's statistics; the rest is what the network has (UBNA).", minimum=0, maximum=1
        ),
        "SAVE_AVERAGE": Option(False, "Snapshots and evaluations take the average of the weights (SELF_TRAINING.EMA_DECAY)."),
        "APPLY_MULTILAYER_ASSOCIATION": Option(True, "Associate class probabilities as well as features, and add LSR."),
        "APPLY_SPAGG": Option(True, "Aggregate target features over the image before they are associated."),
        "SPAGG_ALPHA": Option(0.5, "Share of the aggregated features in the mix.", minimum=0, maximum=1),
        "LSR_W": Option(0.01, "Weight of the loss on self-regularised predictions (LSR), source and target.", minimum=0),
        "LSR_THRES": Option(10.0, "Mean negative log-probability that LSR attracts to.", unit="nats", minimum=0),
        "MAX_ITERS": Option(30000, "Horizon of the poly schedule.", unit="iterations", minimum=1),
        "EARLY_STOP": Option(0, "Iterations to run; 0, or more than MAX_ITERS: MAX_ITERS.", minimum=0, role="span"),
        "SAVE_PRED_EVERY": Option(
            1000, "Snapshot period; the last iteration is always saved.", unit="iterations", minimum=1, role="run"
        ),
        "CHECKPOINT_EVERY": Option(
            0, "Period of checkpoints, from which --resume goes on; 0: SAVE_PRED_EVERY.", unit="iterations", minimum=0, role="run"
        ),
        "KEEP_CHECKPOINTS": Option(2, "Newest checkpoints that are kept; older ones are removed.", minimum=1, role="run"),
        "EVAL_EVERY": Option(
            0, "Period of evaluations; the best network is model_best.pth; 0: none.", unit="iterations", minimum=0, role="run"
        ),
        "EVAL_SPLIT": Option(
            "",
            "Labelled split for EVAL_EVERY: 'source:val', or 'target:val' with target labels; of several targets "
            "'target:val,test' names the split of each.",
            role="run",
        ),
        "RANDOM_SEED": Option(1234, "Seed of weights, data order and augmentation.", minimum=0),
        "LOGGERS": Option(
            (),
            "Where scalars and pictures go while a run trains: tensorboard, wandb, mlflow, trackio. --tensorboard adds the "
            "first; install the packages of the others yourself.",
            element=Option("tensorboard", "A logger.", choices=("tensorboard", "wandb", "mlflow", "trackio")),
            role="run",
        ),
        "TENSORBOARD_VIZRATE": Option(
            100, "Period of pictures in TensorBoard and other loggers.", unit="iterations", minimum=1, role="run"
        ),
    },
    # Terms that learn from a teacher's predictions on the target; they add to any method. See docs/methods.md.
    "SELF_TRAINING": {
        "LAMBDA_MIX": Option(
            0.0, "Weight of the loss on target images with pasted source classes (ClassMix of DACS); 0: off.", minimum=0
        ),
        "LAMBDA_MIC": Option(0.0, "Weight of the loss on masked target images (MIC); 0: off.", minimum=0),
        "START": Option(0, "First iteration with these terms; before it the teacher only averages.", minimum=0),
        "EMA_DECAY": Option(0.99, "Decay of the average of the network's weights that is the teacher.", minimum=0, below=1),
        "THRESHOLD": Option(
            0.968, "The teacher is sure of a pixel from here on; the share of such pixels weighs an image.", minimum=0, maximum=1
        ),
        "MIC_RATIO": Option(0.7, "Share of patches that LAMBDA_MIC hides.", minimum=0, maximum=1),
        "MIC_PATCH": Option(64, "Side of a patch that is hidden.", unit="pixels", minimum=1),
        "COLOR_JITTER": Option(0.25, "Strength of colour jitter on mixed and masked images; 0: none.", minimum=0, maximum=1),
        "BLUR": Option(0.5, "Probability of a Gaussian blur on mixed and masked images.", minimum=0, maximum=1),
    },
    "TEST": {
        "MODE": Option("single", "'single' tests RESTORE_FROM; 'best' every snapshot.", choices=("single", "best"), role="run"),
        "MODEL": Option((), "Network of each member of the ensemble; empty: TRAIN.MODEL.", element=str, role="score"),
        "MODEL_WEIGHT": Option((), "Weight of each member; empty: equal weights.", element=float, role="score", above=0),
        "MULTI_LEVEL": Option((), "Auxiliary head of each member; empty: TRAIN.MULTI_LEVEL.", element=bool, role="score"),
        "RESTORE_FROM": Option((), "Weights of each member; empty: the run's last snapshot.", element=str, role="run", path=True),
        "SET_TARGET": Option("val", "Split of the target dataset.", role="score", each="target"),
        "BATCH_SIZE_TARGET": Option(1, "Images in a forward pass.", unit="images", minimum=1, role="run"),
        "PROTOCOL": Option(
            "",
            "Published protocol that sets these options and ALIGN_CORNERS; options beside it or later prevail.",
            choices=("", *PROTOCOLS),
            role="score",
        ),
        "INPUT_SIZE_TARGET": _size((1024, 512), "Images are resized to this.", role="score"),
        "KEEP_RATIO": Option(
            False, "Images keep their shape and fit into INPUT_SIZE_TARGET; False: they become that size.", role="score"
        ),
        "OUTPUT_SIZE_TARGET": _size(
            (), "Labels are resized to this and logits upsampled to it; empty: the size of the label file.", role="score"
        ),
        "INFO_TARGET": Option("", "As TRAIN.INFO_TARGET, for the tested split.", role="score", path=True, each="target"),
        "RESAMPLE": Option(
            "bicubic",
            "Filter that resizes images: Pillow's, or 'bilinear_aliased', which reads the four nearest pixels only "
            "(OpenCV's, and mmsegmentation's).",
            choices=("bicubic", "bilinear", "bilinear_aliased"),
            role="score",
        ),
        "UPSAMPLE_VIA_INPUT": Option(
            False, "Upsample scores to the input size, then to the labels (mmsegmentation); False: at once.", role="score"
        ),
        "SLIDE_CROP": _size(
            (), "Average the scores of windows of this size in the resized image; empty: the whole image.", role="score"
        ),
        "SLIDE_STRIDE": _size((), "Distance between windows; empty: half of SLIDE_CROP.", role="score"),
        "CLASS_RULE": Option(
            "ignore",
            "Pixels of other classes: 'ignore' leaves them out, 'count' counts them as errors (DAFormer).",
            choices=("ignore", "count"),
            role="score",
        ),
        "WITH_AGGREGATION": Option(False, "Aggregate features and probabilities over the image, as PLCA's test.", role="score"),
        "FLIP": Option(False, "Average with the prediction on the mirrored image.", role="score"),
        "SCALES": Option((1.0,), "Average over these multiples of INPUT_SIZE_TARGET.", element=float, minimum=0.1, role="score"),
    },
    # What published numbers depend on; see docs/coming-from.md.
    "LEGACY": {
        "DUPLICATE_STEPS": Option(
            False, "SGD steps three times an iteration for convolutions of the backbone, four for shortcuts (ADVENT, DADA)."
        ),
        "SQUASHING_RESIZE": Option(
            False, "Resize training images to INPUT_SIZE whatever their shape (ADVENT, DADA); False: cover it and crop."
        ),
        "UNMASKED_DEPTH": Option(False, "Also learn depth where none was measured, such as the sky (DADA); False: leave it out."),
        "SYNTHIA_7_MAP": Option(
            False, "With 7 classes, ignore SYNTHIA's motorcycle, parking, terrain, rider, truck, bus, train and wall (DADA)."
        ),
        "PLCA_CLASS_ORDER": Option(False, "Number the 16 or 19 classes as PLCA does, in data, network and reports."),
        "LOGIT_ENSEMBLE": Option(False, "Ensembles, flips and scales average logits (ADVENT), not probabilities.", role="score"),
        "PLCA_LOVASZ_FACTOR": Option(False, "Multiply LAMBDA_LOVASZ by ITER_SIZE, as PLCA does (and by the number of GPUs)."),
    },
}


# Keys of ADVENT, DADA and the fork that would change nothing here, or that something else has replaced.
KEYS_OF_OTHERS = {
    "TRAIN.IGNORE_LABEL": "leave it out: it is 255 everywhere, as in ADVENT and DADA, which never read it",
    "TEST.IMG_MEAN": "leave it out: training and test subtract TRAIN.IMG_MEAN",
    "TEST.SNAPSHOT_STEP": "leave it out: TEST.MODE best tests every snapshot in the folder; TRAIN.SAVE_PRED_EVERY says "
    "how many there are",
    "TEST.SNAPSHOT_MAXITER": "leave it out: TEST.MODE best tests every snapshot in the folder; TRAIN.EARLY_STOP ends it",
    "TEST.WAIT_MODEL": "leave it out: a test never waits for snapshots; start it once the training has ended",
}
KEYS_OF_OTHERS |= dict.fromkeys(
    FOLDERS,
    "leave it out: a run writes to EXP_ROOT/snapshots/EXP_NAME and EXP_ROOT/logs/tensorboard/EXP_NAME, where a test of it looks",
)


def flat_options(options: Mapping[str, Any] = OPTIONS, prefix: str = "") -> dict[str, Option]:
    """Every option by its dotted name."""
    flat: dict[str, Option] = {}
    for key, value in options.items():
        flat.update({prefix + key: value} if isinstance(value, Option) else flat_options(value, f"{prefix}{key}."))
    return flat
