"""How long commands take to start, beside `import torch` in the same minute: medians of interleaved runs, and ratios.

    python benchmarks/startup.py                    # a table
    python benchmarks/startup.py --repeats 9 --out startup.json

Each repeat starts a fresh Python for every row, one after the other, so that a busy machine slows all of them alike.
Only the ratios are worth comparing between machines. The aim is 1.5 for `doctor`, `export` and the scripts of
`data_scripts/`.
"""
import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent


def rows(empty):
    "Name → the words after `python`. Errors are told when everything that the command needs is loaded."
    cli = ["-m", "be_nb.cli"]
    scripts = {f"data_scripts/{path.name} --help": [str(path), "--help"]
               for path in sorted((ROOT / "data_scripts").glob("*.py"))}
    return {"import torch": ["-c", "import torch"],
            "be-nb evaluate --help": [*cli, "evaluate", "--help"],
            "be-nb evaluate, a wrong path": [*cli, "evaluate", "--checkpoint", f"{empty}/no", "--data", "scenebias"],
            "be-nb doctor, no pack": [*cli, "doctor", str(empty)],
            "be-nb export, no checkpoint": [*cli, "export", "--checkpoint", str(empty), "--out", f"{empty}/w"],
            "be-nb retrieve, no checkpoint": [*cli, "retrieve", "--checkpoint", str(empty), "--data", "scenebias"],
            **scripts}


def seconds(words):
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode not in (0, 2):  # 2: a message
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr}")
    return time.perf_counter() - began


def measure(repeats):
    "Row → its median time in seconds, and the ratio to `import torch`."
    with tempfile.TemporaryDirectory() as empty:
        found = {name: [] for name in rows(empty)}
        for repeat in range(repeats + 1):
            for name, words in rows(empty).items():
                spent = seconds(words)
                if repeat:  # the first round fills the caches of the disk
                    found[name].append(spent)
    medians = {name: median(times) for name, times in found.items()}
    return {name: {"seconds": round(value, 2), "ratio": round(value / medians["import torch"], 2)}
            for name, value in medians.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", help="JSON file for the result")
    options = parser.parse_args()
    result = measure(options.repeats)
    for name, row in result.items():
        print(f"{name:45s} {row['seconds']:6.2f} s  {row['ratio']:5.2f} × import torch")
    if options.out:
        from be_nb.machine.device import machine

        record = {"python": sys.version.split()[0], "machine": machine(), "repeats": options.repeats, "rows": result}
        Path(options.out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf8")
