"""Functions of this process run by the emulator Bochs, whose CPU (a Cannon Lake) has AVX-512 without VNNI."""

from __future__ import annotations

import ctypes
import mmap
import struct
import subprocess
import tempfile
from pathlib import Path

from gencli.kernels.build import compiler

LIBC = ctypes.CDLL(None)
NEWER = r"""
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
unsigned long long __isoc23_strtoull(const char *s, char **end, int base) { return strtoull(s, end, base); }
int __isoc23_sscanf(const char *s, const char *format, ...) {
    va_list all;
    va_start(all, format);
    int found = vsscanf(s, format, all);
    va_end(all);
    return found;
}
"""
if not hasattr(LIBC, "__isoc23_sscanf"):  # the wheel was linked to glibc 2.38, and asks for it by these two alone
    with tempfile.TemporaryDirectory() as folder:
        command = [*compiler(), "-shared", "-fPIC", "-xc", "-", "-o", f"{folder}/newer.so"]
        subprocess.run(command, input=NEWER, text=True, check=True)
        ctypes.CDLL(f"{folder}/newer.so", ctypes.RTLD_GLOBAL)

import bochscpu  # noqa: E402
from bochscpu import memory  # noqa: E402

GIB, PAGE = 1 << 30, 1 << 12
PRESENT, HUGE = 7, 128  # of a page table: present, to be written, of user and system; a page of 1 GiB
GET_FS = 0x1003  # of arch_prctl: where a thread's own variables are
CR0, CR4, EFER, XCR0 = 0x80050033, 0x50620, 0xD01, 0xE7  # 64 bits with pages; SSE, AVX and AVX-512 are on
CODE, DATA = 0xA09B, 0xC093
INTEGERS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")


class Bochs:
    """A CPU that sees this process's memory at its own addresses."""

    def __init__(self) -> None:
        self.slots = list[int]()  # the GiB of addresses that each GiB of the CPU's memory stands for
        self.tables = dict[int, mmap.mmap]()
        self.top = self.table(PAGE)  # entries of 512 GiB
        self.second = dict[int, tuple[int, mmap.mmap]]()  # entries of 1 GiB
        self.stack = mmap.mmap(-1, 1 << 22)
        self.stack_top = ctypes.addressof(ctypes.c_char.from_buffer(self.stack)) + (1 << 22) - PAGE
        self.stack[-PAGE:] = b"\xf4" * PAGE  # hlt: where a function returns to
        self.failed = ""

    def table(self, at: int) -> mmap.mmap:
        """A page of the tables, at an address of the CPU's memory below the first GiB that stands for another."""
        made = self.tables[at] = mmap.mmap(-1, PAGE)
        memory.page_insert(at, ctypes.addressof(ctypes.c_char.from_buffer(made)))
        return made

    def map(self) -> None:
        """Give each GiB in which this process has memory one of the CPU's."""
        for line in Path("/proc/self/maps").read_text().splitlines():
            first, last = (int(one, 16) for one in line.split()[0].split("-"))
            for gib in range(first // GIB, min((last - 1) // GIB, first // GIB + 8) + 1):
                if gib in self.slots or gib >= 1 << 17:  # above: the kernel's
                    continue
                self.slots.append(gib)
                high = gib // 512
                if high not in self.second:
                    at = 2 * PAGE + PAGE * len(self.second)
                    self.second[high] = at, self.table(at)
                    struct.pack_into("<Q", self.top, 8 * high, at | PRESENT)
                struct.pack_into("<Q", self.second[high][1], 8 * (gib % 512), len(self.slots) * GIB | PRESENT | HUGE)

    def missing(self, at: int) -> None:
        """Lend a page of this process."""
        gib = self.slots[at // GIB - 1]
        memory.page_insert(at // PAGE * PAGE, gib * GIB + at % GIB // PAGE * PAGE)

    def call(self, function: int, *given: int) -> int:
        """Call a function at an address and return rax."""
        self.map()
        session, hook, state = bochscpu.Session(), bochscpu.Hook(), bochscpu.State()
        session.missing_page_handler = self.missing
        state.cr0, state.cr3, state.cr4, state.efer, state.xcr0 = CR0, PAGE, CR4, EFER, XCR0
        state.rflags, state.mxcsr, state.mxcsr_mask, state.fpcw = 2, 0x1F80, 0xFFFF, 0x37F
        for name in ("cs", "ds", "es", "ss", "fs", "gs"):
            segment = bochscpu.Segment()
            segment.present, segment.selector, segment.limit = True, 16, 0xFFFFFFFF
            segment.attr, segment.base = (CODE if name == "cs" else DATA), 0
            if name == "fs":
                base = ctypes.c_uint64()
                LIBC.syscall(158, GET_FS, ctypes.byref(base))
                segment.base = base.value
            setattr(state, name, segment)
        sp = self.stack_top - PAGE
        for i, one in enumerate((self.stack_top, *given[6:])):  # a page of hlt to return to
            ctypes.c_uint64.from_address(sp - 8 + 8 * i).value = one & (1 << 64) - 1
        state.rsp, state.rip = sp - 8, function
        for name, value in zip(INTEGERS, given, strict=False):
            setattr(state, name, value & (1 << 64) - 1)
        session.cpu.state = state
        self.failed = ""

        def wrong(_session: bochscpu.Session, _cpu: int, vector: int, code: int) -> None:
            self.failed = f"exception {vector} ({code:#x}) at {session.cpu.state.rip:#x}, {session.cpu.state.cr2:#x}"
            session.stop()

        hook.hlt = lambda _session, _cpu: session.stop()
        hook.exception = wrong
        session.run([hook])
        if self.failed:
            raise RuntimeError(self.failed)
        return int(session.cpu.state.rax)
