"""A shared library for ARM (aarch64) run by the emulator unicorn, within this process's own memory."""

from __future__ import annotations

import ctypes
import mmap
import struct
from pathlib import Path

import unicorn
from unicorn import arm64_const as arm
from unicorn.unicorn_const import UC_ARCH_ARM64, UC_HOOK_CODE, UC_HOOK_MEM_UNMAPPED, UC_MODE_ARM, UC_PROT_ALL

CPUS = {"max": arm.UC_CPU_ARM64_MAX, "cortex-a72": arm.UC_CPU_ARM64_A72}  # the latter has no dot products
GIB = 1 << 30
RET, LOAD_RET = struct.pack("<I", 0xD65F03C0), struct.pack("<II", 0xF9400400, 0xD65F03C0)  # ret; ldr x0, [x0, 8]: ret
RELATIVE, GLOB_DAT, JUMP_SLOT, ABS64, TLSDESC = 1027, 1025, 1026, 257, 1031
LOAD, DYNSYM, RELA = 1, 11, 4  # of ELF: a segment, and two kinds of sections
FLOATS = ("sqrtf", "rintf")  # functions of one float; others are of integers
LIBC = ctypes.CDLL(None)


class Arm:
    """A CPU, and a library on it. What it takes from the C library is this process's; its addresses are the same here
    and there, for all of this process's memory is its own."""

    def __init__(self, file: Path, cpu: str):
        self.emulator = unicorn.Uc(UC_ARCH_ARM64, UC_MODE_ARM)
        self.emulator.ctl_set_cpu_model(CPUS[cpu])
        self.emulator.reg_write(arm.UC_ARM64_REG_CPACR_EL1, 3 << 20)  # NEON is on
        self.mapped = set[int]()
        self.emulator.hook_add(UC_HOOK_MEM_UNMAPPED, self.map)
        self.memory = mmap.mmap(-1, 1 << 24)  # the library, stubs, thread's own, stack
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.stubs, self.own = self.base + (1 << 22), self.base + (2 << 22)
        self.memory[1 << 22 : (1 << 22) + 8] = LOAD_RET  # a thread's variables are where the number beside it says
        self.imports = list[str]()
        self.symbols = self.load(file.read_bytes())
        first = self.stubs + 16
        self.emulator.hook_add(UC_HOOK_CODE, self.imported, begin=first, end=first + 8 * len(self.imports))
        self.emulator.reg_write(arm.UC_ARM64_REG_TPIDR_EL0, self.own)

    def map(self, emulator: unicorn.Uc, _access: int, address: int, *_: object) -> bool:
        first = address // GIB * GIB
        if first == 0 or first in self.mapped:
            return False
        self.mapped.add(first)
        emulator.mem_map_ptr(first, GIB, UC_PROT_ALL, first)
        return True

    def load(self, elf: bytes) -> dict[str, int]:
        """Lay out a library and return the addresses of its symbols."""
        program, sections = struct.unpack_from("<QQ", elf, 32)
        program_size, programs, section_size, count = struct.unpack_from("<4H", elf, 54)
        for i in range(programs):
            kind, _, offset, address, _, size = struct.unpack_from("<IIQQQQ", elf, program + i * program_size)
            if kind == LOAD:
                self.memory[address : address + size] = elf[offset : offset + size]
        headers = [struct.unpack_from("<IIQQQQII", elf, sections + i * section_size) for i in range(count)]
        names, symbols = dict[int, str](), dict[str, int]()
        values, defined = dict[int, int](), dict[int, bool]()
        for _, kind, _, _, offset, size, link, _ in headers:
            for i in range(size // 24 if kind == DYNSYM else 0):
                name, _, _, section, value, _ = struct.unpack_from("<IBBHQQ", elf, offset + 24 * i)
                start = headers[link][4] + name
                names[i], values[i] = elf[start : elf.index(b"\0", start)].decode(), value
                defined[i] = section != 0
                if section:
                    symbols[names[i]] = self.base + value
        for _, kind, _, _, offset, size, _, _ in headers:
            for i in range(size // 24 if kind == RELA else 0):
                at, info, more = struct.unpack_from("<QQq", elf, offset + 24 * i)
                symbol, how = info >> 32, info & 0xFFFFFFFF
                if how == TLSDESC:
                    self.memory[at : at + 16] = struct.pack("<QQ", self.stubs, 64 + values[symbol] + more)
                    continue
                if how not in (RELATIVE, GLOB_DAT, JUMP_SLOT, ABS64):
                    raise ValueError(f"relocation {how}")
                value = self.base if how == RELATIVE else symbols.get(names[symbol]) or self.stub(names[symbol])
                self.memory[at : at + 8] = struct.pack("<Q", value + more)
        return symbols

    def stub(self, name: str) -> int:
        """Where a function of the C library is: a place at which it is called."""
        if not hasattr(LIBC, name) and name:
            raise ValueError(f"{name} is not to be had")
        if name not in self.imports:
            self.imports.append(name)
        place = 16 + 8 * self.imports.index(name)
        self.memory[(1 << 22) + place : (1 << 22) + place + 4] = RET
        return self.stubs + place

    def imported(self, emulator: unicorn.Uc, address: int, *_: object) -> None:
        name = self.imports[(address - self.stubs - 16) // 8]
        function = getattr(LIBC, name)
        if name in FLOATS:
            raw = int(emulator.reg_read(arm.UC_ARM64_REG_D0)).to_bytes(8, "little")
            function.restype, function.argtypes = ctypes.c_float, (ctypes.c_float,)
            result = bytes(ctypes.c_float(function(ctypes.c_float.from_buffer_copy(raw).value)))
            emulator.reg_write(arm.UC_ARM64_REG_D0, int.from_bytes(result, "little"))
            return
        function.restype, function.argtypes = ctypes.c_uint64, (ctypes.c_uint64,) * 4
        result = function(*(emulator.reg_read(arm.UC_ARM64_REG_X0 + i) for i in range(4)))
        emulator.reg_write(arm.UC_ARM64_REG_X0, result)

    def call(self, function: int, *given: int) -> int:
        """Call a function and return x0."""
        for i, one in enumerate(given):
            self.emulator.reg_write(arm.UC_ARM64_REG_X0 + i, one & (1 << 64) - 1)
        end = self.stubs + 8
        self.emulator.reg_write(arm.UC_ARM64_REG_SP, self.base + len(self.memory) - 4096)
        self.emulator.reg_write(arm.UC_ARM64_REG_X30, end)
        self.emulator.emu_start(function, end)
        return int(self.emulator.reg_read(arm.UC_ARM64_REG_X0))
