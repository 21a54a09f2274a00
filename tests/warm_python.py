"""Python processes without the seconds of their imports, for tests of scripts with many steps and of fresh processes.

A server imports what takes long and runs each process in a fork of itself. `python` in a folder hands its arguments,
environment and files over to the server: in place of `sys.executable`, or in front of the PATH. Such a process has one
thread, and ends without `atexit`.
"""

import fcntl
import json
import os
import runpy
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import traceback
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path

CLIENT = """\
#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({address!r})
    socket.send_fds(connection, [b"."], [0, 1, 2])
    connection.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode())
    connection.shutdown(socket.SHUT_WR)
    sys.exit(int(connection.recv(16)))
"""

ENVIRONMENT, PLACE = dict(os.environ), Path(tempfile.gettempdir())
"""Of the tests, before one of them changes them."""
RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid.uuid4().hex


@cache
def fresh_python() -> str:
    """A `python` that has imported torch and what it needs, but nothing of Hugging Face or of this package."""
    return _started("libraries")


@cache
def package_python() -> str:
    """A `python` that has imported this package as well, in the environment of the tests, and has loaded a model."""
    return _started("package")


def _started(imported: str) -> str:
    """The `python` of a server that all workers of a run share, alone in its folder; it ends with the run."""
    owner = os.getppid() if "PYTEST_XDIST_TESTRUNUID" in os.environ else os.getpid()
    folder = PLACE / f"{imported}-{RUN}"
    client, address = folder / "python", str(folder / "socket")
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not client.exists():
            environment = ENVIRONMENT | {"OMP_NUM_THREADS": "1"}
            if imported == "libraries":
                environment.pop("PYTHONPATH", None)  # each process has its own
            command = [sys.executable, __file__, address, imported, str(owner)]
            server = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
            assert server.stdout.readline(), "the server did not get ready"
            client.write_text(CLIENT.format(python=sys.executable, address=address))
            client.chmod(client.stat().st_mode | stat.S_IXUSR)
    return str(client)


def import_libraries() -> None:
    """What no variable of the environment changes, so that a process may have one of its own."""
    import pandas  # noqa: F401
    import sklearn  # noqa: F401
    import sympy  # noqa: F401
    import torch._dynamo
    import torch.distributed.fsdp
    import torch.distributed.tensor  # noqa: F401

    names = ("huggingface_hub", "transformers", "diffusers", "datasets", "accelerate", "sona_pipeline")
    assert not (there := sys.modules.keys() & set(names)), there


def import_package() -> None:
    """The package, and what transformers, diffusers and matplotlib load with their first model or figure, and keep."""
    import datasets  # noqa: F401
    import numpy as np

    import sona_pipeline.cli.app
    import sona_pipeline.evaluation.evaluate
    import sona_pipeline.generation.generate
    import sona_pipeline.generation.inspection
    import sona_pipeline.training.train  # noqa: F401
    from sona_pipeline import load_pipeline
    from sona_pipeline.common.figures import figure_png, scores_figure
    from sona_pipeline.data.class_names import synsets

    figure_png(scores_figure({"": {"": np.arange(9.0)}}))
    load_pipeline("tiny", "cpu")
    synsets("cat")


def serve(address: str, owner: int) -> None:
    """Run processes as they are asked for, each in a fork, as long as the process `owner` is there."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        listener.settimeout(1)
        print("ready", flush=True)
        while is_there(owner):
            with suppress(TimeoutError):
                connection, _ = listener.accept()
                if os.fork() == 0:
                    code = process(connection)
                    connection.sendall(str(code).encode())
                    os._exit(0)
                connection.close()
    shutil.rmtree(Path(address).parent)


def is_there(process: int) -> bool:
    """Whether a process has not ended."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def process(connection: socket.socket) -> int:
    """What one `python` does; gives its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
    for own, given in enumerate(descriptors):
        os.dup2(given, own)
        os.close(given)
    with connection.makefile() as request:
        arguments, folder, environment = json.load(request)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    try:
        start(arguments)
        return 0
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        return 1 if isinstance(ended.code, str) else ended.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()


def start(arguments: list[str]) -> None:
    """`python` with these arguments: `-c CODE`, `-m MODULE` or a script, and what follows; `-u` changes nothing."""
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
    sys.stdout = os.fdopen(1, "w", 1, encoding, closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding, "backslashreplace", closefd=False)
    sys.path[0] = ""
    sys.path[1:1] = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    kind, *others = arguments[arguments[0] == "-u" :]
    if kind == "-c":
        sys.argv = ["-c", *others[1:]]
        exec(compile(others[0], "<string>", "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        sys.argv = others
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [kind, *others], str(Path(kind).resolve().parent)
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    {"libraries": import_libraries, "package": import_package}[sys.argv[2]]()
    serve(sys.argv[1], int(sys.argv[3]))
