#!/usr/bin/env python3
"""`uvmlite` with the scattering head, written with plain PyTorch and an eager scan, as the peer of scripts/bench-dehaze.

bench-dehaze-peer.py WEIGHTS.safetensors INPUT_FOLDER OUTPUT_FOLDER THREADS: clears every picture of the folder, to PNG. Configuration and names are
the file's own.
"""
import json
import math
import os
import sys

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open

MOST_GAIN, FIRST_AIR = 3.7, 1.7


class Peer:
    def __init__(self, path):
        with safe_open(path, "pt") as f:
            self.config = json.loads(f.metadata()["network"])
            self.p = {k: f.get_tensor(k) for k in f.keys()}
        if self.config["head"] != "scattering":
            sys.exit(f"{path}: head {self.config['head']}, the peer knows scattering only")

    def conv(self, name, x, stride=1):
        w = self.p[name + ".weight"]
        return F.conv2d(x, w, self.p[name + ".bias"], stride, w.shape[-1] // 2 if stride == 1 else 0)

    def linear(self, name, x):
        return F.linear(x, self.p[name + ".weight"], self.p.get(name + ".bias"))

    def residual(self, name, x):
        return x + self.conv(name + ".conv2", self.conv(name + ".conv1", x).relu())

    def mamba(self, name, x):
        """(B, L, D) -> (B, L, D): one step of the recurrence after the other."""
        rank, n = self.p[name + ".dt_proj.weight"].shape[1], self.p[name + ".A_log"].shape[1]
        u, z = self.linear(name + ".in_proj", x).chunk(2, -1)
        w = self.p[name + ".conv1d.weight"]
        u = F.conv1d(u.mT, w, self.p[name + ".conv1d.bias"], padding=w.shape[-1] - 1, groups=w.shape[0])
        u = F.silu(u[..., : x.shape[1]]).mT
        dt, b, c = self.linear(name + ".x_proj", u).split([rank, n, n], -1)
        dt = F.softplus(self.linear(name + ".dt_proj", dt))
        decay = torch.exp(dt.unsqueeze(-1) * -torch.exp(self.p[name + ".A_log"]))
        drive = (dt * u).unsqueeze(-1) * b.unsqueeze(2)
        state, ys = torch.zeros_like(drive[:, 0]), []
        for i in range(x.shape[1]):
            state = decay[:, i] * state + drive[:, i]
            ys.append((state * c[:, i].unsqueeze(1)).sum(-1))
        y = torch.stack(ys, 1) + u * self.p[name + ".D"]
        return self.linear(name + ".out_proj", y * F.silu(z))

    def block(self, x):
        _, c, h, w = x.shape
        x = x + self.conv("ub.convb.2", self.conv("ub.convb.0", x).relu())
        x = F.layer_norm(x.flatten(2).mT, [c], self.p["ub.ln.weight"], self.p["ub.ln.bias"])
        side = self.config["channel_grid"]
        grid = F.adaptive_avg_pool2d(self.mamba("ub.model1", x).mT.reshape(-1, c, h, w), side)
        grid = self.mamba("ub.model3", grid.flatten(2)).reshape(-1, c, side, side)
        z = F.interpolate(grid, (h, w), mode="bilinear", align_corners=True).flatten(2)
        y = self.mamba("ub.model2", x).softmax(2) * z.mT
        return self.conv("ub.smooth", y.mT.reshape(-1, c, h, w))

    @staticmethod
    def dark_channel(x):
        def erode(t, r):
            return -F.max_pool2d(-t.amin(1, True), 2 * r + 1, 1, r)

        dark = [erode(x, 2), erode(x, 5)]
        weight = (dark[1] * 40.0).flatten(2).softmax(2)
        air = (x.flatten(2) * weight).sum(2, True).clamp_min(0.1).unsqueeze(-1)
        return [*dark, 1.0 - 0.95 * erode(x / air, 2), air.expand_as(x)]

    def look(self, x):
        h, w = x.shape[2:]
        seen = x if self.config.get("evidence", "none") == "none" else torch.cat([x, *self.dark_channel(x)], 1)
        y = self.conv("stem", F.pixel_unshuffle(F.pad(seen, (0, -w % 16, 0, -h % 16), mode="replicate"), 2))
        skips = []
        for level in range(3):
            skips.append(self.residual(f"encoder{level}", y))
            y = self.conv(f"down{level}", skips[-1], 2)
        y = y + self.block(y)
        flat = y.flatten(2)
        whole = self.linear("pooled.fc2", self.linear("pooled.fc1", torch.cat([flat.mean(2), flat.amax(2)], 1)).relu())
        whole, c = whole[..., None, None], y.shape[1]
        y = self.residual("middle", y + whole[:, :c])
        for level in (2, 1, 0):
            y = self.residual(f"decoder{level}", F.pixel_shuffle(self.conv(f"up{level}", y), 2) + skips[level])
        return F.pixel_shuffle(self.conv("head", y), 2)[..., :h, :w], whole[:, c:]

    @staticmethod
    def enlarge(maps, small, x):
        def mean(t):
            return F.avg_pool2d(t, 5, 1, 2, count_include_pad=False)

        guide = small.mean(1, True)
        m, g = mean(maps), mean(guide)
        a = (mean(maps * guide) - m * g) / (mean(guide.square()) - g.square() + 1e-3)
        a, b = (F.interpolate(mean(t), x.shape[2:], mode="bilinear") for t in (a, m - a * g))
        return a * x.mean(1, True) + b

    @torch.inference_mode()
    def __call__(self, x):
        h, w = x.shape[2:]
        most, longer = self.config["work_size"], max(h, w)
        if longer <= most:
            maps, air = self.look(x)
        else:
            small = F.adaptive_avg_pool2d(x, [max(1, math.floor(s * most / longer + 0.5)) for s in (h, w)])
            maps, air = self.look(small)
            maps = self.enlarge(maps, small, x)
        return x + maps.clamp(-MOST_GAIN, MOST_GAIN).sinh() * (x - (air + FIRST_AIR).sigmoid())


def main():
    weights, source, target, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    peer = Peer(weights)
    for name in sorted(os.listdir(source)):
        x = torch.from_numpy(np.array(Image.open(os.path.join(source, name)).convert("RGB")))
        y = peer(x.permute(2, 0, 1).unsqueeze(0).float() / 255)[0]
        y = (y.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(y).save(os.path.join(target, os.path.splitext(name)[0] + ".png"), compress_level=1)


main()
