"""The command line: ``python -m e2e.cluster {build,up,down,status,images,clean,exec}``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from e2e.cluster import checks, cluster, components, images, paths, teardown
from e2e.cluster.errors import ClusterError
from e2e.cluster.paths import State
from e2e.cluster.record import Record


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m e2e.cluster", description=__doc__)
    parser.add_argument(
        "--state",
        type=Path,
        default=paths.default_state_dir(),
        help="the cluster's folder (default: $LORIKEET_CLUSTER_DIR, or .cluster in the checkout)",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="build Kubernetes and the tools, once")
    commands.add_parser("up", help="bring the cluster up, or make sure that it is")
    commands.add_parser("down", help="take it down; the image store stays")
    commands.add_parser("status", help="say how it is; exit code 1 unless it is well")
    command = commands.add_parser("images", help="build images and push them to the cluster's registry")
    command.add_argument("names", nargs="*", choices=[*images.BY_NAME, []], help="default: all")
    commands.add_parser("clean", help="take it down and delete its folder")
    command = commands.add_parser("exec", help="run a command inside the cluster's namespaces")
    command.add_argument("argv", nargs=argparse.REMAINDER)
    return parser


def _down(state: State, say: cluster.Steps) -> None:
    if not state.root.exists() and not teardown.running(state):
        say("there is no cluster")
        return
    state.root.mkdir(parents=True, exist_ok=True)
    with paths.lock(state.root / "lock"):
        say("the cluster is down" if teardown.take_down(state) else "there was no cluster")


def _status(state: State) -> int:
    health = cluster.health(state)
    record = Record.load(state)
    print("up and well" if health.ok else f"not up: {health.why}")
    if record:
        print(f"  kubeconfig  {state.kubeconfig}\n  API server  {record.api}\n  registry    {record.registry}")
        print(f"  S3          {record.s3_url} (in pods {record.s3_url_in_cluster})\n  logs        {state.log}")
    for name, component in cluster.component_states(state).items():
        ended = f", ended {component['restarts']} times ({component['lastExit']})" if component["restarts"] else ""
        print(f"  {name:24}{'runs' if component['pid'] else 'does not run'}{ended}")
    return 0 if health.ok else 1


def _exec(state: State, argv: list[str]) -> None:
    argv = argv[1:] if argv[:1] == ["--"] else argv
    record = Record.load(state)
    if record is None or not record.processes[0].alive():
        raise ClusterError("The cluster is not up.", "Run python -m e2e.cluster up first.")
    if not argv:
        raise ClusterError("exec needs a command.", "For instance: python -m e2e.cluster exec -- kubectl get pods -A")
    os.environ["KUBECONFIG"] = str(state.kubeconfig)
    os.environ["PATH"] = f"{state.bin}:{os.environ['PATH']}"
    os.execvp("nsenter", cluster.inside(record, "env", f"--chdir={Path.cwd()}", *argv))


def _run(options: argparse.Namespace) -> int:
    state = State(options.state.absolute())
    say = cluster.Steps()
    match options.command:
        case "build":
            components.build([component.name for component in components.COMPONENTS], say)
            say("everything is built")
        case "up":
            record = cluster.up(state, say)
            say(f"the cluster is up: {record.api}")
            print(f"\nexport KUBECONFIG={state.kubeconfig} PATH={state.bin}:$PATH")
        case "down":
            _down(state, say)
        case "status":
            return _status(state)
        case "images":
            for name, reference in cluster.build_images(state, options.names, say).items():
                print(f"{name:14}{reference}")
        case "clean":
            _down(state, say)
            teardown.remove_tree(state.root)
            say(f"deleted {state.root}")
        case "exec":
            _exec(state, options.argv)
    return 0


def main() -> int:
    """Run one command; what goes wrong is said in plain words, with exit code 1."""
    options = _parser().parse_args()
    try:
        if options.command != "build":
            checks.become_root(sys.argv[1:])
        checks.extend_path()
        return _run(options)
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `… status | head`: whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("cluster: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
