"""The one place that starts programs.

Commands are lists; standard input is empty unless given; the environment is made from an allow-list; a child
dies with this process (also on ``kill -9``), and never gets the terminal's Ctrl-C before we do.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shlex
import shutil
import signal
import subprocess  # noqa: TID251 - this is the one module that may
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, TypeAlias

from imagebuilder.errors import CommandError, DeadlineError, ToolMissingError

# Names a child may inherit: where programs, homes and scratch space are, and how the network is reached.
ENVIRONMENT = (
    "PATH", "HOME", "TMPDIR", "XDG_CACHE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
)  # fmt: skip
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TAIL_LINES = 20  # lines of output shown when a command fails
CAPTURE_LIMIT = 64 << 20  # bytes of standard output kept: an apt index listing is about 1 MiB
STILL_OURS = '[ "$PPID" = "$0" ] || exit 125; exec "$@"'
GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL

NOWHERE = subprocess.DEVNULL  # for spawn(): output that nobody wants
Child: TypeAlias = "subprocess.Popen[bytes]"  # what spawn() returns, for annotations elsewhere


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What a finished program left: ``stdout`` only when captured, ``tail`` its last lines otherwise."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    tail: tuple[str, ...]
    seconds: float


class Runner(Protocol):
    """How the rooms run programs; tests put a strict fake here."""

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: bytes = b"",
        capture: bool = False,
        check: bool = True,
        log: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        timeout: float | None = None,
        patience: float = 0.0,
    ) -> Result:
        """Run a program to its end; see :class:`RealRunner`."""


def base_environment() -> dict[str, str]:
    """Return the allowed part of this process's environment, with a fixed locale and time zone."""
    env = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    path = [entry for entry in env.get("PATH", "").split(":") if entry]
    env["PATH"] = ":".join([*path, *(entry for entry in SYSTEM_PATH.split(":") if entry not in path)])
    return env | {"LC_ALL": "C.UTF-8", "LANG": "C.UTF-8", "TZ": "UTC"}


def inherited(*prefixes: str) -> dict[str, str]:
    """Return this process's variables whose names start with one of ``prefixes``: host configuration."""
    return {name: value for name, value in os.environ.items() if name.startswith(prefixes)}


def find(program: str) -> Path | None:
    """Return where a program is, looking into the sbin folders too, or None."""
    found = shutil.which(program, path=base_environment()["PATH"])
    return Path(found) if found else None


def require(program: str, *, package: str) -> Path:
    """Return where a program is.

    Raises:
        ToolMissingError: it is not installed; the hint installs ``package``.
    """
    if path := find(program):
        return path
    raise ToolMissingError(f"{program} is not installed", hint=f"apt-get install {package}")


def dying_with_us(argv: Sequence[str | Path]) -> list[str]:
    """Prefix a command so that the kernel kills it when this process dies, however it dies.

    The shell looks whether we died before the kernel knew: it then has another parent, and starts nothing.
    """
    command = [os.fspath(word) for word in argv]
    if not find("setpriv"):
        return command
    return ["setpriv", "--pdeathsig", "KILL", "--", "/bin/sh", "-c", STILL_OURS, str(os.getpid()), *command]


def namespaces(*, network: bool = False) -> list[str]:
    """Return the prefix that puts a command into namespaces: with it end all that it started. Needs root.

    Args:
        network: keep the host's network; otherwise there is none.
    """
    flags = ["--mount", "--pid", "--fork", "--kill-child=KILL", "--uts", "--ipc", "--propagation", "private"]
    return ["unshare", *flags, *([] if network else ["--net"]), "--"]


def spawn(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: int | IO[bytes] = subprocess.STDOUT,
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own and return its handle.

    Raises:
        ToolMissingError: the program does not exist.
    """
    command = [os.fspath(word) for word in argv]
    full_env = base_environment() | dict(env or {})
    program = shutil.which(command[0], path=full_env["PATH"])
    if program is None:
        raise ToolMissingError(f"{command[0]} is not installed", hint="imagebuilder doctor")
    return subprocess.Popen(
        dying_with_us([program, *command[1:]]),
        env=full_env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True,
    )  # fmt: skip


def stop(child: subprocess.Popen[bytes], *, grace: float = GRACE_SECONDS) -> None:
    """End a child and its session: SIGTERM, ``grace`` seconds, SIGKILL. Does nothing when it has ended."""
    for sig, wait in ((signal.SIGTERM, grace), (signal.SIGKILL, None)):
        if child.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, sig)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(wait)


class RealRunner:
    """Runs programs on this host."""

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: bytes = b"",
        capture: bool = False,
        check: bool = True,
        log: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        timeout: float | None = None,
        patience: float = 0.0,
    ) -> Result:
        """Run a program to its end.

        Args:
            argv: program and arguments.
            env: variables on top of :func:`base_environment`.
            cwd: working directory.
            stdin: bytes for its standard input.
            capture: keep standard output apart and whole in the result; else it is a line of the log.
            check: raise when it does not exit with 0.
            log: a file that all its output is appended to.
            on_line: called with each line of output that is not captured.
            timeout: deadline in seconds, after which it is ended.
            patience: seconds that it gets to clean up, once it is interrupted or its deadline is over.

        Raises:
            ToolMissingError: the program does not exist.
            CommandError: it failed and ``check`` is set.
            DeadlineError: it was still running after ``timeout`` seconds.
        """
        words = tuple(os.fspath(word) for word in argv)
        start = time.monotonic()
        child = spawn(
            words, env=env, cwd=cwd,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stderr=subprocess.PIPE if capture else subprocess.STDOUT,
        )  # fmt: skip
        try:
            with _log_stream(log, words) as sink:
                stdout, tail = _pump_patiently(child, stdin, capture, sink, on_line, timeout, patience)
        except (TimeoutError, subprocess.TimeoutExpired):
            stop(child)
            message = f"{words[0]} was still running after {timeout:.0f} s and was ended"
            raise DeadlineError(message, context=pasteable(words), hint=_log_hint(log)) from None
        finally:
            stop(child)
            _close_pipes(child)
        result = Result(
            argv=words, returncode=child.returncode, stdout=stdout, tail=tail,
            seconds=time.monotonic() - start,
        )  # fmt: skip
        if check and child.returncode:
            raise command_error(result, log)
        return result


def command_error(result: Result, log: Path | None = None) -> CommandError:
    """Return the error for a failed command: how it ended, its last lines, and the command to paste."""
    code = result.returncode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    context = "\n".join([*result.tail, f"command: {pasteable(result.argv)}"])
    return CommandError(f"{Path(result.argv[0]).name} {how}", context=context, hint=_log_hint(log))


def pasteable(argv: Sequence[str | Path]) -> str:
    """Return a command as it can be pasted into a shell."""
    return shlex.join(os.fspath(word) for word in argv)


def _log_hint(log: Path | None) -> str:
    return f"the whole log is in {log}" if log else ""


@contextlib.contextmanager
def _log_stream(log: Path | None, argv: Sequence[str]) -> Iterator[IO[bytes] | None]:
    if log is None:
        yield None
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab", buffering=0) as stream:  # who waits can follow it
        stream.write(f"+ {pasteable(argv)}\n".encode())
        yield stream


def _close_pipes(child: subprocess.Popen[bytes]) -> None:
    for stream in (child.stdin, child.stdout, child.stderr):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()


class _Lines:
    """Cuts a byte stream into lines, writes them to the log, keeps the last ones."""

    def __init__(self, sink: IO[bytes] | None, on_line: Callable[[str], None] | None) -> None:
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._sink, self._on_line, self._rest = sink, on_line, b""

    def feed(self, data: bytes) -> None:
        if self._sink is not None:
            self._sink.write(data)
        *lines, self._rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        for line in filter(None, lines):
            self._take(line)

    def finish(self) -> None:
        if self._rest:
            self._take(self._rest)

    def _take(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace")
        self.tail.append(text)
        if self._on_line is not None:
            self._on_line(text)


def _pump(
    child: subprocess.Popen[bytes],
    stdin: bytes,
    capture: bool,
    sink: IO[bytes] | None,
    on_line: Callable[[str], None] | None,
    timeout: float | None,
) -> tuple[str, tuple[str, ...]]:
    """Move bytes until the child has ended; a grandchild that keeps a pipe open does not hold us up."""
    deadline = None if timeout is None else time.monotonic() + timeout
    lines, captured, pending = _Lines(sink, on_line), bytearray(), memoryview(stdin)
    with selectors.DefaultSelector() as selector:
        for stream in (child.stdout, child.stderr):
            if stream is not None:
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, selectors.EVENT_READ)
        if child.stdin is not None:
            os.set_blocking(child.stdin.fileno(), False)
            selector.register(child.stdin, selectors.EVENT_WRITE)
        while selector.get_map():
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError
            ended = child.poll() is not None  # asked first: what it says as its last, just now, is then still read
            ready = selector.select(0.2)
            if ended and not ready:
                break
            for key, _ in ready:
                if key.fileobj is child.stdin:
                    pending = _push(selector, child.stdin, pending)
                    continue
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fileobj)
                elif capture and key.fileobj is child.stdout:
                    captured += data[: max(0, CAPTURE_LIMIT - len(captured))]
                else:
                    lines.feed(data)
    lines.finish()
    child.wait(None if deadline is None else max(0.1, deadline - time.monotonic()))
    return captured.decode("utf-8", "replace"), tuple(lines.tail)


def _pump_patiently(
    child: subprocess.Popen[bytes],
    stdin: bytes,
    capture: bool,
    sink: IO[bytes] | None,
    on_line: Callable[[str], None] | None,
    timeout: float | None,
    patience: float,
) -> tuple[str, tuple[str, ...]]:
    """Move bytes; when that is cut short, let the child clean up, and go on moving what it says meanwhile."""
    try:
        return _pump(child, stdin, capture, sink, on_line, timeout)
    except BaseException:
        if patience and child.poll() is None:
            # To itself only: what it started is its own to end. A second interruption ends the waiting.
            child.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError, subprocess.TimeoutExpired):
                _pump(child, b"", capture, sink, on_line, patience)
        raise


def _push(selector: selectors.BaseSelector, stream: IO[bytes] | None, pending: memoryview) -> memoryview:
    assert stream is not None
    try:
        pending = pending[os.write(stream.fileno(), pending) :]
    except BlockingIOError:
        return pending
    except BrokenPipeError:
        pending = memoryview(b"")
    if not pending:
        selector.unregister(stream)
        stream.close()
    return pending
