"""Fork processes that have PyTorch, MLflow and the like imported already: `python -I server.py SOCKET`.

Each connection is one program. Its first message is the program as JSON, with open files of the client: its standard
input, output and error, and what else it is given. Any further byte is a signal for it. The answer is its wait status.
When a client goes away, its program is killed. At the end of its input the server ends, and removes the socket's
folder. Nothing of this project is imported before the fork.
"""

import contextlib
import fcntl
import gc
import importlib
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import sys
import types
from pathlib import Path

PACKAGES = (  # what a training and a prediction have imported at their end
    "torch._dynamo", "torch._functorch.aot_autograd", "torch._inductor.codecache", "torch._inductor.freezing_utils",
    "torch.export._trace", "torch.export.pt2_archive", "torchvision.datasets", "torchvision.transforms",
    "torchsummary", "networkx", "sympy.combinatorics", "sympy.tensor.tensor",
    "mlflow.cli", "mlflow.projects", "mlflow.pyfunc", "mlflow.pytorch", "mlflow.models.display_utils",
    "mlflow.store.model_registry.sqlalchemy_workspace_store", "mlflow.store.tracking.sqlalchemy_workspace_store",
    "alembic.command", "sqlalchemy.dialects.sqlite", "git", "filelock", "platformdirs", "cffi.api",
    "numba", "numba.cpython.unicode", "numba.np.arrayobj", "numba.np.linalg", "numba.np.random.generator_methods",
    "numba.typed", "joblib", "tqdm", "pandas", "pyarrow.pandas_compat", "scipy.stats", "sklearn.datasets",
    "sklearn.metrics", "sklearn.model_selection", "matplotlib.backends.backend_agg", "matplotlib.figure",
    "PIL.BmpImagePlugin", "PIL.GifImagePlugin", "PIL.JpegImagePlugin", "PIL.PngImagePlugin", "PIL.PpmImagePlugin",
)  # fmt: skip
LARGEST = 2**20  # bytes of a program's message
MOST_FILES = 4


def serve(listener: socket.socket) -> dict | None:
    """Fork a process for each program, and return the program in that process; None at the end of the input."""
    clients = selectors.DefaultSelector()
    clients.register(listener, selectors.EVENT_READ)
    clients.register(0, selectors.EVENT_READ)
    while True:
        for key, _ in clients.select():
            if key.fd == 0:
                for pid in {other.data[0] for other in clients.get_map().values() if other.data}:
                    os.kill(pid, signal.SIGKILL)
                return None
            if key.fileobj is listener:
                client, _ = listener.accept()
                message, descriptors, _, _ = socket.recv_fds(client, LARGEST, MOST_FILES)
                if pid := os.fork():
                    for descriptor in descriptors:
                        os.close(descriptor)
                    ended = os.pidfd_open(pid)
                    clients.register(client, selectors.EVENT_READ, (pid, client, ended))
                    clients.register(ended, selectors.EVENT_READ, (pid, client, ended))
                    continue
                client.close()
                for other in [*clients.get_map().values()]:
                    if isinstance(other.fileobj, socket.socket):
                        other.fileobj.close()
                    elif other.fd:
                        os.close(other.fd)
                clients.close()
                return json.loads(message) | {"descriptors": descriptors}
            pid, client, ended = key.data
            if key.fileobj not in clients.get_map():
                continue  # it has ended in the same turn
            if key.fd == ended:
                status = os.waitpid(pid, 0)[1]
                clients.unregister(ended)
                os.close(ended)
                if client.fileno() >= 0:
                    clients.unregister(client)
                    with contextlib.suppress(OSError):  # it has just gone away
                        client.send(str(status).encode())
                    client.close()
            elif number := receive(client):
                os.kill(pid, number[0])
            else:
                clients.unregister(client)
                client.close()
                os.kill(pid, signal.SIGKILL)


def receive(client: socket.socket) -> bytes:
    """Receive a signal's number; nothing when the client is gone."""
    with contextlib.suppress(OSError):
        return client.recv(1)
    return b""


def parent(pid: int) -> int:
    """The number of a process's parent; 1 once the process has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 1
    return int(stat.rpartition(")")[2].split()[1])


def become(program: dict) -> None:
    """Run the program in this process, as `python` would."""
    # First to numbers that nobody uses: a descriptor may have the number that another one is to get.
    spare = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 100) for descriptor in program["descriptors"]]
    for descriptor in program["descriptors"]:
        os.close(descriptor)
    for descriptor, number in zip(spare, program["files"], strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.getppid = lambda: parent(program["pid"])
    os.chdir(program["folder"])
    os.umask(program["umask"])
    os.environ.clear()
    os.environ.update(program["environment"])
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through="PYTHONUNBUFFERED" in os.environ)
    sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in os.environ
    sys.executable = program["python"]
    if threads := os.environ.get("OMP_NUM_THREADS"):
        sys.modules["torch"].set_num_threads(int(threads))
    sys.argv, code, module, name = program["arguments"], program.get("code"), program.get("module"), program.get("name")
    if not program["isolated"]:
        folders = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        own = "" if code else str(Path().absolute() if module else Path(name).parent.absolute())
        sys.path[:0] = [own, *(str(Path(folder).absolute()) for folder in folders)]
    if code:
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), vars(main))
    elif module:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(name, run_name="__main__")


if __name__ == "__main__":
    gc.set_threshold(50_000)
    for package in PACKAGES:
        importlib.import_module(package)
    # Each log_model would look through the files of all installed packages.
    sys.modules["mlflow.utils.requirements_utils"]._init_packages_to_modules_map()
    gc.freeze()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(sys.argv[1])
        listener.listen(64)
        print(flush=True)  # ready
        program = serve(listener)
    if program:
        become(program)
    else:
        shutil.rmtree(Path(sys.argv[1]).parent)
