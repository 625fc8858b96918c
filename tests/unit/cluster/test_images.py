from dataclasses import replace
from pathlib import Path

import pytest

from e2e.cluster import images
from e2e.cluster.images import Image

KEYS = {"pause": "k1"}
IMAGE = Image("trainer", "Containerfile", context=("code", "LICENSE"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "Containerfile").write_text("FROM scratch\nCOPY code /code\n")
    (tmp_path / "LICENSE").write_text("free")
    (tmp_path / "code" / "deep").mkdir(parents=True)
    (tmp_path / "code" / "a.py").write_text("a = 1\n")
    (tmp_path / "code" / "deep" / "b.py").write_text("b = 2\n")
    return tmp_path


def tag(root: Path, image: Image = IMAGE) -> str:
    return images.tag(image, root, KEYS)


def test_the_tag_depends_on_content_alone(root: Path) -> None:
    before = tag(root)

    (root / "code" / "a.py").write_text("a = 1\n")  # a new time, the same content
    (root / "code" / "__pycache__").mkdir()
    (root / "code" / "__pycache__" / "a.cpython-311.pyc").write_bytes(b"x")
    (root / "unrelated.txt").write_text("x")

    assert tag(root) == before
    assert len(before) == 12


def change_content(root: Path) -> None:
    (root / "code" / "deep" / "b.py").write_text("b = 3\n")


def change_name(root: Path) -> None:
    (root / "code" / "a.py").rename(root / "code" / "c.py")


def change_mode(root: Path) -> None:
    (root / "code" / "a.py").chmod(0o755)


def change_recipe(root: Path) -> None:
    (root / "Containerfile").write_text("FROM scratch\nCOPY code /other\n")


def add_file(root: Path) -> None:
    (root / "code" / "new.py").touch()


@pytest.mark.parametrize("change", [change_content, change_name, change_mode, change_recipe, add_file])
def test_every_change_of_an_input_changes_the_tag(root: Path, change: object) -> None:
    before = tag(root)

    assert callable(change)
    change(root)

    assert tag(root) != before


def test_moving_text_between_files_changes_the_tag(root: Path) -> None:
    before = tag(root)

    (root / "code" / "a.py").write_text("")
    (root / "code" / "deep" / "b.py").write_text("a = 1\nb = 2\n")

    assert tag(root) != before


def test_a_new_binary_or_base_changes_the_tag(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_binary = replace(IMAGE, component="pause")
    with_base = replace(IMAGE, base="base")
    base = Image("base", "Containerfile", packages=("python3",))
    monkeypatch.setitem(images.BY_NAME, "base", base)
    before = (tag(root, with_binary), tag(root, with_base))

    monkeypatch.setitem(images.BY_NAME, "base", replace(base, packages=("python3", "libnuma1")))

    assert images.tag(with_binary, root, {"pause": "k2"}) != before[0]
    assert tag(root, with_base) != before[1]


def test_the_context_is_what_the_row_names_without_caches(root: Path) -> None:
    (root / "code" / "x.egg-info").mkdir()
    (root / "code" / "x.egg-info" / "PKG-INFO").touch()
    (root / "code" / ".mypy_cache").mkdir()
    (root / "code" / ".mypy_cache" / "y").touch()

    files = images.context_files(IMAGE, root)

    assert [str(f) for f in files] == ["LICENSE", "code/a.py", "code/deep/b.py"]


def test_the_newest_tags_stay() -> None:
    tags = [("old", 1.0), ("newest", 9.0), ("newer", 5.0), ("oldest", 0.5)]

    assert images.stale(tags, keep=2) == ["old", "oldest"]
    assert images.stale(tags[:1], keep=2) == []


def test_a_tag_is_in_the_registry_once_its_link_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not images.in_registry("pause", "abc")

    link = tmp_path / "lorikeet/registry/docker/registry/v2/repositories/pause/_manifests/tags/abc/current/link"
    link.parent.mkdir(parents=True)
    link.write_text("sha256:…")

    assert images.in_registry("pause", "abc")


def test_a_base_stands_before_what_is_built_on_it() -> None:
    names = [image.name for image in images.IMAGES]

    for image in images.IMAGES:
        assert not image.base or names.index(image.base) < names.index(image.name)


def test_every_reference_to_an_image_without_a_wanted_tag_goes() -> None:
    listing = """REF TYPE DIGEST SIZE PLATFORMS LABELS
lorikeet.local/trainer:new     t sha256:1 9 MiB linux/amd64 -
lorikeet.local/trainer:old     t sha256:2 9 MiB linux/amd64 -
lorikeet.local/trainer@sha256:2 t sha256:2 9 MiB linux/amd64 -
sha256:c2                      t sha256:2 9 MiB linux/amd64 -
lorikeet.local/trainer:same    t sha256:1 9 MiB linux/amd64 -
example.com/theirs:old         t sha256:3 9 MiB linux/amd64 -
"""

    unused = images.unused_refs(listing, lambda name, its_tag: its_tag == "new")

    # "same" stays as well: it names the image that is wanted.
    assert unused == ["lorikeet.local/trainer:old", "lorikeet.local/trainer@sha256:2", "sha256:c2"]
