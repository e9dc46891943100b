"""One thread of nnU-Net's augmentation: `bench-augment-peer.py SECONDS PATCH:CHANNELS...`, called by bench-augment.

Prints `peer PATCH:CHANNELS <patches a second of processor time>`. What is timed is what a worker of nnU-Net does with a case in memory: the enlarged crop
and the default training transforms (without those of deep supervision).
"""
import sys
import time

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

torch.set_num_threads(1)
SECONDS = float(sys.argv[1])


def settings(patch):
    """nnUNetTrainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size, which cannot be called without a run."""
    if len(patch) == 2:
        flat = False
        degrees = 15 if max(patch) / min(patch) > 1.5 else 180
    else:
        flat = max(patch) / patch[0] > 3
        degrees = 180 if flat else 30
    turn = (-degrees / 360 * 2 * np.pi, degrees / 360 * 2 * np.pi)
    first = get_patch_size(patch, turn, turn, turn, (0.85, 1.25))
    if flat:
        first[0] = patch[0]
    return turn, flat, [int(n) for n in first]


def case(size, channels):
    n = int(np.prod(size))
    one = (np.arange(n, dtype=np.int64) * 7919 % 1009).astype(np.float32).reshape(size) / 500 - 1
    blocks = sum(np.ix_(*[np.arange(s) // 20 for s in size]))
    return np.stack([one] * channels), (blocks % 3).astype(np.int16)[None]


for text in sys.argv[2:]:
    shape, channels = text.split(":")
    patch, channels = tuple(int(n) for n in shape.split("x")), int(channels)
    turn, flat, first = settings(patch)
    size = tuple(n * 5 // 4 for n in patch)
    image, seg = case(size, channels)
    transforms = nnUNetTrainer.get_training_transforms(
        patch, turn, None, tuple(range(len(patch))), flat, use_mask_for_norm=[False] * channels)

    def one():
        low = [np.random.randint(-((f - p) // 2), s - p - (f - p) // 2 + 1) for s, p, f in zip(size, patch, first)]
        box = [[a, a + f] for a, f in zip(low, first)]
        data = torch.from_numpy(crop_and_pad_nd(image, box, 0)).float()
        labels = torch.from_numpy(crop_and_pad_nd(seg, box, -1)).to(torch.int16)
        return transforms(image=data, segmentation=labels)

    np.random.seed(1)
    torch.manual_seed(1)
    for _ in range(12):  # the blur measures both of its ways once for each length
        one()
    begin, done = time.process_time(), 0
    while time.process_time() - begin < SECONDS:
        one()
        done += 1
    print(f"peer {text} {done / (time.process_time() - begin):.3f}", flush=True)
