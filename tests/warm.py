"""Kernels that start at once: a process that has imported what is slow to import, and is forked for every notebook.

`server()` starts it, once for the process that asks, and names its socket. A kernel is then a launcher of a few
milliseconds, `python -S tests/warm.py SOCKET CONNECTION_FILE`, which says where it stands and waits; the kernel is a
fork of the server in the same folder with the same environment. Whoever kills the launcher kills the kernel. Nothing of
the library is imported beforehand, and no thread is started, so a notebook sees what it sees in a kernel of its own.
"""
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile

SLOW = ("torch", "torchvision", "numpy", "scipy.stats", "matplotlib.pyplot", "sklearn.linear_model",
        "sklearn.model_selection", "pandas", "PIL.Image", "av", "einops", "tqdm.auto", "tyro", "safetensors.torch",
        "ipykernel.kernelapp", "ipykernel.zmqshell", "ipywidgets", "torch.utils.data", "torch.utils.flop_counter")


def receive(connection):
    "One JSON line."
    text = b""
    while not text.endswith(b"\n"):
        part = connection.recv(65536)
        if not part:
            raise EOFError
        text += part
    return json.loads(text)


def launch(path, connection_file):
    "The launcher: ask for a kernel, wait for its end, and end with the same status."
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # comes before a shutdown; the kernel is told by a message
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        order = {"file": connection_file, "folder": os.getcwd(), "env": dict(os.environ)}
        connection.sendall(json.dumps(order).encode() + b"\n")
        return receive(connection)


def become_kernel(order):
    "In the fork: the folder and environment of the launcher, then an ordinary kernel."
    import importlib

    os.chdir(order["folder"])
    os.environ.update(order["env"])  # beside what imports have set
    sys.argv[:] = ["ipykernel_launcher", "-f", order["file"]]
    sys.modules["torch"].seed()  # which an import draws by chance
    del sys.path[0]  # the folder of this file; `-m ipykernel_launcher` takes its own away as well
    importlib.import_module("ipykernel.kernelapp").launch_new_instance()


def attend(connection):
    "Of one launcher: fork its kernel, end it when the launcher is gone, or tell the launcher that it has ended."
    import select

    order = receive(connection)
    child = os.fork()
    if not child:
        connection.close()
        os.setsid()
        become_kernel(order)
        os._exit(0)
    ended = os.pidfd_open(child)
    ready, _, _ = select.select([ended, connection], [], [])
    if ended not in ready:
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    connection.sendall(json.dumps(os.waitstatus_to_exitcode(status)).encode() + b"\n")


def serve(path):
    "Import what is slow, then answer launchers until the standard input is closed: until whoever started this ends."
    import importlib
    import select
    from contextlib import suppress

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who attended a launcher is not waited for
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    for name in SLOW:
        with suppress(ImportError):
            importlib.import_module(name)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(path)
        door.listen(64)
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([door, sys.stdin], [], [])
            if sys.stdin in ready:
                return
            connection, _ = door.accept()
            if not os.fork():
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                door.close()
                with suppress(EOFError, OSError):
                    attend(connection)
                os._exit(0)
            connection.close()


running: dict = {}


def server():
    "The socket of this process's server, which is started by the first call and ends with the process."
    if not running:
        folder = tempfile.TemporaryDirectory(prefix="warm")
        path = os.path.join(folder.name, "socket")
        env = {"OMP_NUM_THREADS": "1"} | os.environ  # a notebook's default, too; torch reads it once, before the fork
        process = subprocess.Popen([sys.executable, __file__, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   env=env)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n", "the server has not started"
        running.update(folder=folder, path=path, process=process)
    return running["path"]


if __name__ == "__main__":
    sys.exit(launch(*sys.argv[1:]) if len(sys.argv) == 3 else serve(sys.argv[1]))
