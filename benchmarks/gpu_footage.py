"""Several folders of videos as one small folder, to be carried to a machine with a GPU, for `benchmarks/gpu.py`.

    python benchmarks/gpu_footage.py --sets VIDEOS/ucf101-6 VIDEOS/mlr511 VIDEOS/jhmdb-21 --learn 2 --out .gpu/footage

Each set has `train.txt` and `val.txt`. The folder gets a copy of every video of these lists, with how many frames each
must give (`frames.json`), the lists `SET-train.txt` and `SET-val.txt` of each set, and `pretrain.txt`, the training
lists of the first --learn sets together. Each set also stands alone, with its own two lists, in `videos/SET`.
The folder must be small: `gpu.py` packs it there, in half a minute. (A JPEG pack of 24 frames of each video was 125 MB
even at quality 50, where the videos themselves are 47 MB.) Footage is not part of the repository, and neither is that
folder.
"""
import argparse
import json
import shutil
import sys
from pathlib import Path

from be_nb.data.decode import count_frames
from be_nb.data.lists import open_split
from be_nb.data.videos import locate_video


def gather(folders, learn, out):
    """Copy the videos of all sets into `out`, with lists and numbers of frames; returns the size in MB."""
    out, lists, frames, size = Path(out), {"pretrain.txt": []}, {}, 0
    for number, folder in enumerate(map(Path, folders)):
        name = folder.resolve().name
        for part in ("train", "val"):
            split, alone = open_split(folder, f"{part}.txt"), []
            rows = lists[f"{name}-{part}.txt"] = []
            for path, label, where in zip(split.paths, split.labels.tolist(), split.where):
                source, target = locate_video(str(folder), path, where), out / "videos" / name / path
                if isinstance(source, Exception):
                    raise source
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
                frames[f"{name}/{path}"], size = count_frames(source), size + target.stat().st_size
                rows.append(f"{name}/{path} {label}")
                alone.append(f"{path} {label}")
                if part == "train" and number < learn:
                    lists["pretrain.txt"].append(f"{name}/{path} 0")
            (out / "videos" / name / f"{part}.txt").write_text("\n".join(alone) + "\n", encoding="utf8")
    for name, rows in lists.items():
        (out / name).write_text("\n".join(rows) + "\n", encoding="utf8")
    (out / "frames.json").write_text(json.dumps(frames), encoding="utf8")
    return size / 1e6


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", required=True, help="folders of videos with train.txt and val.txt")
    parser.add_argument("--learn", type=int, default=2, help="how many of the sets are pretrained on")
    parser.add_argument("--megabytes", type=float, default=60, help="the most that may be carried")
    parser.add_argument("--out", required=True, help="a new folder")
    options = parser.parse_args(arguments)
    if Path(options.out).exists():
        raise SystemExit(f"{options.out} is there already; choose a new folder, or delete it.")
    size = gather(options.sets, options.learn, options.out)
    print(f"{options.out}: {size:.1f} MB")
    return f"more than {options.megabytes:g} MB: take fewer sets" if size > options.megabytes else 0


if __name__ == "__main__":
    sys.exit(main())
