"""Shows that the tests can fail: each fault of tests/faults.yaml, in a copy, must make one red (`make faults`).

.venv/bin/python scripts/faults.py [word ...]    # only those whose text has one of the words
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from lorikeet_api.yaml import load_all

ROOT = Path(__file__).resolve().parent.parent
FAULTS = ROOT / "tests" / "faults.yaml"
COPIED = (
    *("operator", "trainer-image", "tests", "e2e", "crds", "charts", "examples", "scripts"),
    *("README.md", "pyproject.toml"),
)
_LEFT_OUT = shutil.ignore_patterns("__pycache__", ".hypothesis")


@dataclass(frozen=True)
class Fault:
    """One line that is wrong."""

    what: str
    """What goes wrong with it."""
    file: str
    find: str
    """Text of one place in the file."""
    replace: str
    test: str
    """The tests, of which one must fail: arguments of pytest."""

    @property
    def places(self) -> int:
        """How often the text stands in the file; the fault is one line's only where that is once."""
        return (ROOT / self.file).read_text().count(self.find)


def read() -> list[Fault]:
    """Return the faults, each as it is written down; `tests/unit/test_faults.py` holds them against the code."""
    return [Fault(**each) for each in load_all(FAULTS)[0]]


def run(tests: str, copy: Path) -> tuple[int, str]:
    """Run tests in the copy; return pytest's exit code and its last words."""
    environment = {**os.environ, "PYTHONPATH": f"{copy / 'operator'}:{copy / 'trainer-image'}"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests.split()]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, (done.stdout.strip().splitlines() or [done.stderr])[-1]


def is_found(fault: Fault, copy: Path) -> tuple[bool, str]:
    """Return whether a test fails with the fault, and pytest's last words."""
    path = copy / fault.file
    sound = path.read_text()
    path.write_text(sound.replace(fault.find, fault.replace))
    try:
        code, words = run(fault.test, copy)
    finally:
        path.write_text(sound)
    # 1: a test failed. Anything else (nothing collected, wrong usage) shows nothing.
    return code == 1, words


def main() -> int:
    """Apply the faults one after the other; return 1 if a test did not see one."""
    faults = [each for each in read() if not sys.argv[1:] or any(word in each.what for word in sys.argv[1:])]
    for fault in faults:
        if fault.places != 1:
            raise SystemExit(f"{fault.what}: {fault.find!r} stands {fault.places} times in {fault.file}, not once")
    unseen = 0
    with tempfile.TemporaryDirectory(prefix="lorikeet-faults-") as folder:
        copy = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=_LEFT_OUT)
            else:
                shutil.copy(source, copy / name)
        for tests in dict.fromkeys(fault.test for fault in faults):
            code, words = run(tests, copy)
            if code != 0:
                raise SystemExit(f"{tests} is red without any fault: {words}")
        for fault in faults:
            began = time.monotonic()
            found, words = is_found(fault, copy)
            unseen += not found
            verdict = "found " if found else "UNSEEN"
            print(
                f"{verdict} {time.monotonic() - began:5.1f} s  {fault.what}" + ("" if found else f": {words}"),
                flush=True,
            )
    print(f"{len(faults) - unseen} of {len(faults)} faults are found")
    return 1 if unseen else 0


if __name__ == "__main__":
    sys.exit(main())
