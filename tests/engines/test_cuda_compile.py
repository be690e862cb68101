"""The CUDA source through NVRTC with CuPy's options: it compiles, without spills, for every GPU."""

import functools
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import cycle, product
from pathlib import Path

import pytest

from sj_prune.engines import cupy_device
from sj_prune.engines.launch import Variant
from sj_prune.neurons.reference import IF, LIF, PLIF
from sj_prune.neurons.statistics import TABLE, rows_of
from sj_prune.neurons.surrogates import KNOWN
from tests.support import nvrtc

ARCHITECTURES = (75, 80, 90, 100, 120)
# Elements a thread may move, and steps it may keep, by type: see `launch`.
WIDTHS = [("float", v) for v in (1, 2, 4)]
WIDTHS += [(name, v) for name in ("Half", "Bfloat16") for v in (1, 2, 4, 8)]
CHUNKS = (4, 8, 12, 16, 20, 28, 32, 40, 64)

CODES = {cls.__name__: form.code for cls, form in KNOWN.items()}
SIGMOID, SOFT, TANH = CODES["Sigmoid"], CODES["SoftSign"], CODES["Tanh"]
EVERY = tuple(TABLE.values())
BASE = Variant(
    kind=LIF, decay_input=1, hard=1, detach=0, inverse=0, surrogate=SIGMOID, type="float", vec=4
)
FORWARD = replace(BASE, statistics=EVERY)
BACKWARD = replace(BASE, chunk=4, grads=1)
# Those that need the most registers.
WORST = [
    replace(FORWARD, type="Half", vec=8, store=3),
    replace(FORWARD, type="Bfloat16", vec=8, kind=PLIF, surrogate=TANH),
    replace(FORWARD, store=3, surrogate=TANH),
    replace(
        FORWARD,
        type="Bfloat16",
        vec=8,
        kind=IF,
        decay_input=0,
        store=3,
        surrogate=SOFT,
    ),
    replace(BACKWARD, chunk=16, grads=3),
    replace(BACKWARD, chunk=16, vec=1, grads=3),
    replace(BACKWARD, type="Half", vec=8, chunk=8, grads=3, surrogate=TANH),
    replace(BACKWARD, type="Bfloat16", vec=8, chunk=8, hard=0, grads=3),
    replace(BACKWARD, type="Half", vec=8, chunk=8, kind=PLIF, grads=3),
    replace(BACKWARD, chunk=16, kind=PLIF, grads=3, surrogate=TANH),
    replace(BACKWARD, chunk=32, vec=2, kind=PLIF, grads=3, surrogate=TANH),
    replace(BACKWARD, chunk=64, vec=1, kind=PLIF, grads=3),
    replace(BACKWARD, type="Half", chunk=64, vec=1, grads=3, hard=0, surrogate=TANH),
]


def settings():
    """Return every combination of the neuron's settings."""
    return [
        replace(BASE, kind=kind, decay_input=decay, hard=hard, detach=detach, inverse=inverse)
        for kind, decay, hard, detach, inverse in product((IF, LIF, PLIF), *((0, 1),) * 4)
        if not (kind == IF and decay) and not (kind != LIF and inverse)
    ]


def fits(variant):
    """Tell whether `geometry.chunk_and_width` may ask for this backward variant."""
    return variant.vec * variant.chunk <= 64


def turns(variants, **fields):
    """Give `variants` values of `fields`, name to list, that take turns at different paces."""
    wheels = {name: cycle(values) for name, values in fields.items()}
    return [replace(v, **{name: next(wheel) for name, wheel in wheels.items()}) for v in variants]


def forward_variants():
    """Every neuron with every surrogate, and all that is recorded with all that is stored."""
    neurons = [replace(v, surrogate=c) for v in settings() if not v.detach for c in CODES.values()]
    chosen = [rows_of(k) for k in range(1 << len(TABLE))]
    recorded = [replace(BASE, statistics=k, store=s) for k, s in product(chosen, range(4))]
    some = [EVERY, *(chosen[k] for k in (8, 17, 24, 7))]
    found = turns(neurons, statistics=some, store=[0, 1, 2, 3])
    found += turns(recorded, kind=[LIF, IF, PLIF], surrogate=list(CODES.values()))
    widths = cycle(WIDTHS)
    return [replace(v, **dict(zip(("type", "vec"), next(widths), strict=True))) for v in found]


def backward_variants():
    """Every neuron with every surrogate, and every size with every given gradient."""
    sizes = [
        replace(BASE, kind=kind, type=name, vec=vec, chunk=chunk, grads=grads)
        for kind, (name, vec), chunk, grads in product((LIF, PLIF), WIDTHS, CHUNKS, (1, 3))
    ]
    sizes = [v for v in sizes if fits(v)]
    neurons = [replace(v, surrogate=c) for v in settings() for c in CODES.values()]
    by_kind = {kind: cycle([v for v in sizes if v.kind == kind]) for kind in (LIF, PLIF)}
    found = []
    for v in neurons:
        size = next(by_kind[PLIF if v.kind == PLIF else LIF])
        found.append(replace(v, type=size.type, vec=size.vec, chunk=size.chunk, grads=size.grads))
    return found + turns(sizes, surrogate=list(CODES.values()), hard=[1, 0])


def compile_(variant, architecture, **kwargs):
    options = (*cupy_device.OPTIONS, *variant.options())
    return nvrtc.compile_(cupy_device.code("lif.cu"), architecture, options, **kwargs)


def assert_compiles(variant, architecture):
    """Compile, without spills, to at least one kernel."""
    log, _ = compile_(variant, architecture)
    used = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", log)
    assert used
    assert set(used) == {("0", "0", "0")}, log


def name_of(variant):
    named = {code: name for name, code in CODES.items()}
    recorded = "".join(str(int(row in variant.statistics)) for row in EVERY)
    fields = {**vars(variant), "surrogate": named[variant.surrogate], "statistics": recorded}
    return "-".join(map(str, fields.values()))


LARGEST = list(product(WORST, ARCHITECTURES))
# Every variant on two architectures, every architecture with four variants; the others are slow.
FEW = [LARGEST[5 * i + (i + k) % 5] for i in range(len(WORST)) for k in (0, 2)]


@pytest.mark.parametrize(
    ("variant", "architecture"),
    [
        pytest.param(*one, id=f"{name_of(one[0])}-{one[1]}", marks=slow)
        for one in LARGEST
        for slow in [[] if one in FEW else pytest.mark.slow]
    ],
)
def test_largest_variants(variant, architecture):
    assert_compiles(variant, architecture)


def largest_of_every_surrogate():
    """Return forward variants that record and store everything, eight elements a thread."""
    full = [
        replace(FORWARD, vec=8, store=3, surrogate=code, kind=kind, decay_input=int(kind != IF))
        for code, kind in product(CODES.values(), (IF, LIF, PLIF))
    ]
    return turns(full, type=["Half", "Bfloat16"], hard=[1, 0, 1, 1, 0])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_largest_variants_of_every_surrogate(architecture):
    for variant in largest_of_every_surrogate():
        assert_compiles(variant, architecture)


ALL = forward_variants() + backward_variants()
# Pairs of a variant and an architecture such that each architecture meets a fifth of the variants.
PAIRS = list(zip(ALL, cycle(ARCHITECTURES), strict=False))


@pytest.mark.parametrize(("variant", "architecture"), PAIRS[::31])
def test_variants(variant, architecture):
    assert_compiles(variant, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_all_variants(part):
    for variant, architecture in PAIRS[part::10]:
        assert_compiles(variant, architecture)


@functools.cache
def disassembler():
    """Return the cuobjdump that torch's own triton brings; skip without."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    found = shutil.which("cuobjdump") or (str(path) if path.exists() else None)
    return found or pytest.skip("needs cuobjdump")


def accesses(variant, kernel, folder):
    """Return the instructions of `kernel` that access device memory."""
    _, cubin = compile_(variant, 90)
    file = folder / "lif.cubin"
    file.write_bytes(cubin)
    done = subprocess.run(
        [disassembler(), "--dump-sass", "-fun", kernel, str(file)],
        capture_output=True,
        text=True,
        check=True,
    )
    return re.findall(r"\b((?:LD|ST)[GL]?\.\S+)", done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="triton is there on Linux alone")
@pytest.mark.parametrize(
    ("name", "vec"),
    [("float", 4), ("Half", 8), pytest.param("Bfloat16", 8, marks=pytest.mark.slow)],
)
def test_accesses_are_16_bytes_wide(name, vec, tmp_path):
    """All but those of the statistics, once a channel, and of the PLIF's gradient, once a block."""
    pytest.importorskip("triton")
    wide = {"type": name, "vec": vec}
    for kernel, narrow, variant in (
        ("sj_rows", 0, replace(FORWARD, **wide, statistics=())),
        ("sj_rows", 5, replace(FORWARD, **wide, store=3)),
        ("sj_columns", 5 * vec, replace(FORWARD, **wide)),
        ("sj_groups", 5, replace(FORWARD, **wide)),
        ("sj_backward", 0, replace(BACKWARD, **wide, grads=3)),
        ("sj_backward", 0, replace(BACKWARD, **wide, chunk=64 // vec)),
    ):
        found = accesses(variant, kernel, tmp_path)
        others = [one[:2] for one in found if ".128" not in one]
        assert others.count("ST") == narrow, found
        # v0 where it is one number, at the start and where the first chunk comes again.
        assert others.count("LD") <= 2, found
