"""The built modules hold what their flags promise: packed arithmetic of their vector width."""

from __future__ import annotations

import functools
import importlib.util
import platform
import re
import shutil
import subprocess
from types import ModuleType
from typing import NamedTuple

import pytest

from softce_fast._kernels import execute, probe

COMPUTE_TYPES = ("float32", "float64")
REGISTER = {"avx2": "ymm", "avx512": "zmm"}
# A polynomial takes several: a loop with fewer is not one over exponentials.
SEVERAL = 4
LONGEST_LOOP = 600  # instructions

X86 = platform.machine().lower() in ("x86_64", "amd64")

pytestmark = [
    pytest.mark.skipif(not X86, reason=f"these are x86-64 builds, not {platform.machine()}"),
    pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump (binutils) is missing"),
]


class Instruction(NamedTuple):
    address: int
    name: str
    operands: str


@functools.cache
def instructions(variant: str, compute: str) -> list[Instruction]:
    """Disassemble a kernel module."""
    if variant not in probe.variants():
        pytest.skip(f"the {variant} build is not in this package")
    found = importlib.util.find_spec(f"softce_fast._kernels.{variant}_{compute}")
    assert found is not None
    assert found.origin is not None
    listing = subprocess.run(
        ["objdump", "--disassemble", "--no-show-raw-insn", found.origin],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    pattern = re.compile(r"^ *([0-9a-f]+):\t(\S+) *(.*)$", re.MULTILINE)
    return [Instruction(int(m[1], 16), m[2], m[3]) for m in pattern.finditer(listing)]


def loops(code: list[Instruction]) -> list[list[Instruction]]:
    """Return the bodies of short loops: from the target of a backward jump up to the jump."""
    position = {item.address: index for index, item in enumerate(code)}
    found = []
    for index, item in enumerate(code):
        if not item.name.startswith("j"):
            continue
        target = re.match(r"([0-9a-f]+)\b", item.operands)
        start = position.get(int(target[1], 16)) if target else None
        if start is not None and index - LONGEST_LOOP < start < index:
            body = code[start : index + 1]
            if not any(inner.name.startswith(("call", "ret")) for inner in body):
                found.append(body)
    return found


@pytest.mark.parametrize("compute", COMPUTE_TYPES)
@pytest.mark.parametrize("variant", ["avx512", "avx2"])
def test_hot_loops_hold_packed_fma(variant: str, compute: str) -> None:
    suffix = "pd" if compute == "float64" else "ps"
    fused = re.compile(rf"vfn?madd\d+{suffix}$")
    register = REGISTER[variant]

    def count(body: list[Instruction]) -> int:
        return sum(bool(fused.match(i.name)) and register in i.operands for i in body)

    hot = [body for body in loops(instructions(variant, compute)) if count(body) >= SEVERAL]
    # Softmax, log_softmax, logsumexp and cross-entropy; by rows and by tiles; and in writing.
    assert len(hot) >= 4, f"{len(hot)} loops with packed multiply-adds on {register}"


@pytest.mark.parametrize("compute", COMPUTE_TYPES)
@pytest.mark.parametrize("variant", ["avx512", "avx2"])
def test_multiply_adds_are_packed(variant: str, compute: str) -> None:
    """Scalar ones may occur around the loops, but not instead of them."""
    code = instructions(variant, compute)
    packed = sum(bool(re.match(r"vfn?madd\d+p[sd]$", item.name)) for item in code)
    scalar = sum(bool(re.match(r"vfn?madd\d+s[sd]$", item.name)) for item in code)
    assert packed > 10 * scalar


@pytest.mark.parametrize("compute", COMPUTE_TYPES)
@pytest.mark.parametrize("variant", ["avx512", "avx2", "baseline"])
def test_stores_past_the_caches_are_finished(variant: str, compute: str) -> None:
    """Other cores may see them late, without a fence: a call seldom shows it."""
    names = [item.name for item in instructions(variant, compute)]
    assert any(re.match(r"v?movnt(dq|p[sd])$", name) for name in names)
    assert "sfence" in names


@pytest.mark.parametrize("compute", COMPUTE_TYPES)
def test_baseline_holds_no_avx(compute: str) -> None:
    """It must run on every x86-64 CPU."""
    bad = [
        item
        for item in instructions("baseline", compute)
        if item.name.startswith("v") or re.search(r"%[yz]mm", item.operands)
    ]
    assert not bad, bad[:5]


@pytest.mark.parametrize("module", [probe, execute])
def test_what_is_always_loaded_holds_no_avx(module: ModuleType) -> None:
    assert module.__file__
    listing = subprocess.run(
        ["objdump", "--disassemble", "--no-show-raw-insn", module.__file__],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert not re.search(r"%[yz]mm", listing)


@pytest.mark.parametrize("compute", COMPUTE_TYPES)
def test_avx2_holds_no_avx512(compute: str) -> None:
    bad = [
        item
        for item in instructions("avx2", compute)
        if re.search(r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|2\d|3[01])", item.operands)
    ]
    assert not bad, bad[:5]
