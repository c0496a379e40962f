"""How fast training clips come from video files and from packs, one core, side by side on the same clips.

    python benchmarks/data.py --videos ../shared/data/clips --out benchmarks/data-cpu.json

Every way gives the same thing: 16 consecutive frames of 128×171, uint8 (16, 3, 128, 171), from random places of random
videos. Ways take turns, round by round, so that a busy moment hits all; medians are reported. The clock counts the
processor's seconds of this process on one thread: a machine shared with others then measures nearly the same. Files
are in the page cache. Decoders that are not installed (OpenCV, decord) are left out.
"""
import argparse
import importlib
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch.utils.data import DataLoader

from be_nb.data.clips import ClipDataset, EpochSampler
from be_nb.data.decode import count_frames, decode, ToRGB, video_frames
from be_nb.data.lists import Split
from be_nb.data.pack.read import PackedVideos
from be_nb.data.pack.write import encode_video, pack, PackSettings
from be_nb.data.videos import VideoFolder
from be_nb.machine.device import machine

FRAMES, SIZE = 16, (128, 171)


def short_gop(source, target, gop=12):
    "Re-encode a video at the size of training: H.264, a key frame every `gop` frames, no B-frames."
    with av.open(str(target), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "18", "g": str(gop), "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = SIZE[0], SIZE[1] + 1, "yuv420p"  # this codec wants even sizes
        for k, image in enumerate(decode(source, (SIZE[0], SIZE[1] + 1))):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = k
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def to_clip(images):
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def with_opencv(cv2, path, start):
    capture, images = cv2.VideoCapture(str(path)), []
    for k in range(start + FRAMES):  # in order: setting a position is not exact in AVI files
        capture.grab()
        if k >= start:
            image = cv2.resize(capture.retrieve()[1], (SIZE[1], SIZE[0]), interpolation=cv2.INTER_CUBIC)
            images.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    return to_clip(images)


def with_decord(decord, path, start):
    reader = decord.VideoReader(str(path), width=SIZE[1], height=SIZE[0], num_threads=1)
    return to_clip(list(reader.get_batch(range(start, start + FRAMES)).asnumpy()))


def others():
    "Name → function, for the decoders that are installed here."
    found = {}
    for name, function in (("cv2", with_opencv), ("decord", with_decord)):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        if name == "cv2":
            module.setNumThreads(1)
        found[f"{name} {module.__version__}"] = lambda path, start, f=function, m=module: f(m, path, start)
    return found


def size_of(paths):
    return sum(os.path.getsize(p) for p in paths)


def ways(videos, work):
    "Name → (function of video and first frame, bytes on disk)."
    names = [p.name for p in videos]
    split, gop = Split(names, [0] * len(names)), work / "gop"
    gop.mkdir()
    for path in videos:
        short_gop(path, gop / f"{path.name}.mp4")
    mp4 = [gop / f"{name}.mp4" for name in names]
    found = {}
    for kind, files in (("original AVI", videos), ("H.264, key frame every 12", mp4)):
        source = VideoFolder(files[0].parent, Split([p.name for p in files], [0] * len(files)), SIZE)
        read = lambda i, k, s=source: s.read(i, np.arange(k, k + FRAMES))
        found[f"{kind}, PyAV {av.__version__}"] = read, size_of(files)
        for name, function in others().items():
            found[f"{kind}, {name}"] = (lambda i, k, f=function, p=files: f(p[i], k)), size_of(files)
    everything = np.concatenate([decode(p, SIZE) for p in videos]).transpose(0, 3, 1, 2)
    for codec, quality in (("jpeg", 90), ("jpeg", 75), ("raw", 90)):
        out = work / f"{codec}{quality}"
        pack(videos[0].parent, {"all.txt": split}, out, frame_size=SIZE, codec=codec, quality=quality, progress=False)
        source = PackedVideos(out, "all.txt")
        name = f"pack, {codec}" + (f" quality {quality}" if codec == "jpeg" else "")
        found[name] = (lambda i, k, s=source: s.read(i, np.arange(k, k + FRAMES))), size_of(out.iterdir())
    np.save(work / "all.npy", everything)
    table, first = np.load(work / "all.npy", mmap_mode="r"), np.cumsum([0] + [count_frames(p) for p in videos])
    found["uint8 memory map (ceiling)"] = (lambda i, k: torch.from_numpy(
                                               table[first[i] + k:first[i] + k + FRAMES].copy()),
                                           size_of([work / "all.npy"]))
    return found, len(everything)


def clips_per_second(found, counts, repeats, budget):
    "Median, lowest and highest of each way; every round draws the same clips for all of them."
    calls = {}
    for name, (read, _) in found.items():
        start = time.process_time()
        read(0, 0)
        calls[name] = 2 + int(budget / max(time.process_time() - start, 1e-4))
    speeds = {name: [] for name in found}
    for r in range(repeats):
        for name, (read, _) in found.items():
            rng = np.random.default_rng(r)
            videos = rng.integers(len(counts), size=calls[name])
            starts = [int(rng.integers(counts[i] - FRAMES + 1)) for i in videos]
            begin = time.process_time()
            for i, start in zip(videos.tolist(), starts):
                clip = read(i, start)
                assert clip.shape[:3] == (FRAMES, 3, SIZE[0])
            speeds[name].append(calls[name] / (time.process_time() - begin))
    return {name: (statistics.median(s), min(s), max(s)) for name, s in speeds.items()}


def packing_speed(videos, repeats):
    "Frames a second and core: decoding alone, with scaling, and packing."
    def scaled(path):
        to_rgb = ToRGB(SIZE)
        return sum(1 for frame in video_frames(path) if len(to_rgb(frame)))
    steps = {"decode": count_frames, "decode and scale": scaled,
             "pack, jpeg quality 90": lambda p: len(encode_video(p, PackSettings(frame_size=SIZE))[0]),
             "pack, raw": lambda p: len(encode_video(p, PackSettings(frame_size=SIZE, codec="raw"))[0])}
    speeds = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            begin = time.process_time()
            frames = sum(map(step, videos))
            speeds[name].append(frames / (time.process_time() - begin))
    return {name: statistics.median(s) for name, s in speeds.items()}


def own_memory(pid):
    "Megabytes that a process holds for itself, without files mapped into memory; None where this cannot be asked."
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("RssAnon"))


def worker_memory(source, clips):
    "Memory of one loader process after every tenth of `clips` clips of 8 frames."
    dataset = ClipDataset(source, 8, 1)
    sampler = EpochSampler(len(dataset), 10, steps=clips // 10)
    loader: Any = iter(DataLoader(dataset, batch_sampler=sampler, num_workers=1))
    pid, seen = loader._workers[0].pid, []
    for k, _ in enumerate(loader, 1):
        if k % (clips // 100) == 0:
            seen.append(own_memory(pid))
    return seen


def commit():
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                          cwd=Path(__file__).parent)
    return done.stdout.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", required=True, help="folder of AVI files")
    parser.add_argument("--match", default="v_*.avi", help="which of them; the default are the names of UCF101")
    parser.add_argument("--out", help="write the numbers to this JSON file, too")
    parser.add_argument("--repeats", type=int, default=7, help="rounds; the median counts")
    parser.add_argument("--budget", type=float, default=.5, help="seconds a way and round")
    parser.add_argument("--clips", type=int, default=10_000, help="clips of the memory test")
    options = parser.parse_args()
    torch.set_num_threads(1)
    videos = sorted(Path(options.videos).glob(options.match))
    if not videos:
        parser.error(f"no {options.match} in {options.videos}")
    counts = [count_frames(path) for path in videos]
    about = {"machine": machine("cpu"), "python": platform.python_version(), "clock": "processor seconds, one thread",
             "commit": commit(), "repeats": options.repeats, "videos": len(videos), "frames": sum(counts),
             "clips": options.clips, "load": round(os.getloadavg()[0], 1)}
    with tempfile.TemporaryDirectory() as folder:
        found, total = ways(videos, Path(folder))
        speeds = clips_per_second(found, counts, options.repeats, options.budget)
        rows = [dict(way=name, clips_per_s=round(mid, 1), lowest=round(low, 1), highest=round(high, 1),
                     bytes_per_clip=round(found[name][1] / total * FRAMES))
                for name, (mid, low, high) in speeds.items()]
        packing = {name: round(speed) for name, speed in packing_speed(videos, options.repeats).items()}
        memory = {codec: worker_memory(PackedVideos(Path(folder) / f"{codec}90", "all.txt"), options.clips)
                  for codec in ("jpeg", "raw")}
    print(json.dumps(about, indent=1))
    for row in rows:
        print(f"{row['way']:45}{row['clips_per_s']:10.1f} clips/s{row['bytes_per_clip'] / 1e3:10.1f} KB a clip")
    print("frames a second:", packing, "\nMB of a worker:", memory)
    if options.out:
        text = json.dumps({"about": about, "reading": rows, "packing": packing, "worker_mb": memory}, indent=1,
                          ensure_ascii=False)
        Path(options.out).write_text(text + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
