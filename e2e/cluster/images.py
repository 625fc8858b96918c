"""Container images, tagged by a hash of all that goes into them and kept in the registry's storage.

An image whose tag is in the registry is neither built nor pushed. Layers are cached, so a change of code costs
only the layer that holds the code.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster import components, config, paths
from e2e.cluster.errors import ClusterError

Say = Callable[[str], None]

KEEP = 2
"""How many tags of an image stay, newest first: switching branches should not rebuild."""
# Changes whenever the way of building does.
_RECIPE = "1"
_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
_FOLDERS_LEFT_OUT = {"__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"}
# Where a build may have to look for packages, when the developer has said so.
INDEX_VARIABLES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX")


@dataclass(frozen=True)
class Image:
    """One image. Its context is made of just these things, so what is hashed is exactly what can go in."""

    name: str
    containerfile: str
    component: str = ""
    packages: tuple[str, ...] = ()
    base: str = ""
    context: tuple[str, ...] = ()
    stage: str = ""
    """The stage of the Containerfile to stop after; empty: the last."""


# A change of the operator must not rebuild the trainer's image, hence each names only what its COPY lines take.
_TRAINER = (
    "requirements/trainer.txt",
    "operator/lorikeet_api",
    "operator/lorikeet_storage",
    "operator/lorikeet_run",
    "trainer-image/lorikeet_trainer",
)
_AGENT = (
    "requirements/agent.txt",
    "operator/lorikeet_api",
    "operator/lorikeet_engines",
    "operator/lorikeet_storage",
    "operator/lorikeet_run",
    "operator/lorikeet_agent",
)
_OPERATOR = (
    "pyproject.toml",
    "requirements/operator.txt",
    "operator/lorikeet_api",
    "operator/lorikeet_engines",
    "operator/lorikeet_operator",
)
_PYTHON = ("python3", "python3-venv", "ca-certificates")

# One row an image; a base stands before what is built on it.
IMAGES = (
    Image("pause", "e2e/images/Containerfile.pause", component="pause"),
    Image("coredns", "e2e/images/Containerfile.coredns", component="coredns"),
    Image("s3", "e2e/images/Containerfile.s3", component="versitygw"),
    Image("base", "e2e/images/Containerfile.base", packages=_PYTHON),
    Image("trainer-base", "e2e/images/Containerfile.base", packages=(*_PYTHON, "python3-dev", "gcc", "libc6-dev")),
    Image("operator", "operator/Containerfile", base="base", context=_OPERATOR),
    Image("agent", "operator/Containerfile.agent", base="base", context=_AGENT),
    Image("trainer", "trainer-image/Containerfile", base="trainer-base", context=_TRAINER),
    # The trainer's heavy layer alone, which the engine shares.
    Image("torch", "trainer-image/Containerfile", base="trainer-base", context=_TRAINER[:1], stage="dependencies"),
    Image("engine-cpu", "e2e/images/Containerfile.engine-cpu", base="torch", context=("requirements/engine-cpu.txt",)),
    Image("router", "e2e/images/Containerfile.router", base="base", context=("requirements/router.txt",)),
)
BY_NAME = {image.name: image for image in IMAGES}
FOR_UP = ("pause", "coredns", "s3")


def context_files(image: Image, root: Path) -> list[Path]:
    """The files of the checkout that go into the build, sorted, relative to ``root``."""
    found: list[Path] = []
    for entry in image.context:
        top = root / entry
        if top.is_file():
            found.append(Path(entry))
        for folder, folders, files in os.walk(top):
            folders[:] = [f for f in folders if f not in _FOLDERS_LEFT_OUT and not f.endswith(".egg-info")]
            found += [(Path(folder) / f).relative_to(root) for f in files if not f.endswith(".pyc")]
    return sorted(found)


def tag(image: Image, root: Path, component_keys: dict[str, str]) -> str:
    """The hash of all that goes into an image: recipe, files with their execute bit, binary, base."""
    digest = hashlib.sha256()

    def add(*parts: str) -> None:
        # Lengths in front, so that no two lists of parts look the same.
        for part in parts:
            data = part.encode()
            digest.update(len(data).to_bytes(8, "big") + data)

    add(_RECIPE, image.name, (root / image.containerfile).read_text(), *image.packages)
    if image.stage:
        add(image.stage)
    if image.component:
        add(component_keys[image.component])
    if image.base:
        add(tag(BY_NAME[image.base], root, component_keys))
    for file in context_files(image, root):
        content = (root / file).read_bytes()
        executable = os.access(root / file, os.X_OK)
        add(str(file), str(executable), hashlib.sha256(content).hexdigest())
    return digest.hexdigest()[:12]


def reference(name: str, its_tag: str) -> str:
    """What a pod writes into ``image:``."""
    return f"{config.REGISTRY_HOST}/{name}:{its_tag}"


def registry_storage() -> Path:
    """Where every cluster's registry keeps its blobs: shared, so that a second checkout pushes nothing twice."""
    return paths.cache_dir() / "registry"


def _tags_folder(name: str) -> Path:
    return registry_storage() / "docker" / "registry" / "v2" / "repositories" / name / "_manifests" / "tags"


def in_registry(name: str, its_tag: str) -> bool:
    """True if the registry's storage has this tag. Needs no running registry."""
    return (_tags_folder(name) / its_tag / "current" / "link").exists()


def any_in_registry(name: str) -> bool:
    """True if the registry's storage has the image in any version: most of its layers will be the same."""
    return _tags_folder(name).exists() and any(_tags_folder(name).iterdir())


def stale(names: Iterable[tuple[str, float]], keep: int = KEEP) -> list[str]:
    """Of (name, last used), those beyond the newest ``keep``."""
    newest_first = sorted(names, key=lambda item: -item[1])
    return [name for name, _ in newest_first[keep:]]


def unused_refs(listing: str, wanted: Callable[[str, str], bool]) -> list[str]:
    """Of `ctr images ls`, every reference to an image of ours of which no tag is ``wanted`` any more.

    Kubernetes' part of containerd keeps three references an image: by tag, by digest and by id. All three must
    go, or the layers stay.
    """
    rows = [line.split()[:3] for line in listing.splitlines()[1:] if line.strip()]
    used: set[str] = set()
    unused: set[str] = set()
    for ref, _, digest in rows:
        host, _, rest = ref.partition("/")
        name, colon, its_tag = rest.partition(":")
        if host == config.REGISTRY_HOST and colon and "@" not in name:
            (used if wanted(name, its_tag) else unused).add(digest)
    return [ref for ref, _, digest in rows if digest in unused - used]


class Builder:
    """Builds images into a store of its own with buildah, and pushes them to a cluster's registry."""

    def __init__(self, say: Say, root: Path = paths.CHECKOUT) -> None:
        self.say = say
        self.root = root
        self._store = paths.cache_dir() / "buildah"
        toolchain = components.go_version(components.find_go())
        self._keys = {c.name: components.key(c, toolchain) for c in components.COMPONENTS}

    def tag(self, name: str) -> str:
        """The tag that an image has with the files as they are now."""
        return tag(BY_NAME[name], self.root, self._keys)

    def available(self) -> list[str]:
        """The images whose Containerfile exists."""
        return [image.name for image in IMAGES if (self.root / image.containerfile).exists()]

    def _buildah(self, *arguments: str, log: Path | None = None, proxy: str | None = None) -> str:
        """Run buildah in a mount namespace of its own, so that it leaves no mount behind."""
        command = ["unshare", "--mount", "buildah", "--root", str(self._store / "root")]
        command += ["--runroot", str(self._store / "run"), "--storage-driver", "overlay", *arguments]
        environment = {**os.environ, "BUILDAH_ISOLATION": "chroot"}
        if proxy:
            environment = {name: value for name, value in environment.items() if not name.lower().endswith("_proxy")}
            environment |= {"http_proxy": proxy, "https_proxy": proxy}
        with (log or Path(os.devnull)).open("w") as file:
            output = file if log else subprocess.PIPE
            errors = subprocess.STDOUT if log else subprocess.PIPE
            result = subprocess.run(command, env=environment, stdout=output, stderr=errors, text=True)
        if result.returncode != 0:
            said = log.read_text(errors="replace") if log else result.stderr
            raise ClusterError(
                f"`buildah {arguments[0]}` failed.",
                "Read the lines above. If a download failed, the package registry was out of reach: run it again.",
                "\n".join(said.splitlines()[-20:]),
            )
        return (result.stdout or "").strip()

    def _has(self, name: str, its_tag: str) -> bool:
        try:
            self._buildah("inspect", "--type", "image", "--format", "{{.FromImageID}}", reference(name, its_tag))
        except ClusterError:
            return False
        return True

    def build(self, names: Iterable[str]) -> dict[str, str]:
        """Build what neither the registry nor the build store has; returns the tags by name."""
        tags: dict[str, str] = {}
        for name in names:
            tags[name] = self.tag(name)
            if not in_registry(name, tags[name]) and not self._has(name, tags[name]):
                tags[name] = self._build(BY_NAME[name])
        return tags

    def _build(self, image: Image) -> str:
        """Build one image; returns the tag of what really went in."""
        if image.base:
            self._need_base(image.base)
        log = self._store / f"{image.name}.log"
        self.say(f"building image {image.name} (follow it with: tail -f {log})")
        began = time.monotonic()
        with self._context(image) as (folder, its_tag):
            arguments = ["bud", "--layers", "--pull=never", "--network", "host", *self._registry_access()]
            if image.base:
                arguments += ["--build-arg", f"BASE={reference(image.base, self.tag(image.base))}"]
            if image.stage:
                arguments += ["--target", image.stage]
            arguments += ["--tag", reference(image.name, its_tag)]
            arguments += ["--file", str(self.root / image.containerfile), str(folder)]
            self._buildah(*arguments, log=log)
        self.say(f"built image {image.name} in {time.monotonic() - began:.0f} s")
        return its_tag

    def _need_base(self, name: str) -> None:
        """Have the base in the build store, where the FROM line finds it."""
        if not self._has(name, self.tag(name)):
            self._build(BY_NAME[name])

    def _registry_access(self) -> list[str]:
        """The host's certificate authorities and package indexes, for the build alone.

        ``--unsetenv`` keeps them out of the image, which will run on other machines.
        """
        bundle = os.environ.get("SSL_CERT_FILE") or _BUNDLE
        variables = {"SSL_CERT_FILE": _BUNDLE, "PIP_CERT": _BUNDLE}
        variables |= {name: os.environ[name] for name in INDEX_VARIABLES if name in os.environ}
        mount = "/etc/ssl/certs:/etc/ssl/certs:ro" if bundle == _BUNDLE else f"{bundle}:{_BUNDLE}:ro"
        arguments = ["--volume", mount]
        for name, value in variables.items():
            arguments += ["--env", f"{name}={value}", "--unsetenv", name]
        return arguments

    @contextmanager
    def _context(self, image: Image) -> Iterator[tuple[Path, str]]:
        """A folder with just what the image's row names, and the tag of exactly that."""
        self._store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="context-", dir=self._store) as temporary:
            folder = Path(temporary)
            its_tag = self._copy(image, folder)
            if image.component:
                source = components.build([image.component], self.say)[image.component]
                shutil.copy2(source, folder / image.component)
            if image.packages:
                self._make_rootfs(image.packages, folder / "rootfs.tar")
            yield folder, its_tag

    def _copy(self, image: Image, folder: Path) -> str:
        """Copy the files, again if somebody saved one meanwhile: a tag must not stand for a mixture."""
        while True:
            before = self.tag(image.name)
            for file in context_files(image, self.root):
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.root / file, folder / file)
            if self.tag(image.name) == before:
                return before
            shutil.rmtree(folder)
            folder.mkdir()

    def _make_rootfs(self, packages: tuple[str, ...], target: Path) -> None:
        began = time.monotonic()
        self.say(f"making a Debian root file system with {', '.join(packages)}")
        unneeded = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}"]
        command += [f"--dpkgopt=path-exclude={pattern}" for pattern in unneeded]
        command += ["--dpkgopt=path-include=/usr/share/doc/*/copyright", "bookworm", str(target)]
        command += [mirror] if (mirror := os.environ.get("DEBIAN_MIRROR")) else []
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise ClusterError(
                "mmdebstrap could not make the base image.",
                "It downloads Debian packages from Debian's own servers; DEBIAN_MIRROR names others.",
                "\n".join(result.stderr.splitlines()[-15:]),
            )
        self.say(f"made it in {time.monotonic() - began:.0f} s")

    def push(self, tags: dict[str, str], registry: str) -> None:
        """Push what the registry does not have; marks the others as used."""
        for name, its_tag in tags.items():
            if in_registry(name, its_tag):
                os.utime(_tags_folder(name) / its_tag)
                continue
            began = time.monotonic()
            # buildah remembers by the registry's name which layers it has. Each cluster's registry has an address of
            # its own and the same storage: so it is pushed to under its one name, with the address as the proxy.
            image = reference(name, its_tag)
            self._buildah(
                "push", "--quiet", "--tls-verify=false", image, f"docker://{image}", proxy=f"http://{registry}"
            )
            self.say(f"pushed image {name} in {time.monotonic() - began:.1f} s")

    def prune(self) -> None:
        """Drop all but the newest tags of each image, and the blobs and layers that nothing uses any more."""
        dropped = False
        for image in IMAGES:
            folder = _tags_folder(image.name)
            tags = [(entry.name, entry.stat().st_mtime) for entry in folder.iterdir()] if folder.exists() else []
            for old in stale(tags):
                shutil.rmtree(folder / old)
                dropped = True
                if self._has(image.name, old):
                    self._buildah("rmi", reference(image.name, old))
        if dropped:
            self._collect()
            self.say("dropped images that are no longer used")
        # Layers of builds that failed, and those whose last tag has just gone.
        self._buildah("rmi", "--prune")

    def _collect(self) -> None:
        """Let the registry's own collector delete what no tag needs; nobody pushes while we hold the lock."""
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            storage = {"filesystem": {"rootdirectory": str(registry_storage())}, "delete": {"enabled": True}}
            json.dump({"version": "0.1", "log": {"level": "error"}, "storage": storage}, file)
            file.flush()
            command = ["docker-registry", "garbage-collect", "--delete-untagged", file.name]
            subprocess.run(command, check=True, capture_output=True)


def pushed(names: Iterable[str], say: Say, root: Path = paths.CHECKOUT) -> dict[str, str] | None:
    """The tags of these images if the registry has all of them, else None. Takes no lock: builds take minutes."""
    builder = Builder(say, root)
    tags = {name: builder.tag(name) for name in names}
    return tags if all(in_registry(name, its_tag) for name, its_tag in tags.items()) else None


def building() -> AbstractContextManager[None]:
    """Hold this while building, pushing or pruning: checkouts share store and registry."""
    return paths.lock(paths.cache_dir() / "images.lock")
