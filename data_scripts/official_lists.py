"""Turn the official lists of a dataset into the lists that be_nb reads: train.txt, test.txt and classes.txt.

    python data_scripts/official_lists.py --dataset ucf101 --lists ucfTrainTestlist --split 1 --out ucf101

Then `be-nb pretrain video-be-mini --data ucf101` finds its videos in ucf101/ or ucf101/videos/, in one folder a class.
"""
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from be_nb.checkpoint import write_atomically
from be_nb.data.videos import TrainTest, read_diving48, read_hmdb51, read_ucf101


@dataclass
class Lists:
    dataset: Literal["ucf101", "hmdb51", "diving48"]  # whose lists
    lists: Path                                       # folder of the official files
    out: Path                                         # folder for train.txt, test.txt and classes.txt
    split: int = 1                                    # 1, 2 or 3; Diving48 has only one


def read(config: Lists) -> TrainTest:
    "The official split, checked for agreement with its own class list."
    if config.dataset == "diving48":
        return read_diving48(config.lists)
    return {"ucf101": read_ucf101, "hmdb51": read_hmdb51}[config.dataset](config.lists, config.split)


def main(config: Lists):
    "Write the three files and say what is in them."
    official = read(config)
    lines = {side: [f"{path} {label}" for path, label in zip(part.paths, part.labels)]
             for side, part in official._asdict().items()} | {"classes": official.train.classes}
    for name, content in lines.items():
        # names are kept byte for byte, also those that are not UTF-8
        data = ("\n".join(content) + "\n").encode("utf8", "surrogateescape")
        write_atomically(config.out / f"{name}.txt", lambda temporary: temporary.write_bytes(data))
        print(f"{config.out / name}.txt: {len(content)} lines")


if __name__ == "__main__":
    try:
        main(tyro.cli(Lists, description=__doc__))
    except (ValueError, OSError) as error:
        raise SystemExit(f"official_lists: {error}") from error
