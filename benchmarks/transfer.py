"""MoCo and MoCo + BE on a folder of real videos, several seeds, judged there and on a set they have never seen.

    python benchmarks/transfer.py --data VIDEOS --judge VIDEOS OTHERS --out small.json        # hours on a CPU
    python benchmarks/transfer.py --data VIDEOS --judge VIDEOS OTHERS --full --out full.json  # R3D-18 at 16×112²: a GPU

Each folder has `train.txt` and `val.txt`. Every run pretrains without labels on `train.txt` of --data; retrieval,
linear probe and kNN then fit `train.txt` and score `val.txt` of each --judge. Runs lie in --runs and are finished, not
repeated, when the command is given again. The record has the form of `nbs/results/real.json`.
"""
import argparse
import json
import shlex
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

from be_nb.machine.files import write_atomically
from be_nb.settings import EvaluateConfig, RetrieveConfig
from be_nb.machine.device import machine, pick_device
from be_nb.evaluate import evaluate, retrieve
from be_nb.train import pretrain

ARMS = {"random": dict(recipe="video-moco-mini", steps=0), "moco": dict(recipe="video-moco-mini"),
        "be": dict(recipe="video-be-mini")}
# what --full changes: the network and the clips of the paper's small setting, a batch that fills a GPU
FULL = dict(backbone="r3d18", frames=16, size=112, frame_size=(128, 171), batch_size=64, queue_size=320, steps=3000,
            warmup_steps=200, compile=True)


def train_arm(arm, seed, data, runs, **changes):
    """Last checkpoint of the finished run; a run that was interrupted goes on."""
    settings = changes | ARMS[arm]
    recipe = settings.pop("recipe")
    return pretrain(recipe, name=f"{arm}-seed{seed}", data=str(data), seed=seed, out=str(runs), resume=True,
                    **settings).checkpoint


def judge_arm(checkpoint, data, device):
    """Recalls, chances and accuracies of a run on the lists of `data`."""
    common: dict = dict(checkpoint=str(checkpoint), data=str(data), device=device)
    found = retrieve(RetrieveConfig(**common)) | evaluate(EvaluateConfig(**common))
    wanted = ("R@", "chance R@", "linear probe", "knn")
    return {"queries": found["val.txt"]["scored"], "gallery": found["train.txt"]["scored"],
            **{key: value for key, value in found.items() if key.startswith(wanted)}}


def study(options, **changes):
    """Rows, one a run and set; each run's are kept beside it in `judged.json`."""
    rows = []
    for seed in options.seeds:
        for arm in options.arms:
            start = time.perf_counter()
            checkpoint = train_arm(arm, seed, options.data, options.runs, device=options.device, **changes)
            minutes = round((time.perf_counter() - start) / 60, 2)
            record = Path(options.runs) / f"{arm}-seed{seed}" / "judged.json"
            known: dict = json.loads(record.read_text(encoding="utf8")) if record.exists() else {"minutes": minutes}
            for data in map(Path, options.judge):
                name = data.resolve().name
                if name not in known:
                    known[name] = judge_arm(checkpoint, data, options.device)
                    save(known, record)
                rows.append({"arm": arm, "seed": seed, "data": name, **known[name], "minutes": known["minutes"]})
                print({key: rows[-1][key] for key in ("arm", "seed", "data", "R@1", "linear probe")}, flush=True)
    return rows


def save(content, path):
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf8"))


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of videos to pretrain on")
    parser.add_argument("--judge", nargs="+", required=True, help="folders to judge on")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--full", action="store_true", help="R3D-18, 16 frames of 112²; wants a GPU")
    parser.add_argument("--steps", type=int, help="steps of each trained arm, instead of the recipe's")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--runs", default="runs/transfer", help="folder of the runs")
    parser.add_argument("--out", required=True, help="JSON file for the record")
    options = parser.parse_args(arguments)
    changes = (FULL if options.full else {}) | ({"steps": options.steps} if options.steps else {})
    rows = study(options, **changes)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    names = lambda folders: [Path(folder).resolve().name for folder in folders]  # not where they lie
    minutes = {(row["arm"], row["seed"]): row["minutes"] for row in rows}
    save({"commands": [shlex.join(["python", "benchmarks/transfer.py", "--data", *names([options.data]), "--judge",
                                   *names(options.judge), *["--full"] * options.full,
                                   *(["--steps", str(options.steps)] if options.steps else [])])],
          "commit": commit or "unknown", "date": str(date.today()), "machine": machine(pick_device(options.device)),
          "seeds": ", ".join(map(str, options.seeds)), "minutes": round(sum(minutes.values()), 1),
          "settings": changes, "rows": rows}, options.out)


if __name__ == "__main__":
    sys.exit(main())
