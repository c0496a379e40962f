"""Every command that README prints is run as it stands there, on small videos and with small settings behind it."""
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from test_data_scripts import fake_ucf101

import be_nb.cli as cli
from be_nb.data.decode import write_video
from be_nb.recipes import recipe

BLOCKS = re.findall(r"^~~~sh\n(.*?)^~~~$", (ROOT / "README.md").read_text(), re.S | re.M)
COMMANDS = [shlex.split(line, comments=True) for block in BLOCKS for line in block.splitlines() if line.strip()]
SMALL = {"frames": "4", "size": "16", "workers": "0"}
TOY = {  # what makes a command small; a flag that the README gives is left as it is
    "pretrain": SMALL | {"batch-size": "2", "queue-size": "8", "steps": "2", "data-size": "8", "warmup-steps": "0",
                         "frame-size": "24 32", "backbone": "tiny", "stride": "1"},
    "finetune": SMALL | {"batch-size": "2", "steps": "2", "epochs": "0", "warmup-steps": "0", "frame-size": "24 32",
                         "clips": "1", "stride": "1", "classifier": "linear", "validation": "0"},
    "evaluate": {"clips": "1"}, "retrieve": {"clips": "1"},
    "bias": {"clips": "1", "resamples": "50", "data-size": "60"},
}


def toy(words):
    "The words of a command with the flags that make it small."
    command, *rest = words
    if "--steps" in rest:
        rest[rest.index("--steps") + 1] = "2"
    if "--protocol" in rest:  # wants a gallery of fifty; tests/test_protocols.py has them all
        at = rest.index("--protocol")
        del rest[at:at + 2]
    flags = {f"--{flag}": value.split() for flag, value in TOY.get(command, {}).items()}
    return [command, *rest, *(word for flag in flags if flag not in rest for word in (flag, *flags[flag]))]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder as the README has it: `my_videos` with two lists, and the archives of UCF101."
    folder = tmp_path_factory.mktemp("readme")
    (folder / "my_videos").mkdir()
    (folder / "ARCHIVES").mkdir()
    moving = torch.arange(24 * 32).view(1, 1, 24, 32).expand(6, 3, -1, -1) % 200
    for k in range(28):
        clip = (moving + torch.arange(6).view(6, 1, 1, 1) * (1 + k % 2) + k).to(torch.uint8)
        write_video(folder / "my_videos" / f"{k}.mp4", clip)
    for name, rows in (("train.txt", range(22)), ("val.txt", range(22, 28))):
        (folder / "my_videos" / name).write_text("".join(f"{k}.mp4 {k % 2}\n" for k in rows))
    fake_ucf101(folder / "ARCHIVES", lambda k: (folder / f"my_videos/{k}.mp4").read_bytes())
    shutil.copytree(ROOT / "data_scripts", folder / "data_scripts")
    return folder


def test_the_commands_are_those_that_this_file_knows():
    known = {"make", "be-nb", "python", "torchrun", ".", "pip", "nbdev_export"}
    assert {words[0] for words in COMMANDS} <= known
    assert {words[1] for words in COMMANDS if words[0] == "be-nb"} <= set(cli.COMMANDS)
    targets = re.findall(r"^(\w+):.*##", (ROOT / "Makefile").read_text(), re.M)
    assert {words[1] for words in COMMANDS if words[0] == "make"} <= set(targets)


@pytest.mark.filterwarnings("ignore")
def test_be_nb_and_scripts_in_their_order(place, monkeypatch, capsys):
    "From the recipes over one's own videos to a full-size row: what a command needs, one before has made."
    monkeypatch.chdir(place)
    done = []
    for words in COMMANDS:
        if words[0] == "be-nb" and words[-1] != "--help":
            name = ["--name", f"toy-{len(done)}"] if words[1] == "finetune" else []  # all toys are of one network
            cli.main([*toy(words[1:]), *name])
            done.append(words[1])
        elif words[0] == "python":
            assert words[1].startswith("data_scripts/")
            subprocess.run([sys.executable, *words[1:], "--no-check-counts"], check=True, capture_output=True)
            done.append(words[1])
    assert {"pretrain", "retrieve", "evaluate", "finetune", "bias", "export", "data_scripts/ucf101.py"} <= set(done)
    for made in ("again", "mine", "i3d"):
        assert list((place / "runs" / made).glob("step-*.pt")), made
    assert (place / "again.safetensors").exists() and (place / "page/report.html").exists()


def test_eight_ranks_see_as_many_videos_as_one(capsys):
    "The batch of the torchrun line can be cut into its ranks, and its steps are those that the command line names."
    words, = (words for words in COMMANDS if words[0] == "torchrun")
    ranks = int(words[1].split("=")[1])
    assert words[2:5] == ["-m", "be_nb.cli", "pretrain"]
    config = cli.parse_recipe("pretrain", type(recipe(words[5])), words[5:], "")
    assert config.batch_size % ranks == 0 and capsys.readouterr().err == ""
    cli.parse_recipe("pretrain", type(recipe(words[5])), [words[5], "--batch-size", str(config.batch_size)], "")
    told = capsys.readouterr().err
    assert f"show {ranks} times as many videos" in told and f"--steps {config.steps} " in told
    assert "lr stays 0.003; in proportion to the batch it would be 0.024" in told


def test_the_torchrun_line_runs(place):
    "The same line with two ranks and small settings."
    words, = (words for words in COMMANDS if words[0] == "torchrun")
    few = [word for word in words[4:] if not re.fullmatch(r"\d+|--batch-size|--steps", word)]
    few[few.index("--name") + 1] = "ranks"
    flags = toy([*few, "--batch-size", "4", "--data", "my_videos", "--split", "train.txt"])
    env = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *words[2:4],
                    *flags], cwd=place, env=env, check=True, capture_output=True, timeout=240)
    assert list((place / "runs/ranks").glob("step-*.pt"))
