"""Background Erasing for video representation learning: the course and the library. Start at `be_nb.train.pretrain`."""


def __getattr__(name):
    """`be_nb.load(path)` is `be_nb.saving.weights.load`, `be_nb.__version__` that of the installed package.

    Both are looked up when they are first asked for, so that `import be_nb` costs nothing.
    """
    if name == "load":
        from be_nb.saving.weights import load as value
    elif name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value = version("be_nb")
        except PackageNotFoundError:  # a source tree that was never installed
            value = "0+not.installed"
    else:
        raise AttributeError(f"module 'be_nb' has no attribute {name!r}")
    globals()[name] = value
    return value
