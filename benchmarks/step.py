"""A training step of MoCo + BE: ours, ours without each optimisation, and the authors' step written plainly.

    python benchmarks/step.py                                     # tiny, at the size of the built-in set
    python benchmarks/step.py --case r3d18:2x8x56 --out step.json # network:videos×frames×side, JSON record

All contestants take the same batches, one step each in turn, round by round, so that a busy moment hits all of them;
medians of wall clock and of processor seconds are reported, and their ratio to our step as it is by default ("ours").

The reference is what a plain reading of the paper gives: clip by clip and frame by frame in augmentation and
distractor, a forward pass for query, key and negative each, float32, PyTorch's default memory order. Its networks are
ours, its random numbers are the ones our step draws, and so its loss is the same (tests/test_bench.py).
"""
import argparse
import json
import math
import platform
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF

from be_nb.augment import IMAGENET_MEAN, IMAGENET_STD
from be_nb.config import check_choice, override
from be_nb.data.sources import build_loader, build_source
from be_nb.distractor import draw_distractors
from be_nb.machine.device import bf16_is_fast, bf16_is_safe, machine, pick_device
from be_nb.machine.speed import compile_method
from be_nb.methods.base import build_method
from be_nb.pixels import affine_matrix
from be_nb.settings import PretrainConfig
from be_nb.studies.bench import ceilings, RandomVideos
from be_nb.training.run import restore
from be_nb.training.step import learning_rate, seed_of, train_step


def augment_by_loops(clips, drawn, size):
    """uint8 (b, t, c, h, w) → float32 (b, c, t, size, size), every frame by itself, with the drawn parameters."""
    views = []
    for i, clip in enumerate(clips):
        one = [value[i:i + 1] for value in drawn]
        matrix = affine_matrix(*one[:5], height=clip.shape[-2], width=clip.shape[-1]).to(clip.device)
        brightness, contrast, saturation, hue = (float(value) for value in one[5:])
        frames = []
        for frame in clip:
            grid = F.affine_grid(matrix, [1, 3, size, size], align_corners=False)
            frame = F.grid_sample(frame[None].float() / 255, grid, padding_mode="border", align_corners=False)[0]
            frame = TF.adjust_brightness(frame, brightness)
            frame = TF.adjust_contrast(frame, contrast)
            frame = TF.adjust_saturation(frame, saturation)
            frame = TF.adjust_hue(frame, hue)
            frames.append(TF.normalize(frame, list(IMAGENET_MEAN), list(IMAGENET_STD)))
        views.append(torch.stack(frames, 1))
    return torch.stack(views)


def distract_by_loops(views, drawn):
    """float (b, c, t, h, w) → the same, with a still frame added to every frame."""
    out = torch.empty_like(views)
    for i, view in enumerate(views):
        lam, still = float(drawn.lam[i]), view[:, int(drawn.frame[i])]
        for t in range(view.shape[1]):
            out[i, :, t] = (1 - lam) * view[:, t] + lam * still
    return out


class ReferenceStep:
    """The authors' step, plainly: linear or MLP head, intra-frame distractor, intra-video negative, no BN groups."""

    def __init__(self, config, device):
        what = config.method, config.distractor, config.negative, config.bn_groups
        if what != ("moco", "intra_frame", "intra_video", 1):
            raise ValueError("The reference step is MoCo + BE with bn_groups=1 and nothing else.")
        start: Any = build_method(config).to(device).train()
        self.config = config
        self.sample = start.views.augment.sample
        self.query, self.key = (torch.nn.Sequential(*nets) for nets in (
            (start.backbone, start.head), (start.key_backbone, start.key_head)))
        self.queue, self.pointer = start.queue.keys.clone(), 0
        kind, own = ((torch.optim.AdamW, {}) if config.optimizer == "adamw" else
                     (torch.optim.SGD, {"momentum": config.sgd_momentum}))
        self.optimizer = kind(self.query.parameters(), lr=config.lr, weight_decay=config.weight_decay, **own)

    def loss(self, clips, step):
        """uint8 (b, 2, t, c, h, w) → loss, keys (b, dim)."""
        config, generator = self.config, torch.Generator().manual_seed(seed_of(self.config.seed, step))
        draw = lambda: self.sample(len(clips), *clips.shape[-2:], generator)
        view = lambda window: augment_by_loops(window, draw(), config.size)
        original = view(clips[:, 0])
        still = draw_distractors(len(clips), config.frames, config.gamma, False, generator)
        distracted = distract_by_loops(original, still)
        positive, negative = view(clips[:, 0]), view(clips[:, 1])
        query = F.normalize(self.query(distracted), dim=1)
        with torch.no_grad():
            key = F.normalize(self.key(positive), dim=1)
        intra = F.normalize(self.query(negative), dim=1)
        logits = torch.cat([(query * key).sum(1, keepdim=True), query @ self.queue.clone().t(),
                            (query * intra).sum(1, keepdim=True)], 1) / config.temperature
        return F.cross_entropy(logits, torch.zeros(len(clips), dtype=torch.long, device=clips.device)), key

    def __call__(self, clips, step):
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)
        loss, keys = self.loss(clips, step)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(self.key.parameters(), self.query.parameters()):
                slow.mul_(self.config.momentum).add_(fast, alpha=1 - self.config.momentum)
            for key in keys:
                self.queue[self.pointer] = key
                self.pointer = (self.pointer + 1) % len(self.queue)
        return loss.item()


class OurStep:
    """The trainer's step, with parts of it replaced by loops on request."""

    def __init__(self, config, device, loops=()):
        run = restore(config, Path(), device, None)
        self.config, self.method, self.optimizer = config, run.method, run.optimizer
        augment, distractor = self.method.views.augment, self.method.views.distractor
        if "augment" in loops:
            augment.view = lambda clips, drawn: augment_by_loops(clips, drawn, augment.size)
        if "distractor" in loops:
            distractor.mix = distract_by_loops
        if config.compile:
            example = torch.randn(config.batch_size, 3, config.frames, config.size, config.size, device=device)
            print("compiled:", compile_method(self.method, example, config.amp))

    def __call__(self, clips, step):
        return train_step(self.method, {"clips": clips}, self.optimizer, step, self.config)["loss"].item()


def contestants(config, device, skip=()):
    """name → step: ours, ours with one thing changed, the reference; without those whose names are in `skip`."""
    ours = lambda loops=(), **changes: lambda: OurStep(override(config, **changes), device, loops)
    number = {}
    if bf16_is_safe(device):
        number = {"without bf16": ours(amp="fp32")} if bf16_is_fast(device) else {"with bf16": ours(amp="bf16")}
    plain = override(config, amp="fp32", memory_order="default")
    makers = {"ours": ours(), "without batched augmentation": ours(["augment"]),
              "without batched distractor": ours(["distractor"]),
              # one of the next two is "ours" once more, and shows how much the numbers scatter
              "channels-last": ours(memory_order="channels_last"), "default order": ours(memory_order="default"),
              **number, "with joint": ours(joint=True), "with recompute": ours(activations="recompute"),
              "with compile": ours(compile=True), "reference": lambda: ReferenceStep(plain, device)}
    for name in skip:
        check_choice("contestant to skip", name, list(makers)[1:])  # the others are compared with "ours"
    return {name: make() for name, make in makers.items() if name not in skip}


def parse_case(text):
    """`network:videos×frames×side`, × or x → config. Views above 24 pixels are made of random frames."""
    network, shape = text.split(":")
    videos, frames, side = (int(n) for n in shape.replace("×", "x").split("x"))
    return PretrainConfig(backbone=network, batch_size=videos, frames=frames, size=side, data_size=max(64, 2 * videos),
                     frame_size=(side * 8 // 7, side * 8 // 7 * 4 // 3))


def compare(config, device, repeats, skip=()):
    """Rows with medians, for the steps of `contestants` on the same batches."""
    source = build_source(config) if config.size <= 24 else RandomVideos(64, 3 * config.frames + 8, *config.frame_size)
    runners = contestants(config, device, skip)
    loader = build_loader(config, runners["ours"].method.windows(config), source)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wall, processor, losses = ({name: [] for name in runners} for _ in range(3))
    for step, batch in zip(range(repeats + 1), loader):
        clips = batch["clips"].to(device)
        for name, runner in runners.items():
            wait()
            start, spent = time.perf_counter(), time.process_time()
            losses[name].append(runner(clips, step))
            wait()
            wall[name].append(time.perf_counter() - start)
            processor[name].append(time.process_time() - spent)
    middle = lambda times: statistics.median(times[1:])  # the first step warms up
    return [dict(step=name, wall_ms=1e3 * middle(wall[name]), cpu_ms=1e3 * middle(processor[name]),
                 wall_ratio=middle(wall[name]) / middle(wall["ours"]),
                 cpu_ratio=middle(processor[name]) / middle(processor["ours"]),
                 wall_range_ms=[1e3 * min(wall[name][1:]), 1e3 * max(wall[name][1:])], first_loss=losses[name][0])
            for name in runners]


def commit():
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", default=["tiny:64x8x24"], help="network:videos×frames×side")
    parser.add_argument("--repeats", type=int, default=7, help="measured rounds, after one that is not")
    parser.add_argument("--skip", nargs="+", default=[], metavar="NAME", help="leave out, such as 'with bf16'")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--out", help="write the numbers to this JSON file, too")
    options = parser.parse_args()
    device = pick_device(options.device)
    best = ceilings(device, "fp32")._asdict()
    if bf16_is_safe(device):
        best["matrix_bf16"] = ceilings(device, "bf16").matrix
    record = {"machine": machine(device), "python": platform.python_version(), "commit": commit(),
              "command": shlex.join(["python", "benchmarks/step.py", *sys.argv[1:]]), "repeats": options.repeats,
              "bf16_is_fast": bf16_is_fast(device), "ceilings": best, "cases": {}}
    print(f"{record['machine']}\nmatrix product {best['matrix'] / 1e9:.0f} GFLOP/s in fp32, "
          f"{best.get('matrix_bf16', math.nan) / 1e9:.0f} in bf16; copy {best['copy'] / 1e9:.1f} GB/s")
    for case in options.case:
        rows = record["cases"][case] = compare(parse_case(case), device, options.repeats, options.skip)
        print(f"\n{case}\n{'step':30}{'wall ms':>10}{'÷ ours':>8}{'CPU ms':>10}{'÷ ours':>8}{'first loss':>12}")
        for row in rows:
            print(f"{row['step']:30}{row['wall_ms']:10.1f}{row['wall_ratio']:8.2f}{row['cpu_ms']:10.1f}"
                  f"{row['cpu_ratio']:8.2f}{row['first_loss']:12.5f}", flush=True)
    if options.out:
        with open(options.out, "w", encoding="utf8") as file:
            json.dump(record, file, indent=1, ensure_ascii=False)


if __name__ == "__main__":
    main()
