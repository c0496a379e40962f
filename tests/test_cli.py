"""The command line: every setting is a flag with its comment, mistakes cost one line, and neither needs torch."""
import dataclasses
import json
import os
import re
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from conftest import ROOT
from test_config import configs

from be_nb import __version__, cli
from be_nb.config import settings
from be_nb.recipes import list_recipes, recipe
from be_nb.saving.checkpoint import read_checkpoint
from be_nb.settings import (BenchConfig, DoctorConfig, EvaluateConfig, ExportConfig, FinetuneConfig, PackConfig,
                            PretrainConfig, RetrieveConfig)

NEEDED = ["--checkpoint", "runs/a", "--data", "videos"]


@pytest.fixture
def calls(monkeypatch):
    "What the commands call, without loading or running it."
    seen = []
    monkeypatch.setattr(cli, "look_first", lambda *what: None)  # paths are made up here

    def record(name):
        def called(config):
            seen.append((name, config))
            return types.SimpleNamespace(checkpoint=Path("runs/x.pt"))
        return called

    for module, names in (("be_nb.train", ["pretrain"]), ("be_nb.evaluate", ["evaluate", "retrieve"])):
        monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{name: record(name) for name in names}))
    return seen


def words(value):
    return [str(v) for v in value] if isinstance(value, tuple) else [str(value)]


def to_args(config):
    "A command line that says every setting."
    args = []
    for f in dataclasses.fields(config):
        value, flag = getattr(config, f.name), f.name.replace("_", "-")
        if isinstance(value, bool):
            args.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            args += [f"--{flag}={value}"] if isinstance(value, str) else [f"--{flag}", *words(value)]
    return args


@hypothesis_settings(max_examples=12, deadline=None)
@given(st.sampled_from(["PretrainConfig", "simclr", "RetrieveConfig"]).flatmap(configs))
def test_flags_say_all_that_a_config_can(config):
    assert cli.parse("test", type(config), to_args(config), "") == config


def test_commands_pass_a_config_to_the_function_of_their_name(calls, capsys):
    cli.main(["pretrain"])
    cli.main(["pretrain", "scenebias-moco"])
    cli.main("pretrain scenebias-moco --rho .5 --crop .7 1 --cache --batch_size 8 --milestones .2 .4 --name=a".split())
    cli.main(["evaluate", *NEEDED, "--clips", "3"])
    cli.main(["retrieve", *NEEDED, "--ks", "1", "5", "--frames", "16"])
    assert calls == [
        ("pretrain", PretrainConfig()), ("pretrain", recipe("scenebias-moco")),
        ("pretrain", recipe("scenebias-moco", rho=0.5, crop=(0.7, 1), cache=True, batch_size=8, milestones=(0.2, 0.4),
                            name="a")),
        ("evaluate", EvaluateConfig("runs/a", "videos", clips=3)),
        ("retrieve", RetrieveConfig("runs/a", "videos", ks=(1, 5), frames=16))]
    assert "checkpoint: runs/x.pt" in capsys.readouterr().out


def help_of(args, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        cli.main([*args, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("args, config", [
    (["pretrain"], PretrainConfig()), (["pretrain", "scenebias-moco"], recipe("scenebias-moco")),
    (["pretrain", "--method", "simclr"], PretrainConfig(method="simclr")),
    (["pretrain", "scenebias-order-be"], recipe("scenebias-order-be")), (["finetune"], FinetuneConfig()),
    (["evaluate"], EvaluateConfig), (["retrieve"], RetrieveConfig), (["export"], ExportConfig), (["pack"], PackConfig),
    (["doctor"], DoctorConfig), (["bench"], BenchConfig)])
def test_help_gives_every_setting_a_line_of_its_own(args, config, capsys, monkeypatch):
    lines = help_of(args, capsys, monkeypatch).splitlines()
    config_class = config if isinstance(config, type) else type(config)
    found = settings(config_class)
    for s in found:
        flag = "--" + s.name.replace("_", "-")
        line, = (line for line in lines if re.match(rf"\W*{flag}[ ,]", line))
        default = getattr(config, s.name, dataclasses.MISSING)
        expected = "(required)" if default is dataclasses.MISSING else f"(default: {' '.join(words(default))})"
        assert s.about in line, f"the comment of {s.name} is too long for a line of 100 columns"
        assert default in ("", None) or expected in line
    assert sum(bool(re.match(r"\W*--[a-z]", line)) for line in lines) == len(found)
    for group in {s.group for s in found}:
        assert any(f"{group} options" in line for line in lines)


def refused(args, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(args)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    return err


@pytest.mark.parametrize("line, told", [
    ("pretain", "Did you mean pretrain?"), ("xyzzy", "Choose one of: pretrain, finetune, evaluate"),
    ("pretrain scenebias-bee", "Did you mean scenebias-be"), ("pretrain xyzzy", "Choose one of: scenebias-moco"),
    ("pretrain --rhoo 1", "--rho?"), ("pretrain --rhoo=1", "--rho?"), ("pretrain --warmup 3", "--warmup-steps"),
    ("pretrain --learning-rate 1", "--lr"), ("pretrain --qqqq", "Unknown flag --qqqq"),
    ("pretrain -x 3", "Unknown flag -x"), ("pretrain --steps 5 scenebias-be", "A recipe stands first"),
    ("pretrain --resume True", "'True' belongs to no flag"), ("pretrain --crop .5 1 2", "'2' belongs to no flag"),
    ("pretrain --crop .5", "--crop"), ("pretrain --lr abc", "--lr"), ("pretrain --steps 1e3", "--steps"),
    ("pretrain --rho 7", "rho must be"), ("pretrain --lr -1", "lr must be above 0"),
    ("pretrain --lr nan", "lr must be a finite"), ("pretrain --short lop", "Did you mean loop?"),
    ("recipes --all", "the name of a recipe at most"), ("recipes i3d-k400-eb", "Did you mean i3d-k400-be"),
    ("finetune scenebias-be", "recipe of `be-nb pretrain`"), ("pretrain finetune-hmdb51", "recipe of `be-nb finetune`"),
    ("evaluate --data videos", "--checkpoint"), ("retrieve --checkpoint a --data b --ks 0", "ks[0] must be"),
    ("evaluate --checkpoint a --data b --ks 1", "Unknown flag --ks")])
def test_a_mistake_costs_one_message_and_exit_code_2(line, told, calls, capsys):
    err = refused(line.split(), capsys)
    assert told in err and not calls
    if "─" not in err and "----" not in err:  # ours; tyro draws boxes around its own
        assert err.startswith("be-nb: ") and err.count("\n") == 1


OurError = type("OurError", (RuntimeError,), {"__module__": "be_nb.data.videos"})


@pytest.mark.parametrize("error", [ValueError("bad"), FileNotFoundError("bad"), OurError("bad")])
def test_errors_for_the_user_are_messages(error, monkeypatch, capsys):
    def fail(config):
        raise error
    monkeypatch.setitem(sys.modules, "be_nb.train", types.SimpleNamespace(pretrain=fail))
    assert refused(["pretrain"], capsys) == "be-nb: bad\n"


@pytest.mark.parametrize("name, value", [
    ("resume", True), ("checks", False), ("device", "cuda"), ("data", "scenebias"), ("on_error", "skip"), ("steps", 12),
    ("rho", .5)])
def test_a_setting_in_a_message_becomes_the_flag_that_sets_it(name, value):
    before, flag, after = re.split("<|>", cli.as_flags(f"x={value!r} or <{name}={value!r}>, y={value!r}."))
    assert (before, after) == (f"x={value!r} or ", f", y={value!r}.") and flag.startswith("--")
    assert getattr(cli.parse("test", PretrainConfig, flag.split(), ""), name) == value


def test_messages_speak_to_a_shell_and_warnings_are_one_line(monkeypatch, capsys):
    def fail(config):
        warnings.warn("2 videos left out", stacklevel=1)
        warnings.warn("old function", DeprecationWarning, stacklevel=1)
        raise ValueError("The run exists. Continue it with resume=True, or choose another name.")
    monkeypatch.setitem(sys.modules, "be_nb.train", types.SimpleNamespace(pretrain=fail))
    monkeypatch.setattr(warnings, "showwarning",
                        lambda *w: print(warnings.formatwarning(*w[:4]), end="", file=sys.stderr))
    before = warnings.formatwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        first, *middle, last = refused(["pretrain"], capsys).splitlines()
    assert first == "be-nb: warning: 2 videos left out" and warnings.formatwarning is before
    assert "test_cli.py" in middle[0] and "DeprecationWarning: old function" in middle[0]
    assert last == "be-nb: The run exists. Continue it with --resume, or choose another name."


@pytest.mark.parametrize("error, raised", [
    (RuntimeError("ours"), RuntimeError), (KeyError("ours"), KeyError), (KeyboardInterrupt(), SystemExit)])
def test_our_own_mistakes_keep_their_traceback(error, raised, monkeypatch, capsys):
    def fail(config):
        raise error
    monkeypatch.setitem(sys.modules, "be_nb.train", types.SimpleNamespace(pretrain=fail))
    with pytest.raises(raised) as caught:
        cli.main(["pretrain"])
    if raised is SystemExit:
        assert caught.value.code == 130 and "--resume" in capsys.readouterr().err


def test_usage_recipes_and_version(capsys):
    for args in ([], ["--help"], ["-h"]):
        cli.main(args)
        out = capsys.readouterr().out
        assert out.startswith("usage: be-nb") and all(f"be-nb {name}" in out for name in cli.COMMANDS)
    cli.main(["recipes"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:-3]] == list_recipes()
    cli.main(["recipes", "--help"])
    assert "be-nb recipes" in capsys.readouterr().out
    cli.main(["--version"])
    assert __version__ in capsys.readouterr().out


MINE = """
from dataclasses import dataclass

import torch

from be_nb.config import Config, Positive
from be_nb.methods.base import Method, Views


class Mine(Method):
    "The smallest method: features of two views are to be alike, and as long as `length`."

    title, uses = "mine", ("distractor", "gamma")

    @dataclass(frozen=True)
    class Settings(Config):
        "My own knob."

        length: Positive = 2.0  # how long a feature is to be

    def __init__(self, backbone, length=2.0, views=None):
        super().__init__()
        self.backbone, self.length, self.views = backbone, length, Views() if views is None else views

    @classmethod
    def passes(cls, config):
        return 6

    def reference_loss(self, batch_size):
        return self.length

    def forward(self, batch):
        first, second = (self.backbone(view).float() for view in (self.views.erased(batch), self.views.clean(batch)))
        loss = (first - second).square().mean() + (first.norm(dim=1) - self.length).abs().mean()
        return loss, {"norm": first.detach().norm(dim=1).mean()}
"""


FAULTS = """
from be_nb.methods.base import Method
from mine import Mine


class Misspelt(Mine):
    uses = ("distracter", "gamma")


class OnlyALoss(Mine):
    def forward(self, batch):
        return super().forward(batch)[0]


class Blind(Mine):
    def __init__(self, backbone, length):
        super().__init__(backbone, None, length)


class Bare(Mine):
    reference_loss = Method.reference_loss


class Greedy(Mine):
    def forward(self, batch):
        self.views.clean(batch, 1)
        return super().forward(batch)
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    "A folder with a method of a stranger's, and an environment without the folder in Python's path."
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "mine.py").write_text(MINE)
    (folder / "faults.py").write_text(FAULTS)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "COLUMNS": "100", "PYTHONPATH": str(ROOT)}

    def run(*command):
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    return folder, run


TINY = ["--steps", "3", "--data-size", "16", "--batch-size", "8", "--frames", "2", "--size", "16", "--log-every", "1",
        "--amp", "fp32", "--device", "cpu"]


def test_a_backbone_of_ones_own_from_the_command_line(mine):
    "It is trained, judged and exported by its name, and loaded again where its module is; a mistake is told in a line."
    folder, run = mine
    (folder / "nets.py").write_text("from be_nb.backbones.tiny import Tiny\n\nclass Other:\n    pass\n\n"
                                    "class Wide(Tiny):\n    def __init__(self):\n        super().__init__(width=24)\n")
    script = str(Path(sys.executable).with_name("be-nb"))
    done = run(script, "pretrain", "--backbone", "nets:Wide", *TINY)
    assert done.returncode == 0, done.stderr
    checkpoint, = (folder / "runs").glob("*nets.Wide*/step-00000003.pt")
    assert run(script, "export", "--checkpoint", str(checkpoint), "--out", "wide.safetensors").returncode == 0
    code = "import be_nb; print(be_nb.load('wide.safetensors').feature_dim)"
    assert run(sys.executable, "-c", code).stdout.strip() == "96"
    for wrong, told in (("nets:Thin", "nets has nothing named 'Thin'"), ("net:Wide", "no module 'net' here"),
                        ("nets:Other", "no backbone"), ("os:getcwd", "no backbone"), ("wide", "written module:Class"),
                        *((half, "write module:Class") for half in (":Wide", ".nets:Wide", "nets:"))):
        done = run(script, "pretrain", "--backbone", wrong, *TINY)
        assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_method_of_ones_own_from_the_command_line(mine):
    "Its class's settings are flags with their comments; a mistake in its name is told in a line."
    folder, run = mine
    script = str(Path(sys.executable).with_name("be-nb"))
    shown = run(script, "pretrain", "--method", "mine:Mine", "--help").stdout
    assert re.search(r"--length FLOAT +how long a feature is to be \(default: 2.0\)", shown) and "mine options" in shown
    assert "--queue-size" not in shown and "--negative STR" not in shown.replace("--negative-offset", "")
    done = run(script, "pretrain", "scenebias-be", "--method=mine:Mine", "--length", "3", *TINY, "--name", "one")
    assert done.returncode == 0, done.stderr
    saved = read_checkpoint(folder / "runs" / "one" / "step-00000003.pt")
    assert saved["config"]["method"] == "mine:Mine" and saved["config"]["length"] == 3
    for wrong, told in ((["--method", "mine:Your"], "nothing named 'Your'"),
                        (["--method", "yours:Mine"], "no module 'yours'"),
                        (["--method", "mine:Mine", "--length", "0"], "length must be above 0"),
                        (["--method", "mine:Mine", "--negative", "other_video"], "makes no use of negative"),
                        (["--method", "mine:Mine", "--queue-size", "3"], "Unknown flag --queue-size"),
                        (["--method", "mine:dataclass"], "is not a subclass of be_nb.methods.base.Method"),
                        (["--method", "faults:Misspelt"], "got distracter"),
                        (["--method", "faults:OnlyALoss", *TINY], "OnlyALoss.forward must return two things"),
                        (["--method", "faults:Blind", *TINY], "Blind: `__init__` must take (backbone, views, length)"),
                        (["--method", "faults:Bare", *TINY], "Bare lacks `reference_loss(batch_size)`"),
                        (["--method", "faults:Greedy", *TINY], "asks for 2 or more")):
        done = run(script, "pretrain", *wrong)
        assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr, done.stderr
    planned = run(script, "plan", "--method", "mine:Mine", "--batch-size", "8")
    assert planned.returncode == 0 and "batch_size 8" in planned.stdout, planned.stderr


def test_a_method_of_ones_own_on_two_ranks(mine):
    folder, run = mine
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    for ranks in (1, 2):
        done = run(*torchrun, str(ranks), "-m", "be_nb.cli", "pretrain", "--method", "mine:Mine", *TINY, "--bn-groups",
                   "2", "--name", f"ranks{ranks}")
        assert done.returncode == 0, done.stderr
    one, two = ([json.loads(line)
                 for line in (folder / "runs" / f"ranks{n}" / "history.jsonl").read_text().splitlines()]
                for n in (1, 2))
    assert [row["step"] for row in one] == [row["step"] for row in two] == [1, 2, 3]
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-3)


# One fresh interpreter for all: `main` with each of these lines, then a look at what was imported.
NO_TORCH = """
import contextlib, io, sys
from be_nb.cli import main
for line in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with contextlib.suppress(SystemExit):
            main(line.split())
    heavy = {"torch", "numpy", "matplotlib", "av", "sklearn"} & set(sys.modules)
    assert not heavy, (line, heavy)
"""


def test_help_and_mistakes_do_not_load_torch():
    "But for pretraining: there the method is asked for its settings, and methods are networks."
    lines = ["", "--help", "--version", "recipes --help", "evaluate --help", "retrieve -h", "export --help",
             "pack --help", "doctor", "bias --help", "bench --help", "pretain", "evaluate --clipss 1",
             "retrieve --ks 0"]
    done = subprocess.run([sys.executable, "-c", NO_TORCH, *lines], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# What only some commands use; each of these lines needs none of it.
NOT_AT_ONCE = """
import contextlib, io, os, sys
from be_nb.cli import main
for line in sys.argv[1:]:
    told = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(told):
        with contextlib.suppress(SystemExit):
            main(line.split())
    early = {"sklearn", "torchvision", "tensorboard", "matplotlib", "scipy"} & set(sys.modules)
    assert not early, (line, early)
    if "nowhere" in line:
        assert "nowhere" in told.getvalue() and told.getvalue().count("\\n") == 1, (line, told.getvalue())
    if "nowhere" in line or "--help" in line:
        assert "torch" not in sys.modules, line
import be_nb.data.pack.doctor, be_nb.saving.export, be_nb.data.prepare, be_nb.evaluate, be_nb.train
import be_nb.judging.bias.report, be_nb.data.actors, be_nb.studies.bench
early = {"sklearn", "torchvision", "tensorboard", "matplotlib", "scipy"} & set(sys.modules)
assert not early, early
"""


def test_help_and_wrong_paths_come_before_slow_imports(tmp_path):
    "A missing checkpoint, folder or list is told without PyTorch; no module of the library loads what only some use."
    (tmp_path / "videos").mkdir()
    (tmp_path / "run").mkdir()
    there = "--checkpoint run --data videos"
    lines = ["evaluate --help", "doctor --help", "export --help", "evaluate --checkpoint nowhere --data videos",
             "retrieve --checkpoint run --data nowhere", f"retrieve {there} --train-split nowhere.txt",
             "doctor nowhere",
             "export --checkpoint nowhere --out w", "bias --checkpoint nowhere", "bias --checkpoint run --data nowhere",
             "finetune --data nowhere", "finetune --checkpoint nowhere", "finetune --data videos --split nowhere.txt",
             f"bias {there} --train-split nowhere.txt"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", NOT_AT_ONCE, *lines], capture_output=True, text=True, cwd=tmp_path,
                          env=env)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", ["scenebias-bee", "scenebias-", "scenebias-be-x", "scenebias-be-1/step-1.pt",
                                  "scenebias-triplet", "runs/scenebias-be", "torchvision"])
def test_a_path_that_only_looks_like_a_network_that_comes_along_is_told_at_once(path, tmp_path, monkeypatch):
    "Names are those that `be_nb.saving.weights` knows; a folder of any name is a folder."
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*comes along: scenebias-moco, scenebias-be"):
        cli.look_first(types.SimpleNamespace(checkpoint=path))
    Path(path).mkdir(parents=True)
    cli.look_first(types.SimpleNamespace(checkpoint=("torchvision/r3d_18", "", path)))
    for file in (ROOT / "nbs/results/weights").glob("*.safetensors"):
        cli.look_first(types.SimpleNamespace(checkpoint=(file.stem, file.stem.removesuffix("-0"))))


@pytest.mark.parametrize("wrong, told", [
    (lambda: int("one"), False), (lambda: [0 for a, b in [(1,)]], False), (lambda: json.loads("{"), False),
    (lambda: b"\xff".decode("utf8"), False), (lambda: np.zeros(2).reshape(3), False),
    (lambda: torch.utils.data.DataLoader([1], batch_size=-1), False), (lambda: PretrainConfig(rho=7), True),
    (lambda: recipe("xyzzy"), True), (lambda: Path("/nowhere/at/all").read_bytes(), True)])
def test_only_what_somebody_wrote_for_users_is_a_message(wrong, told, monkeypatch):
    "A `ValueError` of Python, NumPy or torch keeps its traceback; an unknown recipe is a sentence."
    monkeypatch.setitem(sys.modules, "be_nb.train", types.SimpleNamespace(pretrain=lambda config: wrong()))
    with pytest.raises(SystemExit if told else ValueError) as caught:
        cli.main(["pretrain"])
    assert not told or caught.value.code == 2


def test_ranks_say_it_once(mine):
    folder, run = mine
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
                "be_nb.cli"]
    done = run(*torchrun, "pretrain", "--data", "nowhere")
    assert done.returncode != 0
    assert len([line for line in done.stderr.splitlines() if line.startswith("be-nb: ")]) == 1, done.stderr
    one = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}  # no store to ask: better twice than never
    assert cli.is_first("text") and run(sys.executable, "-c",
                                        f"import os; os.environ.update({one}); from be_nb import cli; "
                                        "assert cli.is_first('x')").returncode == 0


def test_module_and_console_script_are_the_same():
    run = lambda *command, **env: subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})
    module = run(sys.executable, "-m", "be_nb.cli", "recipes")
    script = run(str(Path(sys.executable).with_name("be-nb")), "recipes")
    assert module.returncode == script.returncode == 0
    assert module.stdout == script.stdout != ""
    told = run(sys.executable, "-m", "be_nb.cli", "pretrain", "xyzzy")
    assert told.returncode == 2 and told.stderr.startswith("be-nb: Unknown recipe")
    traced = run(sys.executable, "-m", "be_nb.cli", "pretrain", "xyzzy", PYTHONDEVMODE="1")
    assert traced.returncode == 1 and "Traceback" in traced.stderr
