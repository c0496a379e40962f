"""Prepare Kinetics-400: the archives of the CVDF copy in, a verified pack out. Nothing is downloaded.

DIR holds train/part_0.tar.gz, …, val/part_0.tar.gz, … (or the videos themselves, in any folders below train/ and val/),
replacement/replacement_for_corrupted_k400.tgz if you have it, and annotations/train.csv, annotations/val.csv:

    python data_scripts/kinetics400.py --archives DIR --out k400 --workers 8

Then train with --data k400/pack --split train.txt, and test on val.txt. Videos that nobody has any more stay in the
lists; the report counts them.
"""
from be_nb.data.prepare import Dataset, find_folder, Part, prepare_cli, read_kinetics, video_files

PAGE = "the Kinetics page of the Common Visual Data Foundation"


def read(folders):
    "The folder that holds train/ and val/ (if there are videos yet), and the two lists."
    lists, files, sides = find_folder(folders["lists"], ["train.csv", "val.csv"]), {}, ("train", "val")
    places = {folders[side].parent for side in sides if side in folders}
    if len(places) > 1:
        raise ValueError("train and val must both be archives, or both be folders of videos, side by side")
    for side in sides:
        found = video_files(folders[side]) if side in folders else {}
        files[side] = {name: f"{side}/{path}" for name, path in found.items()}
    train = read_kinetics(lists / "train.csv", files["train"])
    splits = {"train.txt": train, "val.txt": read_kinetics(lists / "val.csv", files["val"], train.classes)}
    return places and places.pop(), splits


KINETICS400 = Dataset("Kinetics-400", (
    Part("the lists", (), ("annotations/train.csv", "train.csv"), PAGE, into="lists"),
    Part("the training videos", ("train/*.tar.gz", "replacement/*.tgz"), ("train",), PAGE, into="train"),
    Part("the validation videos", ("val/*.tar.gz",), ("val",), PAGE, into="val", optional=True)),
    read, {}, classes=400)

if __name__ == "__main__":
    prepare_cli(KINETICS400, str(__doc__))
