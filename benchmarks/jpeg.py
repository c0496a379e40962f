"""How fast the JPEG frames of a clip become a tensor: by simplejpeg, by torchvision, and torchvision alone.

    python benchmarks/jpeg.py --video VIDEO --out benchmarks/jpeg-cpu.json

16 frames of 128×171, JPEG of quality 90, one thread. The ways take turns, so that a busy moment hits all of them, and
medians of processor seconds are reported. All give the same pixels, or the script stops. "torchvision" is how packs are
read where simplejpeg is not installed, and were before it was; "alone" leaves out the look at the header.
"""
import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torchvision.io import decode_jpeg, ImageReadMode

from be_nb.data import decode as ours
from be_nb.machine.device import machine


def alone(files, height, width):
    frames = torch.empty(len(files), 3, height, width, dtype=torch.uint8)
    for k, file in enumerate(files):
        image: Any = decode_jpeg(torch.frombuffer(bytearray(file), dtype=torch.uint8), ImageReadMode.RGB)
        frames.numpy()[k] = image.numpy()
    return frames


def decoder_without(module):
    """What `jpegs_to_frames` decodes with where a module is not installed."""
    found, sys.modules[module] = sys.modules.get(module), None  # type: ignore[assignment]
    try:
        return ours._jpeg_decoder.__wrapped__()
    finally:
        sys.modules.pop(module)
        if found is not None:
            sys.modules[module] = found


def by(decoder):
    """`jpegs_to_frames` with a decoder of our choice."""
    def decode(files, height, width):
        ours._jpeg_decoder = lambda: decoder
        return ours.jpegs_to_frames(files, height, width)
    return decode


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", required=True, help="any video of 16 frames or more")
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--out", help="write the numbers to this JSON file, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clip = ours.decode(options.video, (128, 171))[:16]
    files = [ours.frame_to_bytes(image, "jpeg", 90) for image in clip]
    ways = {"simplejpeg": by(ours._jpeg_decoder()), "torchvision": by(decoder_without("simplejpeg")),
            "alone": alone}
    expected, seconds = alone(files, 128, 171), {name: [] for name in ways}
    for way in ways.values():
        if not torch.equal(way(files, 128, 171), expected):
            raise SystemExit("The pixels differ.")
    for _ in range(options.repeats):
        for name, way in ways.items():
            start = time.process_time()
            way(files, 128, 171)
            seconds[name].append(time.process_time() - start)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    record = {"machine": machine("cpu"), "commit": commit, "repeats": options.repeats, "frames": len(files),
              "clips_per_s": {name: round(1 / value, 1) for name, value in middle.items()},
              "times_torchvision": {name: round(middle["torchvision"] / value, 3) for name, value in middle.items()}}
    print(json.dumps(record, indent=1, ensure_ascii=False))
    if options.out:
        Path(options.out).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
