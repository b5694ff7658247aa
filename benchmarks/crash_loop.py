"""Kill runs at random moments; check what is left, and whether they resume to the same files.

A small cohort is simulated and processed by all levels once, undisturbed. Then runs are started
again and ended by SIGKILL, SIGTERM or SIGINT, sent to the main process, to all processes or to one
worker, at a random moment of the whole run or while one-class SVMs are fitted. After each, these
are checked: processes that are still alive, the exit code, how long the end took, and truncated
files. Then the same command is run again, and has to exit with 0 and to make the files of the
undisturbed run. If only a worker is killed, there is no second run: the first has to continue
without it.

Each moment is chosen in the undisturbed run, as a time after its latest message. A signal is sent
when a run has printed as many messages, however busy the machine, and not before it has installed
its signal handlers: until then, for the first tenths of a second, Python and the kernel decide how
it ends. A run that ends earlier is not counted as a kill.

    python benchmarks/crash_loop.py WORK --kills 60 --seed 1

Results of undisturbed runs are kept in WORK; delete it when a change of the code affects them. Much
of a run is imports in a single process, so two loops side by side, each with its own WORK and
--levels, take less time than one after the other.
"""

import argparse
import gzip
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from bisect import bisect_right
from dataclasses import dataclass
from itertools import product
from pathlib import Path

MARK = "MRI2PET_CRASH_LOOP"  # environment variable of all processes of a run
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
TARGETS = ("main", "group", "worker")
LEVELS = ("participant", "train", "group", "slabs")
COMMON = ("--sloppy", "--nprocs", "2", "--omp-nthreads", "1")
FOLDS = ("--folds", "2")
OPTIONS = {
    "participant": ("--participant-label", "control01"),
    "train": (*FOLDS, "--models", "semi3d-cyclegan-mse", "--epochs", "4", "--width", "2"),
    "group": (*FOLDS, "--detectors", "zscore", "pseudonormal"),
    "slabs": (*FOLDS, "--detectors", "ocsvm"),
}
SLAB = "slab"  # in messages about the one-class SVMs of a slab
LISTENING = 1 << (signal.SIGTERM - 1)  # bit of SigCgt, proc(5), once handlers are installed
SETTLING = 5.0  # s, until all processes of a run must be gone; the resource tracker is last
SOON = 5.0  # s within which a run should end after Ctrl-C or SIGTERM
LONGEST = 1800.0  # s; a run that takes longer hangs
PARTIAL = re.compile(r"\.[0-9a-f]{32}\.")  # files that are being written
IGNORED = re.compile(r"(^|/)(logs|work|\.[^/]*)(/|$)|\.html$")
# What may differ between runs: fields of JSON files, columns of tables
FIELDS = frozenset({"date", "Date", "duration", "command", "GeneratedOn", "seconds", "created"})
COLUMNS = frozenset({"seconds"})


@dataclass(frozen=True)
class Course:
    """Times of messages and end of an undisturbed run, in s from the first possible kill."""

    times: list[float]
    first: float  # no run is killed before


@dataclass(frozen=True)
class Place:
    """Paths below the working folder; the runs of all trials use the same ones."""

    root: Path

    @property
    def bids(self) -> Path:
        """Folder of the simulated cohort."""
        return self.root / "bids"

    @property
    def out(self) -> Path:
        """Output folder of the current run."""
        return self.root / "out"

    @property
    def intermediate(self) -> Path:
        """Work folder of the current run."""
        return self.root / "work"

    def kept(self, name: str) -> Path:
        """Return the path at which an output folder is kept."""
        return self.root / "reference" / name


def command_of(place: Place, level: str) -> list[str]:
    """Return the command line of a level."""
    real = "group" if level == "slabs" else level
    words = [sys.executable, "-m", "bids_app.cli", str(place.bids), str(place.out), real]
    return [*words, *COMMON, *OPTIONS[level], "-w", str(place.intermediate)]


def fresh(place: Place, level: str) -> None:
    """Set up the folders from which a run of a level starts."""
    for folder in (place.out, place.intermediate):
        shutil.rmtree(folder, ignore_errors=True)
    if level != "participant":
        shutil.copytree(place.kept("everyone"), place.out)


class Run:
    """Run of a level in its own process group."""

    def __init__(self, place: Place, command: list[str], name: str) -> None:
        self.mark = f"{MARK}={name}-{time.time_ns()}"
        self.log = place.root / "said.txt"
        environment = {**os.environ, MARK: self.mark.partition("=")[2]}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def said(self) -> str:
        """Return the output so far."""
        return self.log.read_text(errors="replace")

    def family(self) -> dict[int, int]:
        """Return the run's processes, without zombies, and the parent of each."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment = (folder / "environ").read_bytes()
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            except (OSError, ValueError):
                continue
            if self.mark.encode() in environment.split(b"\0") and state not in "ZX":
                found[int(folder.name)] = int(parent)
        return found

    def listens(self) -> bool:
        """Return whether the run has installed its signal handlers."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return False
        caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
        return caught is not None and bool(int(caught[1], 16) & LISTENING)

    def workers(self) -> list[int]:
        """List the processes that the fork server has forked."""
        family = self.family()
        return sorted(p for p, parent in family.items() if family.get(parent) == self.process.pid)

    def end(self, number: int, target: str, rng: random.Random) -> bool:
        """Send a signal; return whether there was a process to send it to."""
        while self.process.poll() is None:
            workers = self.workers() if target == "worker" else [self.process.pid]
            try:
                if target == "group":
                    os.killpg(self.process.pid, number)
                else:
                    os.kill(rng.choice(workers), number)
            except (ProcessLookupError, IndexError):  # it has just ended, or no worker yet
                time.sleep(0.01)
                continue
            return True
        return False

    def orphans(self) -> int:
        """Count the processes that are still alive after ``SETTLING`` seconds, and kill them."""
        end = time.monotonic() + SETTLING
        while (left := self.family()) and time.monotonic() < end:
            time.sleep(0.05)
        for process in left:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return len(left)


def plain(path: Path) -> bytes:
    """Return the content of a file without what may differ between equal runs."""
    if path.suffix == ".json":
        return json.dumps(_without(json.loads(path.read_text())), sort_keys=True).encode()
    if path.suffix == ".tsv":
        rows = [line.split("\t") for line in path.read_text().split("\n")]
        kept = [n for n, name in enumerate(rows[0] if rows else []) if name not in COLUMNS]
        return "\n".join("\t".join(row[n] for n in kept if n < len(row)) for row in rows).encode()
    return path.read_bytes()


def _without(value: object) -> object:
    if isinstance(value, dict):
        return {name: _without(item) for name, item in value.items() if name not in FIELDS}
    return [_without(item) for item in value] if isinstance(value, list) else value


def digests(root: Path) -> dict[str, str]:
    """Compute the digests of the files of a result."""
    return {
        name: hashlib.sha256(plain(root / name)).hexdigest()
        for name in sorted(str(path.relative_to(root)) for path in root.rglob("*"))
        if (root / name).is_file() and not IGNORED.search(name)
    }


def cut(root: Path) -> list[str]:
    """List truncated files."""
    names = []
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if path.suffix in (".gz", ".json", ".html") and not re.search(r"(^|/)\.", name):
            try:
                _read_whole(path)
            except (OSError, EOFError, ValueError, zlib.error):
                names.append(f"cut:{name}")
    return names


def _read_whole(path: Path) -> None:
    if path.suffix == ".gz":
        gzip.decompress(path.read_bytes())
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif not path.read_text().rstrip().endswith("</html>"):
        raise EOFError(path)


def different(root: Path, reference: Path) -> list[str]:
    """List files that are missing, unexpected, or different."""
    one, other = digests(root), digests(reference)
    unlike = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    pages = {path.name for path in root.glob("*.html")} ^ {p.name for p in reference.glob("*.html")}
    partial = [path.name for path in root.rglob(".*") if PARTIAL.match(path.name)]
    return [*unlike, *sorted(pages), *partial, *cut(root)]


def finish(place: Place, command: list[str], name: str) -> tuple[int, str, list[float]]:
    """Run to the end; return the exit code, the output, and the times of its lines and of the end.

    Times are in s from the first moment at which the run may be sent a signal.
    """
    run, times, begun = Run(place, command, name), list[float](), time.monotonic()
    last = begun + LONGEST
    while run.process.poll() is None and time.monotonic() < last:
        if not times and not run.listens():
            begun = time.monotonic()
        times += [time.monotonic() - begun] * (run.said().count("\n") - len(times))
        time.sleep(0.02)
    run.process.kill()
    code = run.process.wait()
    return code, run.said(), [*times, time.monotonic() - begun]


def simulate(place: Place) -> None:
    """Simulate the cohort, unless it exists."""
    if (place.bids / "participants.tsv").exists():
        return
    shutil.rmtree(place.bids, ignore_errors=True)
    words = ("--paired", "4", "--patients", "1", "--resolution", "4", "--seed", "1")
    command = [sys.executable, "-m", "bids_app.simulate", str(place.bids), *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def undisturbed(place: Place, name: str, command: list[str]) -> Course:
    """Run a level undisturbed, unless its results exist; return the course of the run."""
    courses = place.root / "courses.json"
    known = dict(json.loads(courses.read_text())) if courses.exists() else {}
    if name not in known:
        shutil.rmtree(place.kept(name), ignore_errors=True)
        fresh(place, "participant" if name == "everyone" else name)
        code, said, times = finish(place, command, name)
        if code:
            sys.exit(f"the undisturbed run of {name} exited with {code}:\n{said[-2000:]}")
        shutil.copytree(place.out, place.kept(name))
        begun = [t for t, line in zip(times, said.splitlines(), strict=False) if SLAB in line]
        known[name] = {"times": times, "first": begun[0] if name == "slabs" else 0.0}
        courses.write_text(json.dumps(known))
        print(f"undisturbed {name}: {times[-1]:.0f} s", flush=True)
    return Course(**known[name])


def prepare(place: Place, levels: list[str]) -> dict[str, Course]:
    """Create the cohort and the undisturbed results of levels; return the courses of the runs."""
    simulate(place)
    if set(levels) - {"participant"}:
        everyone = command_of(place, "participant")
        start = everyone.index("--participant-label")
        undisturbed(place, "everyone", everyone[:start] + everyone[start + 2 :])
    return {level: undisturbed(place, level, command_of(place, level)) for level in levels}


def wait_for_moment(run: Run, course: Course, rng: random.Random) -> None:
    """Wait until the moment of the signal, or until the run has ended on its own."""
    moment = rng.uniform(course.first, course.times[-1])
    lines = bisect_right(course.times, moment)
    while run.process.poll() is None and not (run.listens() and run.said().count("\n") >= lines):
        time.sleep(0.01)
    end = time.monotonic() + moment - (course.times[lines - 1] if lines else 0.0)
    while run.process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)


def right_code(number: int, target: str) -> int:
    """Return the exit code that a run should have, as reported by Popen."""
    if target == "worker":
        return 0
    return -number if number == signal.SIGKILL else 128 + number


def trial(
    place: Place, level: str, number: int, *, target: str, course: Course, rng: random.Random
) -> dict[str, object] | None:
    """Kill a run, check what is left, and run it again; None if it ended before the signal."""
    fresh(place, level)
    command, begun = command_of(place, level), time.monotonic()
    run = Run(place, command, level)
    wait_for_moment(run, course, rng)
    moment = time.monotonic() - begun
    reached = run.end(number, target, rng)
    sent = time.monotonic()
    code = run.process.wait(LONGEST)
    took = time.monotonic() - sent if target != "worker" else 0.0
    orphans, said = run.orphans(), run.said()
    if not reached and code == 0:
        return None
    halves, again, told = cut(place.out), 0, ""
    if code:
        again, told, _ = finish(place, command, level)
    unlike = [*halves, *different(place.out, place.kept(level))]
    done = code == 0 and not unlike  # the run was complete when the signal came
    right = done or code == right_code(number, target)
    if not right or again or unlike or orphans:
        (place.root / f"failed-{time.time_ns()}.txt").write_text(f"{said}\n--- again\n{told}")
    return {
        "level": level,
        "signal": signal.Signals(number).name,
        "to": target,
        "at_s": round(moment, 1),
        "code": code,
        "right": right,
        "end_s": round(took, 2),
        "orphans": orphans,
        "traceback": "Traceback" in said,
        "again": again,
        "all_s": round(time.monotonic() - begun),
        "unlike": " ".join(unlike[:3]) + (f" +{len(unlike) - 3}" if len(unlike) > 3 else ""),
    }


def total(rows: list[dict[str, object]]) -> str:
    """Summarise all trials in a sentence."""
    told = [row for row in rows if row["signal"] != "SIGKILL"]
    ends = [float(str(row["end_s"])) for row in rows]
    return (
        f"{len(rows)} kills: {sum(int(str(row['orphans'])) for row in rows)} orphans, "
        f"{sum(bool(row['unlike']) for row in rows)} mismatches, "
        f"{sum(not row['right'] for row in rows)} wrong exit codes, "
        f"{sum(row['again'] != 0 for row in rows)} second runs that failed, "
        f"{sum(bool(row['traceback']) for row in told)} tracebacks; slowest end "
        f"{max(ends, default=0):.2f} s ({sum(end > SOON for end in ends)} beyond {SOON:g} s)"
    )


def main() -> int:
    """Run all trials; exit with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path, help="folder; keeps results of undisturbed runs")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=list(LEVELS))
    given = parser.parse_args()
    place, rng = Place(given.work.absolute()), random.Random(given.seed)
    place.root.mkdir(parents=True, exist_ok=True)
    courses = prepare(place, given.levels)
    kinds = list(product(SIGNALS, TARGETS, given.levels))
    rng.shuffle(kinds)
    rows: list[dict[str, object]] = []
    while len(rows) < given.kills:
        number, target, level = kinds[len(rows) % len(kinds)]
        row = trial(place, level, number, target=target, course=courses[level], rng=rng)
        if row is None:
            continue
        rows.append(row)
        if len(rows) == 1:
            print("\t".join(row), flush=True)
        print("\t".join(str(value) for value in row.values()), flush=True)
    print(total(rows))
    good = all(
        row["right"] and not row["again"] and not row["orphans"] and not row["unlike"]
        for row in rows
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
