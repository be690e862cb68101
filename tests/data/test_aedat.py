import logging
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sj_prune.data import read_aedat, to_spikingjelly, write_aedat

CHIP = b"# AEChip: ch.unizh.ini.jaer.chip.retina.DVS128\r\n"
VERSION = b"#!AER-DAT2.0\r\n"
GENUINE = sorted(Path(os.environ.get("SJ_PRUNE_TEST_EVENTS", "/nonexistent")).glob("*.aedat"))


def pack(*pairs):
    return b"".join(struct.pack(">II", *pair) for pair in pairs)


def address(x, y, p):
    return (127 - x) << 1 | y << 8 | p


TWO = pack((address(3, 5, 1), 10), (address(127, 0, 0), 12))


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "a.aedat"
        path.write_bytes(content)
        return path

    return write


def slow_parser(path):
    """The format word by word: an independent reading of it."""
    t, x, y, p = [], [], [], []
    with open(path, "rb") as stream:
        start = 0
        while (line := stream.readline()).startswith(b"#"):
            start += len(line)
        stream.seek(start)
        while pair := stream.read(8):
            word, time = struct.unpack(">II", pair)
            if not word & 0x8000:
                t.append(time)
                x.append(127 - ((word >> 1) & 0x7F))
                y.append((word >> 8) & 0x7F)
                p.append(word & 1)
    return {"t": t, "x": x, "y": y, "p": p}


def host_parser(path):
    """SpikingJelly's own parser; 0.0.0.0.14's needs a NumPy that has np.bool and fromstring."""
    from spikingjelly.datasets import cifar10_dvs

    try:
        if hasattr(cifar10_dvs, "_load_origin_data"):
            return cifar10_dvs._load_origin_data(path)
        return cifar10_dvs.CIFAR10DVS.load_origin_data(path)
    except (AttributeError, ValueError) as error:
        pytest.skip(f"the host's own parser fails here: {error}")


def same(a, b):
    assert set(a) == set(b)
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@st.composite
def recordings(draw):
    n = draw(st.integers(1, 40))

    def ints(high):
        return draw(hnp.arrays(np.int64, n, elements=st.integers(0, high)))

    start = draw(st.integers(0, 2**32 - 1))
    steps = draw(hnp.arrays(np.int64, n, elements=st.integers(0, 2**31 - 1)))
    steps[0] = 0
    return {"t": start + np.cumsum(steps), "x": ints(127), "y": ints(127), "p": ints(1)}


@given(events=recordings())
@settings(max_examples=75, deadline=None)
def test_what_is_written_is_read(events, tmp_path_factory):
    """Also across wraps of the 32-bit clock."""
    path = tmp_path_factory.getbasetemp() / "roundtrip.aedat"
    write_aedat(path, events)
    read = read_aedat(path)
    assert list(read) == ["t", "x", "y", "p"]
    same(read, events)
    assert read.special_events == 0


@given(words=st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=60), lines=st.integers(0, 90))
@settings(max_examples=50, deadline=None)
def test_equals_a_word_by_word_parser(words, lines, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "words.aedat"
    body = pack(*((word, 7 * i) for i, word in enumerate([*words, 0])))
    path.write_bytes(b"".join(b"# line %d\r\n" % i for i in range(lines)) + body)
    read = read_aedat(path)
    same(read, slow_parser(path))
    assert read.special_events == sum(word >> 15 for word in words)
    assert len(read.header) == lines


@given(words=st.lists(st.integers(0, 0x7FFF), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_equals_the_host_parser(words, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "host.aedat"
    path.write_bytes(VERSION + CHIP + pack(*((word, i) for i, word in enumerate(words))))
    same(to_spikingjelly(read_aedat(path)), host_parser(path))


@pytest.mark.skipif(not GENUINE, reason="SJ_PRUNE_TEST_EVENTS names no folder of recordings")
@pytest.mark.parametrize("path", GENUINE, ids=lambda path: path.stem)
def test_genuine_recordings(path, tmp_path):
    events = read_aedat(path)
    same(events, slow_parser(path))
    same(to_spikingjelly(events), host_parser(path))
    assert events["t"].size > 10_000
    assert (np.diff(events["t"]) >= 0).all()
    write_aedat(tmp_path / "copy.aedat", events)
    same(read_aedat(tmp_path / "copy.aedat"), events)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        VERSION,
        CHIP,
        VERSION + CHIP,
        VERSION.replace(b"\r", b""),
        b"#!AER-DAT2\r\n" + b"# x\n" * 300,
        b"#\r\n" + b"#" * 5000 + b"\r\n",
        b"# AEChip: DVS128\n",
        "# Zürich, für alle\r\n".encode(),
        b"# this AEChip has preferences\r\n",
        b"#End Of ASCII Header\r\n",
    ],
)
def test_headers_of_any_form(file, header):
    events = read_aedat(file(header + TWO))
    same(events, {"t": [10, 12], "x": [3, 127], "y": [5, 0], "p": [1, 0]})
    assert "".join(events.header) == header.decode().replace("\r", "").replace("\n", "")


def test_special_events_are_dropped_and_counted(file, caplog):
    """Also one out of the order of time: nothing reads its time."""
    path = file(VERSION + pack((0x8000, 99), (address(1, 2, 1), 5), (0xFFFF, 1)))
    with caplog.at_level(logging.INFO, "sj_prune"):
        events = read_aedat(path)
    assert set(events) == {"t", "x", "y", "p"}
    assert events["t"].tolist() == [5]
    assert events.special_events == 2
    assert "2 special events dropped" in caplog.text


def test_a_wrap_of_the_clock_is_unrolled(file):
    path = file(pack((0, 2**32 - 5), (0, 3), (0, 2**31), (0, 2**32 - 1), (0, 0)))
    wrap = 2**32
    expected = [wrap - 5, wrap + 3, wrap + 2**31, 2 * wrap - 1, 2 * wrap]
    assert read_aedat(path)["t"].tolist() == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (VERSION + b"# AEChip: eu.seebetter.ini.chips.davis.DAVIS240C\r\n" + TWO, "DAVIS240C"),
        (VERSION + b"# AEChip: ch.ini.DVS1280\r\n" + TWO, "DVS128 sensor but got AEChip ch.ini"),
        (b"#!AER-DAT3.1\r\n" + TWO, "got AER-DAT 3.1"),
        (b"#!AER-DAT1.0\r\n" + TWO, "got AER-DAT 1.0"),
        (TWO + pack((1 << 16, 20)), "0x00010000 in event 2"),
        (VERSION + pack((0x80008000, 20)), "0x80008000"),
        (VERSION + pack((0x23000000, 20), (0x230A0000, 21)), "0x23000000 in event 0"),
        (VERSION + TWO[:-4], "multiple of 8 bytes after the header but got 12"),
        (VERSION + TWO[:-3], "got 13"),
        (b"", "at least one event"),
        (VERSION + CHIP, "at least one event"),
        (VERSION.rstrip(), "at least one event"),
        (VERSION + pack((0x8000, 1)), r"none \(1 special events\)"),
        (pack((0, 5), (0, 9), (0, 8)), "got 8 us after 9 us at event 2"),
        (pack(*((0, time) for time in range(50, 0, -1))), "49 such steps"),
    ],
)
def test_refused(file, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_aedat(file(content))
    assert "a.aedat: Expected" in str(caught.value)


GOOD = {"t": [1, 2], "x": [0, 127], "y": [127, 0], "p": [0, 1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": [0, 128]}, "x in 0..127"),
        ({"y": [-1, 0]}, "y in 0..127"),
        ({"p": [0, 2]}, "p in 0..1"),
        ({"p": [0]}, "vector of 2 integers"),
        ({"x": [0.0, 1.0]}, "vector of 2 integers"),
        ({"t": [2, 1]}, "not to go back"),
        ({"t": [-1, 1]}, "not to go back"),
        ({"t": [2**32, 2**32]}, "start in 0"),
        ({"t": [2**32 - 1, 2**32 + 2**31]}, "less than 2"),
        ({"q": [0, 0]}, "the keys"),
        ({"t": [], "x": [], "y": [], "p": []}, "at least one event"),
    ],
)
def test_writing_refuses(tmp_path, change, message):
    events = {**GOOD, **change}
    if not events["t"]:
        events = {key: np.zeros(0, dtype=int) for key in events}
    with pytest.raises(ValueError, match=message):
        write_aedat(tmp_path / "a.aedat", events)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.aedat"
    write_aedat(path, GOOD)

    def half(self, content):
        with self.open("wb") as stream:
            stream.write(content[:50])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(KeyboardInterrupt):
        write_aedat(path, {**GOOD, "t": [7, 8]})
    same(read_aedat(path), GOOD)
    assert list(tmp_path.iterdir()) == [path]
