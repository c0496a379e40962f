"""Background Erasing for video representation learning: the course and the library. Start at `be_nb.train.pretrain`."""
__version__ = "0.1.0"


def __getattr__(name):
    """`be_nb.load(path)` is `be_nb.saving.weights.load`; torch is imported only when it is first asked for."""
    if name == "load":
        from be_nb.saving.weights import load

        return load
    raise AttributeError(f"module 'be_nb' has no attribute {name!r}")
