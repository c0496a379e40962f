"""Prepare UCF101: official archives in, a verified pack with all three official splits out. Nothing is downloaded.

DIR holds UCF101.rar and UCF101TrainTestSplits-RecognitionTask.zip, or what was in them (UCF-101/, ucfTrainTestlist/):

    python data_scripts/ucf101.py --archives DIR --out ucf101 --workers 4

Then train with --data ucf101/pack --split train1.txt, and test on test1.txt.
"""
from be_nb.data.prepare import Dataset, find_folder, Part, prepare_cli
from be_nb.data.lists import read_ucf101

PAGE = "the UCF101 page of the Center for Research in Computer Vision, University of Central Florida"
COUNTS = {"train1.txt": 9537, "test1.txt": 3783, "train2.txt": 9586, "test2.txt": 3734, "train3.txt": 9624,
          "test3.txt": 3696}


def read(folders):
    "The folder of the videos (if there is one yet) and the three official splits."
    lists = find_folder(folders["lists"], ["classInd.txt"])
    splits = {f"{side}{k}.txt": part for k in (1, 2, 3) for side, part in read_ucf101(lists, k)._asdict().items()}
    return "videos" in folders and find_folder(folders["videos"], splits["train1.txt"].paths), splits


UCF101 = Dataset("UCF101", (
    Part("the official lists", ("UCF101TrainTestSplits-RecognitionTask.zip",), ("ucfTrainTestlist", "classInd.txt"),
         PAGE, into="lists"),
    Part("the videos", ("UCF101.rar",), ("UCF-101", "ApplyEyeMakeup"), PAGE, into="videos")), read, COUNTS, classes=101)

if __name__ == "__main__":
    prepare_cli(UCF101, str(__doc__))
