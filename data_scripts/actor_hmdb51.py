"""Take HMDB51 or JHMDB apart: three packs, of actors, of empty scenes, and of actors in front of other scenes.

DIR holds the videos (hmdb51_org.rar, JHMDB_video.zip, or a folder of them), lists (test_train_splits.rar, JHMDB's
splits.zip, or train.txt and test.txt or val.txt) and, where you have them, masks: JHMDB's puppet_mask.zip or
puppet_mask/CLASS/NAME/puppet_mask.mat, the boxes of HMDB51 bb_file/HMDB51/NAME.bb, or actor_masks.npz:

    python data_scripts/actor_hmdb51.py --archives DIR --out actors --workers 4

Videos without a mask are looked at by a detector of torchvision if you give its weights, else they are left out and
reported. Nothing is downloaded. Killed and run again, it goes on.
"""
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from tqdm.auto import tqdm

from be_nb.config import Amount, Config, Count, NonNegative
from be_nb.data.actors import (crop_to_actor, find_people, grow_mask, inpaint_background, load_detector,
                               other_backgrounds, read_masks, swap_background)
from be_nb.data.decode import decode, open_video, VideoError, write_video
from be_nb.data.lists import read_hmdb51, read_list, Split
from be_nb.data.pack.write import pack, run_all
from be_nb.data.prepare import content_of, count_videos, extract_part, find_folder, locate_parts, look_into, Part
from be_nb.machine.files import write_atomically

HMDB, JHMDB = "the HMDB page of the Serre Lab, Brown University", "the JHMDB page of the MPI for Intelligent Systems"
PARTS = (
    Part("the lists", ("test_train_splits.rar", "splits.zip"), ("testTrainMulti_7030_splits", "splits", "train.txt"),
         f"{HMDB}, or {JHMDB}", into="lists"),
    Part("the videos", ("hmdb51_org.rar",), ("hmdb51_org", "brush_hair", "ReCompress_Videos", "videos"), HMDB,
         into="videos", nested=True),
    Part("the videos", ("JHMDB_video.zip",), (), JHMDB, into="jhmdb"),
    Part("the masks", ("puppet_mask.zip",), ("puppet_mask", "bb_file", "actor_masks.npz"), JHMDB, into="masks",
         optional=True))
KINDS = ("actor", "background", "swapped")


@dataclass(frozen=True)
class ActorConfig(Config):
    "What is made, and how."

    archives: str               # folder with videos, lists and masks, packed or not
    out: str                    # folder for the results
    workers: Count = 1          # processes
    split: Literal[1, 2, 3] = 1  # which official split
    margin: NonNegative = 0.1   # around the box of the actor, as a share of it
    follow: bool = False        # let the crop go along with the actor? else it stands still
    grow: Amount = 2            # pixels by which a mask is widened before the scene is emptied
    seed: Amount = 0            # which actor gets which scene
    detector: str = ""          # file of weights for videos without a mask
    detector_name: str = "maskrcnn_resnet50_fpn"  # model of torchvision.models.detection that they belong to
    short_side: Count = 128     # of a stored frame, pixels
    dry_run: bool = False       # say what would be done, and write nothing


def read_lists(folder, split):
    "train and test of an official split, or of train.txt with test.txt or val.txt, as list name → `Split`."
    try:
        return {f"{side}.txt": part for side, part in
                read_hmdb51(find_folder(folder, [f"brush_hair_test_split{split}.txt"]), split)._asdict().items()}
    except FileNotFoundError:
        place = find_folder(folder, ["train.txt"])
        test = next(name for name in ("test.txt", "val.txt") if name == "val.txt" or (place / name).is_file())
        return {name: read_list(place / name) for name in ("train.txt", test)}


class Masks:
    "Finds the masks of a video in whatever is there."

    def __init__(self, folder):
        found = {p.suffix: p.parent for p in sorted(folder.rglob("*")) if p.suffix in (".mat", ".bb")} if folder else {}
        self.npz, self.packed = folder and folder / "actor_masks.npz", set()
        if self.npz and self.npz.is_file():
            with np.load(self.npz) as packed:
                self.packed = set(packed.files)
        self.boxes = found.get(".bb")
        self.puppets = found[".mat"].parent.parent if ".mat" in found else None

    def find(self, path):
        "(file, name in it) for the mask of a listed video; None if there is none."
        stem = str(Path(path).with_suffix(""))
        places = [(self.puppets and self.puppets / stem / "puppet_mask.mat", None),
                  (stem in self.packed and self.npz, stem),
                  (self.boxes and self.boxes / f"{Path(stem).name}.bb", None)]
        return next((place for place in places if place[0] and place[0].is_file()), None)


def frame_rate(path):
    "Frames a second, as the file says, from 1 to 240; 25 if it does not."
    with open_video(path) as container:
        return min(max(round(container.streams.best("video").average_rate or 25), 1), 240)


def size_of(clip):
    "(height, width) of its frames."
    return clip.shape[2], clip.shape[3]


def take_apart(source, mask_at, targets, config, detector=None):
    "Write the crop and the empty scene of one video; returns what was wrong, or an empty string."
    try:
        clip = torch.from_numpy(decode(source)).permute(0, 3, 1, 2).contiguous()
        mask = find_people(clip, detector) if mask_at is None else read_masks(mask_at[0], size_of(clip), mask_at[1])
        frames = min(len(clip), len(mask))  # JHMDB's masks end where its annotators stopped
        clip, mask, rate = clip[:frames], mask[:frames], frame_rate(source)
        crop = crop_to_actor(clip, mask, config.margin, config.follow)
        empty = inpaint_background(clip, grow_mask(mask, config.grow))
    except (ValueError, VideoError) as error:
        return str(error)
    for target, result in zip(targets, (crop, empty)):
        write_atomically(target, lambda temporary, result=result: write_video(temporary, result, rate))
    return ""


def swap(source, mask_at, scene, target, detector=None):
    "Write the actor of one video in front of the empty scene of another, which is scaled and cut to fit."
    clip = torch.from_numpy(decode(source)).permute(0, 3, 1, 2).contiguous()
    mask = find_people(clip, detector) if mask_at is None else read_masks(mask_at[0], size_of(clip), mask_at[1])
    frames = min(len(clip), len(mask))
    background = torch.from_numpy(decode(scene, tuple(clip.shape[2:]))).permute(0, 3, 1, 2)
    swapped = swap_background(clip[:frames], mask[:frames], background)
    write_atomically(target, lambda temporary: write_video(temporary, swapped, frame_rate(source)))
    return ""


def results_of(function, tasks, workers, about):
    "`function(*task)` for all tasks, with a progress bar; the results."
    done = dict(tqdm(run_all(function, tasks, workers), total=len(tasks), desc=about, unit="video"))
    return [done[k] for k in range(len(tasks))]


def check_settings(out, config, write=True):
    "Refuse to go on in a folder that was begun with other settings."
    kept = {key: value for key, value in asdict(config).items() if key not in ("archives", "out", "workers", "dry_run")}
    path, text = out / "settings.json", json.dumps(kept, indent=1)
    if path.is_file() and path.read_text() != text:
        raise ValueError(f"{out} was begun with other settings (see {path.name}); choose another folder or delete it")
    if write:
        write_atomically(path, lambda temporary: temporary.write_text(text))


def usable(split, folder):
    "A list without the videos that could not be made, under the names of those that were."
    names = [str(Path(path).with_suffix(".mp4")) for path in split.paths]
    kept = [k for k, name in enumerate(names) if (folder / name).is_file()]
    return Split([names[k] for k in kept], split.labels[kept], split.classes)


def plan(config, found, videos, extracted):
    "What would be done, line by line, for a dry run: archives are opened, lists are read, nothing is written."
    check_settings(Path(config.out), config, write=False)
    held = {name: look_into(f) for name, f in found.items()}
    for name, f in found.items():
        files = f"{len(f.archives)} archives, {len(held[name][0]):,} files, to be extracted to"
        state = files if f.archives else "unpacked in"
        yield f"{f.part.what}: {state} {f.content}"
    with content_of(found["lists"], extracted) as folder:
        lists = read_lists(folder, config.split)
    paths = dict.fromkeys(path for split in lists.values() for path in split.paths)
    root = None if videos.archives else find_folder(videos.content, list(paths))
    yield "lists: " + ", ".join(f"{name} {len(split):,}" for name, split in lists.items())
    yield f"videos: {count_videos(paths, *held[videos.part.into], root)}"
    if "masks" in found and not found["masks"].archives:
        masks = Masks(found["masks"].content)
        yield f"masks: {sum(masks.find(path) is not None for path in paths):,} of {len(paths):,}"


def locate(config):
    "Lists, a function that finds a listed video, and masks; archives are unpacked on the way."
    folder, extracted = Path(config.archives), Path(config.out) / "extracted"
    jhmdb = (folder / "JHMDB_video.zip").is_file()
    parts = [part for part in PARTS if part.into != ("videos" if jhmdb else "jhmdb")]
    found = {f.part.into: f for f in locate_parts("Actor-HMDB51", tuple(parts), folder, extracted)}
    if config.dry_run:
        print(*plan(config, found, found["jhmdb" if jhmdb else "videos"], extracted), sep="\n")
        return None
    for f in found.values():
        extract_part(f, config.workers)
    lists = read_lists(found["lists"].content, config.split)
    videos = found["jhmdb" if jhmdb else "videos"].content
    masks = Masks(found["masks"].content if "masks" in found else None)
    return lists, find_folder(videos, lists["train.txt"].paths), masks


def deal_scenes(lists, target, seed):
    "Video → whose scene it gets, dealt out inside each list: no scene of a test video is seen in training."
    scenes = {}
    for split in lists.values():
        kept = [k for k, path in enumerate(split.paths) if target("background", path).is_file()]
        try:
            dealt = other_backgrounds(split.labels[kept], seed)
        except ValueError as error:
            raise ValueError(f"{len(kept)} of {len(split)} videos of a list could be taken apart. {error}") from error
        scenes |= {split.paths[k]: split.paths[kept[j]] for k, j in zip(kept, dealt)}
    return scenes


def read_scenes(out):
    "What an earlier run dealt out."
    path = out / "scenes.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def make(config, detector=None):
    "Everything; returns the report as a dictionary, or None for a dry run. `detector` takes the place of the weights."
    where, out = locate(config), Path(config.out)
    if where is None:
        return None
    lists, root, masks = where
    check_settings(out, config)
    if config.detector and detector is None:
        detector = load_detector(config.detector, config.detector_name)
    workers = 1 if detector else config.workers  # a detector uses all cores by itself
    target = lambda kind, path: out / kind / Path(path).with_suffix(".mp4")
    paths = [path for split in lists.values() for path in split.paths]
    at = {path: masks.find(path) for path in paths}
    problems = {path: "no mask, and no detector given" for path in paths if at[path] is None and detector is None}
    todo = [path for path in paths if path not in problems and not all(target(k, path).is_file() for k in KINDS[:2])]
    results = results_of(take_apart,
                         [(root / path, at[path], [target(kind, path) for kind in KINDS[:2]], config, detector)
                                   for path in todo], workers, "taking apart")
    problems |= {path: problem for path, problem in zip(todo, results) if problem}
    scenes = deal_scenes(lists, target, config.seed)
    stale = read_scenes(out)
    todo = [path for path, scene in scenes.items() if stale.get(path) != scene or not target("swapped", path).is_file()]
    for path in todo:
        target("swapped", path).unlink(missing_ok=True)
    write_atomically(out / "scenes.json", lambda temporary: temporary.write_text(json.dumps(scenes, indent=1)))
    results_of(swap, [(root / path, at[path], target("background", scenes[path]), target("swapped", path), detector)
                   for path in todo], workers, "swapping")
    reports = {kind: pack(out / kind, {name: usable(split, out / kind) for name, split in lists.items()},
                          out / f"pack-{kind}", short_side=config.short_side, workers=config.workers) for kind in KINDS}
    report = {"packs": {kind: [r.videos, r.frames, r.bytes] for kind, r in reports.items()},
              "classes": len(reports["actor"].classes),
              "problems": problems | {f"{k}/{n}": p for k, r in reports.items() for n, p in r.problems.items()}}
    write_atomically(out / "report.json", lambda temporary: temporary.write_text(json.dumps(report, indent=1)))
    return report


def main():
    "The command line."
    try:
        report = make(tyro.cli(ActorConfig, description=__doc__))
    except KeyboardInterrupt:
        print("\nstopped. The same command goes on from here.", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, OSError) as error:
        print(f"Actor-HMDB51: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    if report:
        for kind, (videos, frames, size) in report["packs"].items():
            print(f"pack-{kind}: {report['classes']} classes, {videos:,} videos, {frames:,} frames, "
                  f"{size / 1e6:,.1f} MB")
        print(f"problems: {len(report['problems'])}")
        for name, problem in list(report["problems"].items())[:10]:
            print(f"    {name!a}: {problem}")


if __name__ == "__main__":
    main()
