"""Speed and memory of augmentation, distractor and synthetic generator, beside a plain copy of the same bytes.

    python benchmarks/augment.py                    # a table, on the CPU, and on the GPU where there is one
    python benchmarks/augment.py --out result.json  # and the numbers as JSON

Each step is timed several times in turn with a copy of its input, round by round, so that a busy moment hits both; the
medians and their ratio are reported. "copies" is how many plain copies of the uint8 input the step takes as long as.
"peak" is the most memory that one call holds, as a multiple of its input's bytes (clips are uint8, views float32).

On a machine shared with others, `--cpu-time` counts the processor's seconds instead of the clock's, on one thread.
"""
import argparse
import json
import os
import platform
import statistics
import time
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from be_nb.augment import Augment, CenterCrop
from be_nb.data.scenebias import SceneBias
from be_nb.distractor import Distractor, VARIANTS

# name → (clips, frames, height, width, side of the view): the miniature, and the paper's sizes with few clips
SIZES = {"miniature": (64, 8, 30, 30, 24), "112 px": (8, 16, 128, 171, 112), "224 px": (2, 16, 256, 342, 224)}
JITTER: dict = dict(brightness=.5, contrast=.5, saturation=.25)


def steps(size, side, device):
    """name → (function, its input): the input is the uint8 batch, or for the distractor what the augmentation made."""
    b, t, h, w, _ = size
    torch.manual_seed(0)
    clips = torch.randint(0, 256, (b, t, 3, h, w), dtype=torch.uint8).to(device)
    views = CenterCrop(side)(clips)
    found = {"crop": (Augment(side), clips), "+ rotation": (Augment(side, degrees=10), clips),
             "+ brightness, contrast, saturation": (Augment(side, degrees=10, **JITTER), clips),
             "+ hue (the authors' recipe)": (Augment(side, 10, (.875, .875), **JITTER, hue=.5), clips),
             "centre crop (test)": (CenterCrop(side), clips)}
    return found | {f"distractor {name}": (Distractor(name), views) for name in VARIANTS if name != "none"}


CLOCK = [time.perf_counter]  # the last one counts


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(function, argument, device, calls):
    wait(device)
    start = CLOCK[-1]()
    for _ in range(calls):
        function(argument)
    wait(device)
    return (CLOCK[-1]() - start) / calls


def compare(function, argument, device, repeats):
    """Medians of the step and of a copy of its input, measured in turn."""
    for _ in range(3):
        function(argument), argument.clone()
    calls = max(1, min(50, round(.02 / max(seconds(function, argument, device, 1), 1e-6))))
    rounds = [(seconds(function, argument, device, calls), seconds(torch.clone, argument, device, calls))
              for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*rounds)]


def peak_bytes(function, argument, device):
    """The most memory that one call holds beyond its input, bytes."""
    function(argument)
    if device == "cuda":
        wait(device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function(argument)
        wait(device)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function(argument)
    profiler: Any = recorded.profiler
    events = profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(accumulate(change for _, change in changes), default=0)


def generator_speed(repeats, clips=256):
    """Clips a second of SceneBias: rendering all of a set once."""
    def render():
        source = SceneBias("pretrain", size=clips, seed=0)
        for i in range(clips):
            source.read(i, [0])
    render()
    took = statistics.median(seconds(lambda _: render(), None, "cpu", 1) for _ in range(repeats))
    pixels = torch.zeros(clips, 40, 3, 30, 30, dtype=torch.uint8)
    copy = statistics.median(seconds(torch.clone, pixels, "cpu", 5) for _ in range(repeats))
    return row_of("SceneBias, 40 frames of 30×30", "miniature", "cpu", clips, pixels.nbytes, took, copy)


def row_of(step, size, device, clips, nbytes, took, copy, peak=None):
    return dict(step=step, size=size, device=device, ms=took * 1e3, clips_per_s=clips / took, copies=took / copy,
                peak=peak, gb_per_s=nbytes / took / 1e9, copy_gb_per_s=nbytes / copy / 1e9)


def machine(device):
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] \
        if info.exists() else [platform.processor()]
    return f"{names[0]}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="write the numbers to this JSON file, too")
    parser.add_argument("--repeats", type=int, default=9, help="rounds a step; the median counts")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    parser.add_argument("--cpu-time", action="store_true", help="one thread, processor seconds; no GPU")
    options = parser.parse_args()
    if options.cpu_time:
        torch.set_num_threads(1)
        CLOCK.append(time.process_time)
    devices = ["cpu"] + ["cuda"] * (torch.cuda.is_available() and not options.cpu_time)
    about = {"torch": torch.__version__, "python": platform.python_version(), "repeats": options.repeats,
             "clock": "processor seconds" if options.cpu_time else "wall",
             **{device: machine(device) for device in devices}, "load": round(os.getloadavg()[0], 1)}
    print("\n".join(f"{key}: {value}" for key, value in about.items()))
    header = f"{'step':36}{'ms':>9}{'clips/s':>10}{'GB/s':>8}{'copy GB/s':>11}{'copies':>8}{'peak':>7}"
    rows = []

    def show(row):
        peak = f"{row['peak']:.1f}×" if row["peak"] is not None else "–"
        print(f"{row['step']:36}{row['ms']:9.2f}{row['clips_per_s']:10.0f}{row['gb_per_s']:8.2f}"
              f"{row['copy_gb_per_s']:11.1f}{row['copies']:8.1f}{peak:>7}", flush=True)
        rows.append(row)

    for device in devices:
        for size_name in options.sizes:
            b, t, h, w, side = SIZES[size_name]
            print(f"\n{device}, {size_name}: {b} clips of {t}×3×{h}×{w} → {side}×{side}\n{header}")
            for step, (function, argument) in steps(SIZES[size_name], side, device).items():
                took, copy = compare(function, argument, device, options.repeats)
                peak = None if options.no_memory else peak_bytes(function, argument, device) / argument.nbytes
                show(row_of(step, size_name, device, b, argument.nbytes, took, copy, peak))
    print(f"\ncpu, generator\n{header}")
    show(generator_speed(min(options.repeats, 3)))
    if options.out:
        with open(options.out, "w", encoding="utf8") as file:
            json.dump({"machine": about, "rows": rows}, file, indent=1, ensure_ascii=False)


if __name__ == "__main__":
    main()
