"""What all datasets share: a list of files, a label reader, an id map and a transform."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from dada.dataset import image_files, packed, storage
from dada.dataset.sample import Sample
from dada.dataset.sampler import Draw, mixed_seed, seeded
from dada.label_sets import IGNORE_LABEL, LabelSet

MOST_IN_A_ROW = 10  # unreadable samples in a row, each drawn to replace the last: these are not a few bad files


class Item(NamedTuple):
    """The files of one sample. `label` and `depth` are None where they are not to be read."""

    image: str
    label: str | None
    depth: str | None
    name: str


class SegmentationDataset(Dataset):
    """Samples read from files; a new dataset is a list of Items, the ids it defines and what they map to.

    `dataset[index]` is sample `index`; `dataset[Draw(index, step, slot)]` is the same sample under the
    augmentation of that training step. Neither reads or changes the global random state.

    While `skip_bad_files` is True, a Draw of a sample that cannot be read gives another one in its place, chosen by
    (seed, stream, step, slot) alone, and says so in `Sample.skipped`.

    Args:
        title: the dataset's name for messages.
        items: what to read, in a fixed order.
        classes: names and colours of the train ids.
        id_map: (256,) uint8, train id of every file id.
        defined_ids: (256,) bool, the file ids that may occur.
        transform: `transform(image, label, depth) -> Views`; see dada.dataset.transforms.
        labelled_ids: (256,) bool, the file ids of all classes that the dataset labels, trained here or not; None:
            those that are trained.
        seed: of the experiment.
        stream: keeps the augmentations of two datasets of one experiment apart; empty for the title.
    """

    mixed_shapes = False  # True: images of many shapes, which are fitted into the input size and never squashed
    size_advice = "They must come from the same release of the dataset, neither of them resized."
    white = 0.0  # value of white in image files of more than 8 bits per channel, see samples.to_8_bits; 0: found in each file
    orientation = "auto"  # what to do with images that EXIF says are stored rotated, see image_files.read_image
    codes: Sequence = ()  # what the indices of the id map stand for in label files, where they are not the ids themselves
    label_kind = packed.IDS  # what its label files hold, or packed.COLORS
    first_channel = False  # whether label files of several channels hold ids in the first
    skip_bad_files = False  # whether samples of training steps may be replaced; those asked for by index never are

    def __init__(
        self,
        title: str,
        items: Sequence[Item],
        *,
        classes: LabelSet,
        id_map: np.ndarray,
        defined_ids: np.ndarray,
        transform: Callable,
        labelled_ids: np.ndarray | None = None,
        seed: int = 0,
        stream: str = "",
    ) -> None:
        strange = np.unique(id_map[(id_map >= classes.num_classes) & (id_map != IGNORE_LABEL)])
        if strange.size:  # on a GPU the losses do not check
            raise ValueError(
                f"{title}: the id map gives train ids {image_files.first_few(strange.tolist())}, but there are "
                f"{classes.num_classes} classes; expected 0 to {classes.num_classes - 1}, and {IGNORE_LABEL} for what is left out"
            )
        self.title = title
        self.items = list(items)
        self.classes = classes
        self.id_map = id_map
        self.defined_ids = defined_ids
        self.labelled_ids = id_map != IGNORE_LABEL if labelled_ids is None else labelled_ids
        self.transform = transform
        self.seed = seed
        self.stream = stream or title

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: int | Draw) -> Sample:
        if not isinstance(key, Draw):
            return self._sample(Draw(key, 0, 0), self._read(key))
        draw, skipped = key, []
        while True:
            try:
                pictures = self._read(draw.index)
                break
            except (ValueError, OSError) as error:
                if not self.skip_bad_files:
                    raise
                skipped.append((self.items[draw.index].image, str(error)))
                if len(skipped) == MOST_IN_A_ROW:
                    raise ValueError(
                        f"{MOST_IN_A_ROW} samples of {self.title} in a row, each drawn to replace the last, cannot be read: "
                        f"ON_BAD_FILE=skip is for a few bad files. Is the disk still mounted? The last error: {error}"
                    ) from error
                other = mixed_seed(self.seed, self.stream, "in place of", draw.step, draw.slot, len(skipped))
                draw = draw._replace(index=other % len(self))
        return self._sample(draw, pictures)._replace(skipped=tuple(skipped))

    def _read(self, index: int) -> tuple[Image.Image, Image.Image | None, np.ndarray | None]:
        """Image, label and depth of sample `index`, whole, checked against each other."""
        item = self.items[index]
        label = self.read_label(index)
        depth = None if item.depth is None else image_files.read_inverse_depth(item.depth)
        image = self.read_image(index, label, depth)
        sizes = {"label": label and label.size, "depth": None if depth is None else depth.shape[::-1]}
        for kind, size in sizes.items():
            if size not in (None, image.size):
                raise ValueError(
                    f"{kind} and image differ in size: {getattr(item, kind)} is {size[0]}x{size[1]}, "
                    f"{item.image} is {image.width}x{image.height} (width x height). {self.size_advice}"
                )
        return image, label, depth

    def read_image(self, index: int, label: Image.Image | None = None, depth: np.ndarray | None = None) -> Image.Image:
        """The whole image of sample `index`, PIL RGB; the size of its label or depth (H, W) may tell if it is stored rotated."""
        beside = label.size if label is not None else None if depth is None else depth.shape[::-1]
        return image_files.read_image(self.items[index].image, self.white, beside=beside, orientation=self.orientation)

    def _sample(self, draw: Draw, pictures: tuple[Image.Image, Image.Image | None, np.ndarray | None]) -> Sample:
        """The augmented sample."""
        image, label, depth = pictures
        with seeded(self.seed, self.stream, draw.step, draw.slot, draw.index):
            views = self.transform(image, label, depth, **({} if draw.wanted < 0 else {"wanted": draw.wanted}))
        item = self.items[draw.index]
        size = storage.original_size(item.image) or (image.height, image.width)
        return Sample(views.image, views.label, views.depth, item.name, size, views.view)

    def read_label(self, index: int) -> Image.Image | None:
        """Train ids of sample `index` at the file's own size, PIL "L"; None where labels are not read.

        Raises:
            ValueError: the file is broken, or holds an id that the dataset does not define.
        """
        ids = self.read_ids(index)
        return None if ids is None else self.train_ids(ids, self.items[index].label)

    def read_ids(self, index: int) -> Image.Image | None:
        """What the label file of sample `index` holds: ids, see image_files.read_label_ids; None where labels are not read."""
        path = self.items[index].label
        return None if path is None else image_files.read_label_ids(path, first_channel=self.first_channel)

    def train_ids(self, ids: Image.Image, path: str) -> Image.Image:
        """What `read_ids` returned -> train ids; `path` for the message. Raises ValueError as `read_label`."""
        return image_files.to_train_ids(ids, path, self.id_map, self.defined_ids, self.title)

    def foreign_ids(self, ids: set[int]) -> str:
        """Why these ids, from many label files, seem to follow another numbering, though the dataset defines them; "" if not."""
        return ""

    @property
    def other_ids(self) -> np.ndarray:
        """File ids of classes that the dataset labels but that are not trained, (256,) bool."""
        return self.labelled_ids & (self.id_map == IGNORE_LABEL)

    @property
    def num_classes(self) -> int:
        return self.classes.num_classes
