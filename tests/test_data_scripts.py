"""The scripts that prepare datasets, run as a user runs them."""
import subprocess
import sys

import pytest
from conftest import ROOT

from be_nb.data.videos import read_diving48, read_hmdb51, read_list, read_ucf101

READERS = {"ucf101": read_ucf101, "hmdb51": read_hmdb51, "diving48": lambda folder, split: read_diving48(folder)}


@pytest.mark.parametrize("dataset, split", [("ucf101", 2), ("hmdb51", 3), ("diving48", 1)])
def test_official_lists_come_out_as_they_went_in(dataset, split, tmp_path, footage):
    script, lists = ROOT / "data_scripts" / "official_lists.py", footage / "lists" / dataset
    command = [sys.executable, script, "--dataset", dataset, "--lists", lists, "--split", str(split), "--out", tmp_path]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    for side, official in READERS[dataset](lists, split)._asdict().items():
        written = read_list(tmp_path / f"{side}.txt")
        assert written.paths == official.paths and written.classes == official.classes
        assert written.labels.tolist() == official.labels.tolist()
