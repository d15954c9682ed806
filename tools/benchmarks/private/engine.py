"""Two parties on this machine that compute on secret shares, and the count of what they send to each other.

Each party is a process with SPU's runtime. Both listen on 127.0.0.1 only. The process that starts them cuts every input
into two shares, gives each party its own, and puts the two shares of the result together. Only the messages between the
parties are counted.
"""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import os
import re
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np


HOST = "127.0.0.1"
PROTOCOLS = ("SEMI2K", "CHEETAH")
FIELDS = {"FM32": 32, "FM64": 64, "FM128": 128}  # bits of a share of one number
START = 300.0  # seconds for a party to load JAX and SPU and to connect
PR_SET_PDEATHSIG = 1  # of Linux, the one system that SPU is built for here
TRAFFIC = re.compile(r"(?:- (\S+), executed \d+ times|Link details).*?send bytes (\d+).*?send actions (\d+)")


class EngineError(RuntimeError):
    """A party died, disagreed, failed or did not answer in time; both are stopped."""


@dataclass(frozen=True)
class Settings:
    """How the parties compute.

    ``protocol``: ``SEMI2K`` is the online phase only; its correlated randomness comes from a trusted dealer and is not
    counted. ``CHEETAH`` is complete between two parties. ``field`` and ``fraction_bits``: numbers are fixed-point, in a
    ring of 32, 64 or 128 bits. ``ports``: of the two parties, None for free ones. ``timeout``: seconds for one program.
    """

    protocol: str = "SEMI2K"
    field: str = "FM64"
    fraction_bits: int = 18
    ports: tuple[int, int] | None = None
    timeout: float = 600.0

    def __post_init__(self) -> None:
        for name, allowed in (("protocol", PROTOCOLS), ("field", FIELDS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(allowed)}")
        largest = FIELDS[self.field] // 2 - 1  # a product has twice as many, and a sign
        if not 1 <= self.fraction_bits <= largest:
            raise ValueError(f"fraction_bits: {self.fraction_bits!r} must be between 1 and {largest} in {self.field}")
        if not self.timeout > 0:
            raise ValueError(f"timeout: {self.timeout!r} must be above 0 seconds")
        if self.ports is not None:
            if len(set(self.ports)) != 2 or not all(1024 <= port < 2**16 for port in self.ports):
                raise ValueError(f"ports: {self.ports!r} must be two different ports between 1024 and 65535")
            for port in self.ports:
                with socket.socket() as probe:
                    try:
                        probe.bind((HOST, port))
                    except OSError as error:
                        raise ValueError(f"ports: {port} on {HOST} is not free ({error.strerror})") from None


@dataclass(frozen=True)
class Result:
    """``value``: the result, put together. ``bytes``: sent by both parties. ``messages``: sends of the party with more
    of them, an upper bound on the rounds. ``seconds``: of the slower party. ``kernel_bytes``: of all traffic on the
    loopback device in that time, None where the system does not count it. ``kinds``: bytes by instruction of SPU."""

    value: np.ndarray
    bytes: int
    messages: int
    seconds: float
    kernel_bytes: int | None
    kinds: dict[str, int] = field(default_factory=dict)


class Parties:
    """Two running parties; use it as a context manager. After an :class:`EngineError` they are gone.

    >>> with Parties(Settings()) as parties:  # doctest: +SKIP
    ...     parties.run(operations.relu, {"x": x}).bytes
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._stack = ExitStack()
        folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        self._logs = [Path(folder, f"party{rank}.log") for rank in (0, 1)]
        _quiet(Path(folder, "dealer.log"))
        spawn = multiprocessing.get_context("spawn")
        ports = settings.ports or _free_ports()
        self.pipes: list[Connection] = []
        self.processes = []
        for rank in (0, 1):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_party, args=(rank, ports, settings, theirs, self._logs[rank]), daemon=True)
            process.start()
            theirs.close()  # so that the end of the process is the end of the pipe
            self.pipes.append(ours)
            self.processes.append(process)
        self._collect("start", START)

    def __enter__(self) -> Parties:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop both parties, whatever they are doing."""
        for process, pipe in zip(self.processes, self.pipes, strict=True):
            process.kill()
            process.join()
            pipe.close()
        self._stack.close()

    def run(self, program: Callable[..., Any], inputs: Mapping[str, np.ndarray]) -> Result:
        """Compute ``program(**inputs)``, a JAX function that can be pickled, with every input secret.

        Raises:
            EngineError: a party died, disagreed, failed or was too slow.
        """
        return self.ask([program, program], inputs)

    def ask(self, programs: Sequence[Callable[..., Any]], inputs: Mapping[str, np.ndarray]) -> Result:
        """:meth:`run` with a program for each party, which refuse to compute if they differ."""
        import spu

        shaper = spu.Io(2, _runtime(self.settings))
        shares = {name: shaper.make_shares(x, spu.Visibility.VIS_SECRET) for name, x in inputs.items()}
        shapes = {name: (x.shape, str(x.dtype)) for name, x in inputs.items()}
        for rank, pipe in enumerate(self.pipes):
            with suppress(OSError):  # it is gone, and its answer says so
                pipe.send((programs[rank], shapes, {name: both[rank] for name, both in shares.items()}))
        first, second = self._collect("answer", self.settings.timeout)
        kinds = Counter(first["kinds"])
        kinds.update(second["kinds"])
        return Result(
            value=shaper.reconstruct([first["share"], second["share"]]),
            bytes=first["bytes"] + second["bytes"],
            messages=max(first["messages"], second["messages"]),
            seconds=max(first["seconds"], second["seconds"]),
            kernel_bytes=first["kernel_bytes"],
            kinds={kind: count for kind, count in kinds.items() if count},
        )

    def _collect(self, what: str, seconds: float) -> list[Any]:
        """One message of each party; an error, an end or silence of one stops both."""
        deadline = time.monotonic() + seconds
        answers: dict[int, Any] = {}
        failure = ""
        while len(answers) < 2 and not failure:
            open_pipes: dict[Any, int] = {self.pipes[rank]: rank for rank in (0, 1) if rank not in answers}
            ready: list[Any] = wait(list(open_pipes), max(0.0, deadline - time.monotonic()))
            if not ready:
                silent = " and ".join(map(str, open_pipes.values()))
                failure = f"no {what} from party {silent} in {seconds:g} s"
            for pipe in ready:
                rank = open_pipes[pipe]
                try:
                    answers[rank] = pipe.recv()
                except (EOFError, OSError):
                    self.processes[rank].join(5)
                    failure = (
                        f"party {rank} ended with exit code {self.processes[rank].exitcode}{self._last_words(rank)}"
                    )
                    break
                if isinstance(answers[rank], str):
                    failure = f"party {rank}: {answers[rank]}"
                    break
        if failure:
            self.close()
            raise EngineError(f"{self.settings.protocol}: {failure}; both parties are stopped")
        return [answers[0], answers[1]]

    def _last_words(self, rank: int) -> str:
        """What a party that ended wrote last to its standard error, in brackets."""
        lines = self._logs[rank].with_suffix(".err").read_text(errors="replace").split("\n")
        found = [line.strip() for line in lines if line.strip()]
        return f" ({found[-1][:200]})" if found else ""


def loopback_bytes() -> int | None:
    """Bytes that the kernel has sent over the loopback device, headers included; None where it does not say."""
    device = Path("/proc/net/dev")
    if not device.exists():
        return None
    for line in device.read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "lo":
            return int(counts.split()[8])
    return None


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind((HOST, 0))
        second.bind((HOST, 0))
        return first.getsockname()[1], second.getsockname()[1]


def _quiet(log: Path) -> None:
    """Send SPU's messages to a file instead of the terminal."""
    from spu import libspu

    options = libspu.logging.LogOptions()
    options.enable_console_logger = False
    options.system_log_path = str(log)
    libspu.logging.setup_logging(options)


def _runtime(settings: Settings) -> Any:
    """SPU's own settings, with the count of bytes for every instruction."""
    from spu import libspu

    config = libspu.RuntimeConfig(
        getattr(libspu.ProtocolKind, settings.protocol), getattr(libspu.FieldType, settings.field)
    )
    config.fxp_fraction_bits = settings.fraction_bits
    config.enable_pphlo_profile = True
    return config


def _party(rank: int, ports: tuple[int, int], settings: Settings, pipe: Connection, log: Path) -> None:
    """The life of a party: connect, then a program at a time until the pipe ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # however the process that started it ends, it ends too
    os.dup2(os.open(log.with_suffix(".err"), os.O_WRONLY | os.O_CREAT), 2)
    try:
        _quiet(log)
        import spu
        from spu import libspu

        description = libspu.link.Desc()
        description.recv_timeout_ms = int(settings.timeout * 1000)
        description.connect_retry_times, description.connect_retry_interval_ms = int(START), 1000
        for number, port in enumerate(ports):
            description.add_party(f"party{number}", f"{HOST}:{port}")
        link = libspu.link.create_brpc(description, rank)
        runtime = spu.Runtime(link, _runtime(settings))
        pipe.send({})
        while True:
            pipe.send(_compute(link, runtime, log, *pipe.recv()))
    except EOFError:  # no more programs
        return
    except Exception as error:
        said = str(error).replace("what:", "").split()  # SPU's messages go over many lines
        pipe.send(" ".join(said)[:300] or type(error).__name__)


def _compiled(program: Callable[..., Any], names: Sequence[str], shapes: Mapping[str, Any]) -> Any:
    """What SPU runs: the program on secret inputs of these names, its outputs ``output0``, ``output1``, ..."""
    import spu
    from spu.utils import frontend

    zeros = {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}
    secret = [spu.Visibility.VIS_SECRET] * len(names)

    def outputs(leaves: Sequence[Any]) -> list[str]:
        return [f"output{number}" for number in range(len(leaves))]

    def called(inputs: Mapping[str, Any]) -> Any:
        return program(**inputs)

    return frontend.compile(frontend.Kind.JAX, called, [zeros], {}, names, secret, outputs)[0]


def _compute(
    link: Any,
    runtime: Any,
    log: Path,
    program: Callable[..., Any],
    shapes: Mapping[str, Any],
    shares: Mapping[str, Any],
) -> dict[str, Any]:
    """Run one program on this party's shares, and read from SPU's log what it sent."""
    names = sorted(shapes)  # the order in which JAX takes a mapping
    executable = _compiled(program, names, shapes)
    digests = link.all_gather(hashlib.sha256(executable.code).hexdigest())
    if len(set(digests)) != 1:
        raise EngineError("the two parties were given different programs")
    for name in names:
        runtime.set_var(name, shares[name])
    link.barrier()
    sent, read = loopback_bytes(), log.stat().st_size
    link.barrier()  # nobody sends before both have read
    start = time.perf_counter()
    runtime.run(executable)
    seconds = time.perf_counter() - start
    link.barrier()
    after = loopback_bytes()
    with log.open(errors="replace") as file:
        file.seek(read)
        found = TRAFFIC.findall(file.read())
    ((_, total, messages),) = [line for line in found if not line[0]]
    share = runtime.get_var("output0")
    for name in (*names, "output0"):
        runtime.del_var(name)
    return {
        "share": share,
        "bytes": int(total),
        "messages": int(messages),
        "seconds": seconds,
        "kernel_bytes": None if sent is None or after is None else after - sent,
        "kinds": {kind.removeprefix("pphlo."): int(count) for kind, count, _ in found if kind},
    }
