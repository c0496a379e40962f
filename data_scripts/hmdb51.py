"""Prepare HMDB51: official archives in, a verified pack with all three official splits out. Nothing is downloaded.

DIR holds hmdb51_org.rar (a RAR of 51 RARs) and test_train_splits.rar, or what was in them (hmdb51_org/,
testTrainMulti_7030_splits/):

    python data_scripts/hmdb51.py --archives DIR --out hmdb51 --workers 4

Then train with --data hmdb51/pack --split train1.txt, and test on test1.txt.
"""
from be_nb.data.prepare import Dataset, find_folder, Part, prepare_cli
from be_nb.data.lists import read_hmdb51

PAGE = "the HMDB page of the Serre Lab, Brown University"
COUNTS = {f"{side}{k}.txt": count for k in (1, 2, 3) for side, count in (("train", 3570), ("test", 1530))}


def read(folders):
    "The folder of the videos (if there is one yet) and the three official splits."
    lists = find_folder(folders["lists"], ["brush_hair_test_split1.txt"])
    splits = {f"{side}{k}.txt": part for k in (1, 2, 3) for side, part in read_hmdb51(lists, k)._asdict().items()}
    return "videos" in folders and find_folder(folders["videos"], splits["train1.txt"].paths), splits


HMDB51 = Dataset("HMDB51", (
    Part("the official lists", ("test_train_splits.rar",), ("testTrainMulti_7030_splits", "test_train_splits"), PAGE,
         into="lists"),
    Part("the videos", ("hmdb51_org.rar",), ("hmdb51_org", "brush_hair"), PAGE, into="videos", nested=True)),
    read, COUNTS, classes=51)

if __name__ == "__main__":
    prepare_cli(HMDB51, str(__doc__))
