"""`python -m sona_pipeline` without the seconds of its imports, for tests of scripts with many steps.

A server imports the package once, loads a model, and runs each step in a fork of itself; `python` in a folder to be put in front of the
PATH hands its arguments, environment and output over to the server.
"""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLIENT = """\
#!{python} -IS
import json, os, socket, sys
if sys.argv[1:3] != ["-m", "sona_pipeline"]:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({address!r})
    socket.send_fds(connection, [b"."], [1, 2])
    connection.sendall(json.dumps([sys.argv[3:], os.getcwd(), dict(os.environ)]).encode())
    connection.shutdown(socket.SHUT_WR)
    sys.exit(int(connection.recv(16)))
"""


@contextmanager
def warm_python(folder: Path) -> Iterator[Path]:
    """A server, as long as the context lasts; gives the folder of its `python`, which lies in `folder`."""
    client, address = folder / "python", str(folder / "socket")
    client.write_text(CLIENT.format(python=sys.executable, address=address))
    client.chmod(client.stat().st_mode | stat.S_IXUSR)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, __file__, address], stdout=subprocess.PIPE, env=environment) as server:
        try:
            assert server.stdout.readline(), "the server did not get ready"
            yield folder
        finally:
            server.kill()


def serve(address: str) -> None:
    """Run steps as they are asked for, each in a process of its own."""
    import datasets  # noqa: F401
    import matplotlib.pyplot  # noqa: F401

    import sona_pipeline.evaluation.evaluate
    import sona_pipeline.generation.generate
    import sona_pipeline.generation.inspection
    import sona_pipeline.training.train  # noqa: F401
    from sona_pipeline import load_pipeline
    from sona_pipeline.data.class_names import synsets

    load_pipeline("tiny", "cpu")  # transformers and diffusers load more of themselves, and keep it
    synsets("cat")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                code = step(connection)
                connection.sendall(str(code).encode())
                os._exit(0)
            connection.close()


def step(connection: socket.socket) -> int:
    """What one `python -m sona_pipeline` does; gives its exit code."""
    from sona_pipeline.cli.app import main

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 2)
    for own, given in enumerate(descriptors, start=1):
        os.dup2(given, own)
    with connection.makefile() as request:
        arguments, folder, environment = json.load(request)
    sys.argv = ["sona", *arguments]
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    try:
        main()
        return 0
    except SystemExit as ended:
        return int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
