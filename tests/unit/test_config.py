"""The user's imagebuilder.toml."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagebuilder.config import ANYONE, FILE_NAME, Cache, Config, Mirror, image_is_path, load_config
from imagebuilder.errors import DataError

KEY = "DE15B14486CD377B9E876E1A234654DA9A296436"


def write(folder: Path, text: str) -> Path:
    path = folder / FILE_NAME
    path.write_text(text)
    return path


def test_everything_is_optional(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")) == Config()


def test_wishes_are_read(tmp_path: Path) -> None:
    config = load_config(
        write(tmp_path, 'os = "debian"\nkubernetes = "1.35"\npackage = ["tmux"]\n[source]\nkubernetes = "go-modules"\n')
    )
    assert (config.os, config.kubernetes, config.package) == ("debian", "1.35", ("tmux",))
    assert config.source == {"kubernetes": "go-modules"}


def test_relative_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = 'overlay = ["files", "/abs"]\nscript = ["a.sh"]\ntrust = ["k.pub"]\n'
    write(tmp_path, f'{lists}[source]\nkubernetes = "file:bin"\ncni = "distro"\n')
    monkeypatch.chdir(tmp_path)
    config = load_config(Path(FILE_NAME))
    assert config.overlay == (tmp_path / "files", Path("/abs"))
    assert config.trust == (tmp_path / "k.pub",)
    assert config.script == (tmp_path / "a.sh",)
    assert config.source == {"kubernetes": f"file:{tmp_path}/bin", "cni": "distro"}


def test_a_cache_is_shared_with_whom_the_file_says(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")).cache == Cache()
    text = 'remote = "s3://bucket/layers"\npush = true\ntrust = ["a.pub", "/b.pub"]\nsign = "a.key"\nlower = ["x"]\n'
    cache = load_config(write(tmp_path, f"[cache]\n{text}seconds = 30\n")).cache
    assert (cache.remote, cache.push, cache.seconds) == ("s3://bucket/layers", True, 30)
    assert (cache.trust, cache.sign) == ((tmp_path / "a.pub", Path("/b.pub")), tmp_path / "a.key")
    assert cache.lower == (tmp_path / "x",)
    assert load_config(write(tmp_path, f'[cache]\ntrust = "{ANYONE}"\n')).cache.trust == ANYONE


@pytest.mark.parametrize(
    "line", ['trust = "any"', "seconds = 0", "seconds = inf", 'remote = "http://host/x"', 'remote = "s3://a b"',
             "push = 1", 'remotes = ""'],
)  # fmt: skip
def test_a_cache_that_is_not_meant_like_this_is_refused(line: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"imagebuilder\.toml: \d problem"):
        load_config(write(tmp_path, f"[cache]\n{line}\n"))


def test_mirror_may_have_a_key_of_its_own(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, f'[mirror]\nx = {{ url = "http://m", key = "{KEY}" }}\n'))
    assert config.mirror == {"x": Mirror(url="http://m", key=KEY)}


def test_mirror_may_be_an_address_alone(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, '[mirror]\ndebian = "http://m/debian"\n'))
    assert config.mirror == {"debian": Mirror(url="http://m/debian")}


@pytest.mark.parametrize(
    ("image", "is_path"),
    [
        ("registry.k8s.io/pause:3.10.1", False),
        ("nginx", False),
        ("docker.io/library/nginx@sha256:00", False),
        ("./nginx", True),
        ("../nginx", True),
        ("/images/nginx", True),
        ("images/nginx.tar", True),
        ("pause.toml", True),
    ],
)
def test_image_paths_are_told_from_references(tmp_path: Path, image: str, is_path: bool) -> None:
    assert image_is_path(image) is is_path
    config = load_config(write(tmp_path, f'image = ["{image}"]\n'))
    assert config.image == ((str(tmp_path / image),) if is_path else (image,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param('pakcage = ["x"]', 'pakcage: unknown key (did you mean "package"?)', id="key"),
        pytest.param('package = "x"', "package: input should be a valid tuple", id="list"),
        pytest.param("release = 13", "release: input should be a valid string (got 13)", id="number"),
        pytest.param("overlay = [1]", "overlay.0: input is not a valid path", id="path"),
        pytest.param("mirror.x = 1", "mirror.x: input should be a valid dictionary", id="mirror"),
        pytest.param("mirror.x = { uri = 'y' }", 'mirror.x.uri: unknown key (did you mean "url"?)', id="mirror-key"),
        pytest.param(
            "mirror.x = { url = 'y', key = 'k.asc' }", "mirror.x.key: string should match pattern", id="mirror-key-file"
        ),
        pytest.param("mirror.x = ''", "mirror.x.url: string should have at least 1 character", id="mirror-empty"),
    ],
)
def test_bad_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        load_config(write(tmp_path, text))
    assert message in caught.value.context
