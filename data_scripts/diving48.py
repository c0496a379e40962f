"""Prepare Diving48 (version 2): official archive in, verified pack with the official split out. Nothing is downloaded.

DIR holds Diving48_rgb.tar.gz (or its folder rgb/), Diving48_V2_train.json, Diving48_V2_test.json, Diving48_vocab.json:

    python data_scripts/diving48.py --archives DIR --out diving48 --workers 4

Then train with --data diving48/pack --split train.txt, and test on test.txt.
"""
from be_nb.data.prepare import Dataset, find_folder, Part, prepare_cli
from be_nb.data.lists import read_diving48

PAGE = "the Diving48 page of the Statistical Visual Computing Lab, UC San Diego"


def read(folders):
    "The folder of the videos (if there is one yet) and the official split."
    lists = find_folder(folders["lists"], ["Diving48_V2_train.json", "Diving48_V2_test.json", "Diving48_vocab.json"])
    splits = {f"{side}.txt": part for side, part in read_diving48(lists)._asdict().items()}
    return "videos" in folders and find_folder(folders["videos"], splits["train.txt"].paths), splits


DIVING48 = Dataset("Diving48", (
    Part("the official lists (version 2)", (), ("Diving48_V2_train.json",), PAGE, into="lists"),
    Part("the videos", ("Diving48_rgb.tar.gz",), ("rgb",), PAGE, into="videos")),
    read, {"train.txt": 15027, "test.txt": 1970}, classes=48)

if __name__ == "__main__":
    prepare_cli(DIVING48, str(__doc__))
