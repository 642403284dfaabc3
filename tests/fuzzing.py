"""What tests/test_fuzz.py draws and measures with: damaged files, and a reader that is given only so much time and memory."""

from __future__ import annotations

import inspect
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SECONDS = 200  # for one file; the slowest takes one, or twenty on a machine with much else to do
MEGABYTES = 600  # a picture at the limit of MOST_PIXELS takes 400


class Hangs(BaseException):
    """No reader handles it."""


@pytest.fixture(autouse=True)
def _bounded():
    """No test takes much more memory than it had at its start; the system counts for us."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def megabytes(name: str) -> float:
        return int(status.read_text().split(f"{name}:")[1].split()[0]) / 1024

    if not reset.exists():
        yield
        return
    reset.write_text("5")  # VmHWM, the most memory that the process has had, is counted from here on
    before = megabytes("VmRSS")
    yield
    assert megabytes("VmHWM") - before < MEGABYTES


def fuzz(examples: int) -> Callable:
    """Run a test on so many drawn files, or on 150 times as many under `-m slow`."""

    def decorate(test: Callable) -> Callable:
        common = {
            "database": None,
            "deadline": None,
            "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
        }

        @pytest.mark.parametrize("length", ["short", pytest.param("long", marks=pytest.mark.slow)])
        def both(length, *args, **kwargs):
            long = length == "long"
            options = settings(max_examples=examples * (150 if long else 1), derandomize=not long, **common)
            options(test)(*args, **kwargs)

        # pytest passes what the signature asks for: `length`, and the fixtures that hypothesis leaves to it.
        own = inspect.signature(test).parameters.values()
        both.__signature__ = inspect.Signature([inspect.Parameter("length", inspect.Parameter.POSITIONAL_OR_KEYWORD), *own])
        both.__name__, both.__doc__ = test.__name__, test.__doc__
        return both

    return decorate


def read_or_refused(read: Callable[[], object], path: Path) -> object:
    """The value of `read`; None if it refuses with an error that a script turns into one message about `path`."""

    def hangs(*_):
        raise Hangs(f"{path} is not read within {SECONDS} s")

    former = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    try:
        return read()
    except (ValueError, FileNotFoundError) as error:
        text = str(error)
        assert str(path) in text, f"does not name the file: {type(error).__name__}: {text}"
        assert len(text) < 4000 and "Traceback" not in text
        return None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


# --- what is drawn -------------------------------------------------------------------------------------------

EXTREMES = [
    struct.pack(order + kind, value)
    for order in "<>"
    for kind, value in (("H", 0xFFFF), ("I", 0), ("I", 0x7FFFFFFF), ("I", 0xFFFFFFFF), ("Q", 2**62), ("Q", 2**64 - 1))
]
CHUNKS = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(EXTREMES),
    st.sampled_from([b"\0" * 64, b"\xff" * 64, b"PK\3\4", b"PK\1\2", b"\x80\2"]),
)
PLACES = st.floats(0, 1, exclude_max=True)
CHANGES = st.one_of(
    st.tuples(st.just("flip"), PLACES, st.integers(0, 7)),
    st.tuples(st.just("cut"), PLACES, st.just(0)),
    st.tuples(st.just("remove"), PLACES, st.integers(1, 300)),
    st.tuples(st.just("repeat"), PLACES, st.integers(1, 300)),
    st.tuples(st.sampled_from(["insert", "write"]), PLACES, CHUNKS),
)


def changed(content: bytes, changes: list) -> bytes:
    for kind, place, what in changes:
        at = int(place * len(content))
        if kind == "flip" and content:
            content = content[:at] + bytes([content[at] ^ 1 << what]) + content[at + 1 :]
        elif kind == "cut":
            content = content[:at]
        elif kind == "remove":
            content = content[:at] + content[at + what :]
        elif kind == "repeat":
            content = content[: at + what] + content[at:]
        elif kind == "insert":
            content = content[:at] + what + content[at:]
        elif kind == "write":
            content = content[:at] + what + content[at + len(what) :]
    return content


def damaged(*whole: bytes) -> st.SearchStrategy[bytes]:
    """One of the files with a few changes, mostly near its beginning, where formats keep what they are about; or noise."""
    places = st.lists(CHANGES, min_size=1, max_size=4)
    early = places.map(lambda changes: [(kind, place**4, what) for kind, place, what in changes])
    return st.one_of(st.builds(changed, st.sampled_from(whole), st.one_of(places, early)), st.binary(max_size=200))


PLAIN = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 300),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from([10**400, -(2**63), "\0", "\ud800", "1e400", "road"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(st.one_of(st.text(max_size=5), st.integers(), st.none()), inner, max_size=4)
    ),
    max_leaves=12,
)
