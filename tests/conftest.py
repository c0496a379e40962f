"""Shared by all tests: where the repository is, and where real footage may lie."""
import contextlib
import os
from pathlib import Path

import pytest
import torch

from be_nb.machine.device import bf16_is_safe

ROOT = Path(__file__).resolve().parent.parent
needs_bf16 = pytest.mark.skipif(not bf16_is_safe(torch.device("cpu")), reason="a CPU whose bfloat16 kernels are faulty")
FOOTAGE = Path(os.environ.get("BE_NB_FOOTAGE", ROOT.parent / "shared" / "data"))


class Map(torch.nn.Module):
    "A backbone whose map is the clip itself."

    feature_dim = 3

    def features(self, clips):
        return clips


def pytest_addoption(parser):
    parser.addini("fast", "files and tests that `make check` runs", type="linelist")


def pytest_ignore_collect(collection_path, config):
    "`-m fast` imports no file that has no fast test."
    if config.option.markexpr == "fast" and collection_path.suffix == ".py":
        listed = {config.rootpath / entry.split("::")[0] for entry in config.getini("fast")}
        return None if collection_path in listed else True


def pytest_collection_modifyitems(config, items):
    for entry in config.getini("fast"):
        if not (config.rootpath / entry.split("::")[0]).is_file():
            raise pytest.UsageError(f"pytest.ini calls {entry} fast, and it is not there")
    for item in items:
        if item.nodeid.split("::")[0] in config.getini("fast") or item.nodeid.split("[")[0] in config.getini("fast"):
            item.add_marker(pytest.mark.fast)


@pytest.fixture
def footage():
    "The folder of real videos, or a skip that says what is missing."
    if not FOOTAGE.is_dir():
        pytest.skip(f"no real footage at {FOOTAGE}; set BE_NB_FOOTAGE to a folder that holds clips/, lists/, ucf101-6/")
    return FOOTAGE


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    "Frame counts are remembered in a folder of the test run, never in the user's home."
    monkeypatch.setenv("BE_NB_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@contextlib.contextmanager
def little_memory(more=1 << 30):
    "At most `more` bytes beyond what is in use: whoever believes in a large number gets no memory for it."
    resource = pytest.importorskip("resource")
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("needs /proc to know how much memory is in use")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
