"""The first process of the node's namespaces: prepares them, starts the components, and keeps them running.

Runs as a plain script (``python -I init.py SPEC``) with the standard library alone. It is number 1 of its PID
namespace: when it ends, by whatever means, the kernel ends every process in there, and with the last of them the
mounts and the link are gone too. So there is nothing to clean up that could be forgotten.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Values that the kubelet insists on. It would set them for the whole machine; showing it files that hold them
# already leaves the machine as it is.
KERNEL_SETTINGS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
LONGEST_PAUSE_S = 10.0
STEADY_S = 60.0
POLL_S = 0.05


def log(text: str) -> None:
    """One line with the time; standard error is init.log."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def run(*arguments: str) -> None:
    """Run a command that must succeed."""
    subprocess.run(arguments, check=True)


def pause_before_restart(failures: int) -> float:
    """Half a second, doubled with each failure in a row, up to a limit."""
    return float(min(LONGEST_PAUSE_S, 0.5 * 2 ** max(0, failures - 1)))


def answers(target: str) -> bool:
    """True if ``tcp:host:port`` or ``unix:path`` takes a connection."""
    kind, _, rest = target.partition(":")
    try:
        if kind == "unix":
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(rest)
        else:
            host, _, port = rest.rpartition(":")
            socket.create_connection((host, int(port)), timeout=0.2).close()
    except OSError:
        return False
    return True


def prepare_mounts(spec: dict[str, Any]) -> None:
    """Make the mount namespace private, and put the node's own folders over the machine's."""
    run("mount", "--make-rprivate", "/")
    run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    Path("/run/netns").mkdir()
    kept = _hold(spec["keep"])
    for index, target in enumerate(spec["overlays"]):
        upper, work = (Path(f"/run/lorikeet/overlay{index}/{part}") for part in ("upper", "work"))
        upper.mkdir(parents=True)
        work.mkdir()
        options = f"lowerdir={target},upperdir={upper},workdir={work}"
        run("mount", "-t", "overlay", "-o", options, "overlay", target)
    _put_back(kept)
    for source, target in spec["binds"]:
        Path(target).mkdir(exist_ok=True)
        run("mount", "--bind", source, target)
    mask_kernel_settings(Path("/run/lorikeet/sysctl"))


def _hold(paths: list[str]) -> dict[str, Path]:
    """Bind folders elsewhere before something is mounted over them: a checkout may live below /var/lib."""
    held = {}
    for index, path in enumerate(paths):
        place = Path(f"/run/lorikeet/keep{index}")
        place.mkdir(parents=True)
        run("mount", "--rbind", path, str(place))
        held[path] = place
    return held


def _put_back(held: dict[str, Path]) -> None:
    for path, place in held.items():
        if path.startswith("/var/lib/"):
            run("mount", "--move", str(place), path)
        else:
            run("umount", str(place))


def mask_kernel_settings(folder: Path) -> None:
    """Show the values that the kubelet wants, without setting them."""
    folder.mkdir(parents=True)
    for index, (name, value) in enumerate(KERNEL_SETTINGS.items()):
        target = Path("/proc/sys") / name
        if target.exists():
            shown = folder / str(index)
            shown.write_text(value + "\n")
            run("mount", "--bind", str(shown), str(target))


def prepare_network(spec: dict[str, Any], deadline: float) -> None:
    """Give the node its address as soon as the host has put the link's other end in here."""
    run("ip", "link", "set", "lo", "up")
    link = spec["link"]
    while subprocess.run(["ip", "link", "show", link], capture_output=True).returncode != 0:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the host made no link {link}")
        time.sleep(POLL_S)
    run("ip", "address", "add", spec["address"], "dev", link)
    run("ip", "link", "set", link, "up")
    run("ip", "route", "add", "default", "via", spec["gateway"])
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


@dataclass
class Component:
    """One program to keep running."""

    name: str
    argv: list[str]
    after: list[str]
    pid: int = 0
    started: float = 0.0
    due: float = 0.0
    failures: int = 0
    restarts: int = 0
    last_exit: str = ""
    waiting_for: list[str] = field(default_factory=list)


class Supervisor:
    """Starts components once what they need answers, restarts those that end, and reaps every orphan."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.components = [Component(p["name"], p["argv"], p["after"]) for p in spec["processes"]]
        self.log = Path(spec["log"])
        self.state = Path(spec["state"])
        self.stopping = False
        self._written = ""

    def start_due(self, now: float) -> None:
        """Start every component that does not run, has paused long enough, and whose needs answer."""
        for component in self.components:
            if component.pid or now < component.due:
                continue
            component.waiting_for = [target for target in component.after if not answers(target)]
            if not component.waiting_for:
                self._start(component, now)

    def _start(self, component: Component, now: float) -> None:
        with (self.log / f"{component.name}.log").open("ab") as output:
            process = subprocess.Popen(
                component.argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        component.pid, component.started = process.pid, now
        # This process reaps by number, orphans included; Popen must not wait for it as well.
        process.returncode = 0
        log(f"{component.name} started, process {component.pid}")

    def reap(self, now: float) -> None:
        """Take note of everything that has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for component in self.components:
                if component.pid == pid:
                    self._ended(component, os.waitstatus_to_exitcode(status), now)

    def _ended(self, component: Component, code: int, now: float) -> None:
        component.failures = 1 if now - component.started > STEADY_S else component.failures + 1
        component.last_exit = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        component.restarts += 1
        component.pid = 0
        pause = pause_before_restart(component.failures)
        component.due = now + pause
        log(f"{component.name} ended ({component.last_exit}); again in {pause:g} s, see {component.name}.log")

    def write_state(self) -> None:
        """Tell the outside how the components are, when that has changed."""
        text = json.dumps(
            {
                c.name: {
                    "pid": c.pid,
                    "restarts": c.restarts,
                    "lastExit": c.last_exit,
                    "waitingFor": c.waiting_for,
                }
                for c in self.components
            },
            indent=1,
        )
        if text != self._written:
            temporary = self.state.with_suffix(".new")
            temporary.write_text(text)
            temporary.replace(self.state)
            self._written = text

    def run(self) -> None:
        """Until told to stop."""
        wake, notify = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(notify, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        while not self.stopping:
            now = time.monotonic()
            self.reap(now)
            self.start_due(now)
            self.write_state()
            idle = all(component.pid for component in self.components)
            if select.select([wake], [], [], None if idle else POLL_S)[0]:
                os.read(wake, 4096)
        log("told to stop")

    def _stop(self, *_: object) -> None:
        self.stopping = True


def main() -> int:
    """Prepare the namespaces and supervise; the one argument is the path of the specification."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    socket.sethostname(spec["hostname"])
    prepare_mounts(spec)
    prepare_network(spec, time.monotonic() + 20)
    # Programs look each other and iptables up here; a login shell's PATH may lack sbin.
    os.environ["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    Supervisor(spec).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
