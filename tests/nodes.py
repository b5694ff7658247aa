"""Interfaces that worker processes of tests run; they import this module by its name."""

import ctypes
import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from bids_app.errors import UnusableDataError


def run_interface(module: str, name: str, inputs: dict, cwd: Path) -> dict:
    """Run one nipype interface in this process; return its outputs."""
    interface = getattr(importlib.import_module(module), name)(**inputs)
    return interface.run(cwd=str(cwd)).outputs.get_traitsfree()


class _NoteInputSpec(BaseInterfaceInputSpec):
    log = traits.Str(mandatory=True, nohash=True, desc="a file to which a line is added")
    word = traits.Str(mandatory=True, desc="the line's first word; the process's id follows")
    after = traits.Any(desc="anything to wait for")
    file = File(exists=True, desc="what it works on")


class _NoteOutputSpec(TraitedSpec):
    word = traits.Str(desc="the same")


class Note(SimpleInterface):
    """Append a line to a log: that it ran, and in which process."""

    input_spec = _NoteInputSpec
    output_spec = _NoteOutputSpec

    def _run_interface(self, runtime):
        with Path(self.inputs.log).open("a") as log:
            log.write(f"{self.inputs.word} {os.getpid()}\n")
        self._results["word"] = self.inputs.word
        return runtime


class NoteScore(Note):
    """Note the OOM score adjustment of this process."""

    def _run_interface(self, runtime):
        self.inputs.word += Path("/proc/self/oom_score_adj").read_text()
        return super()._run_interface(runtime)


class TorchNote(Note):
    """Like :class:`Note`, but declared as using torch."""

    uses_torch = True


class _GpuNoteInputSpec(_NoteInputSpec):
    use_gpu = traits.Bool(True, usedefault=True, desc="that it takes a slot for GPUs")


class GpuNote(Note):
    """Like :class:`Note`, but declared as using a GPU; also notes start and end times."""

    input_spec = _GpuNoteInputSpec

    def _run_interface(self, runtime):
        self.inputs.word += f"-{time.monotonic()}"
        time.sleep(0.5)
        self.inputs.word += f"-{time.monotonic()}"
        return super()._run_interface(runtime)


class Refuse(Note):
    """Raise the error for unusable data."""

    def _run_interface(self, _runtime):
        raise UnusableDataError("/data/sub-01_T1w.nii.gz: all voxels are equal; export it again")


class Stumble(Note):
    """Fail with an unexpected error."""

    def _run_interface(self, _runtime):
        raise ZeroDivisionError("by zero")


class SlowNote(Note):
    """Like :class:`Note`, after a delay."""

    def _run_interface(self, runtime):
        time.sleep(0.3)
        return super()._run_interface(runtime)


class SlowerNote(Note):
    """Like :class:`SlowNote`, after a longer delay."""

    def _run_interface(self, runtime):
        time.sleep(0.8)
        return super()._run_interface(runtime)


class Hoard(Note):
    """Hold 300 MiB for a moment, in compiled code that holds the GIL."""

    def _run_interface(self, runtime):
        libc = ctypes.PyDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        block = libc.malloc(ctypes.c_size_t(300 << 20))
        libc.memset(ctypes.c_void_p(block), 1, ctypes.c_size_t(300 << 20))
        libc.free(ctypes.c_void_p(block))
        return super()._run_interface(runtime)


class HoardBeside(Note):
    """Run another program that holds 300 MiB and takes a second of CPU time."""

    def _run_interface(self, runtime):
        program = "import time; a = b'1' * (300 << 20)\nwhile time.process_time() < 1.2: 0"
        subprocess.run([sys.executable, "-c", program], check=True)
        return super()._run_interface(runtime)


class SleepInC(Note):
    """Note the start, then block for a minute in C code that never returns to Python."""

    def _run_interface(self, runtime):
        super()._run_interface(runtime)
        ctypes.PyDLL(None).sleep(60)
        return runtime


class Die(Note):
    """Be killed, as by the kernel when memory runs out."""

    def _run_interface(self, runtime):
        super()._run_interface(runtime)
        os.kill(os.getpid(), signal.SIGKILL)
        return runtime


class DieOnce(Note):
    """Be killed the first time only."""

    def _run_interface(self, runtime):
        died = Path(self.inputs.log).with_name("died")
        if not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._run_interface(runtime)
