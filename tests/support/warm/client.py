"""Start a Python program by the server, and end as it ends: `python -IS client.py SOCKET FOLDER PROGRAM ARGUMENTS…`.

What the server does not run, or is not to run (COLD_START is set), starts by itself. So do MLflow's servers: tests end
them by a signal to their process group, to which a warm program does not belong.
"""

# pathlib takes longer to import than everything else here.
# ruff: noqa: PTH109, PTH118, PTH120
import json
import os
import signal
import socket
import sys

_, address, folder, program, *arguments = sys.argv


def understand() -> dict | None:
    """Read the command line as `python` would; None if the program is to start by itself."""
    if "COLD_START" in os.environ:
        return None
    rest = ["-I", "-m", "mlflow", *arguments] if program == "mlflow" else arguments
    if isolated := rest[:1] == ["-I"]:
        rest = rest[1:]
    if rest[:1] == ["-c"]:
        return {"isolated": isolated, "code": rest[1], "arguments": ["-c", *rest[2:]]}
    if module := rest[:1] == ["-m"]:
        rest = rest[1:]
    if not rest or rest[0].startswith("-") or (module and rest[0] == "mlflow" and not starts_warm(rest[1:])):
        return None
    return {"isolated": isolated, "module": module, "name": rest[0], "arguments": rest}


def starts_warm(command: list[str]) -> bool:
    """Whether this command of MLflow starts warm: those that end by themselves."""
    return command[:1] == ["run"] or command[:2] == ["models", "predict"]


def open_files() -> list[int]:
    """The numbers of the open files that the program is to get."""
    named = [int(argument.rpartition("/dev/fd/")[2]) for argument in arguments if "/dev/fd/" in argument]
    return [0, 1, 2, *named]


if (given := understand()) is None:
    real = os.path.join(folder, program)
    os.execv(real, [real, *arguments])
given |= {
    "folder": os.getcwd(),
    "pid": os.getpid(),
    "files": open_files(),
    "umask": os.umask(0),
    "environment": dict(os.environ),
    "python": os.path.join(os.path.dirname(address), "bin", "python"),
}
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
    server.connect(address)
    socket.send_fds(server, [json.dumps(given).encode()], given["files"])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: server.send(bytes([number])))
    status = int(server.recv(16) or 256)
if os.WIFSIGNALED(status):
    number = os.WTERMSIG(status)
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
sys.exit(os.WEXITSTATUS(status))
