"""Several ranks on one machine: processes forked from the test, joined by gloo over the loopback device."""
import faulthandler
import os
import pickle
import socket
import sys
import traceback

import torch._dynamo  # noqa: F401  DistributedDataParallel imports it, which takes seconds, so once here

from be_nb.machine.distributed import process_group

PATIENCE = 300  # seconds, after which a rank that still runs says where it stands, and ends


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def child(function, number, world, port, path):
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(world), "LOCAL_RANK": str(number), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    code = 0
    try:
        found = function()
        path.write_bytes(pickle.dumps(found))
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)


def fork(function, *arguments):
    pid = os.fork()
    if pid == 0:
        child(function, *arguments)
    return pid


def exit_codes(world, function, folder):
    "Run `function()` in `world` ranks; their exit codes, and what they returned (None for one that failed)."
    port, paths = free_port(), [folder / f"rank{r}.pickle" for r in range(world)]
    pids = [fork(function, r, world, port, paths[r]) for r in range(world)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return codes, [pickle.loads(path.read_bytes()) if path.exists() else None for path in paths]


def on_ranks(world, function, folder):
    "What `function()` returns in each of `world` ranks."
    codes, found = exit_codes(world, function, folder)
    assert codes == [0] * world, codes
    return found


def joined(function):
    "The function inside a process group."
    def inside():
        with process_group("cpu"):
            return function()
    return inside
