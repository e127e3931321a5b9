"""Container images to preload, as data: a registry reference, and how to compose the image where none answers."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from imagebuilder.strict import Strict, Strings, expand, label, read_toml, validate


class ComposeFile(Strict):
    """One file of a composed image, taken from an unpacked package."""

    source: str = Field(description="Path in the unpacked packages.", pattern=r"^/")
    target: str = Field(description="Path in the image.", pattern=r"^/")
    mode: str = Field(default="0755", description="Mode in octal.", pattern=r"^0[0-7]{3}$")


class ComposeText(Strict):
    """One small text file of a composed image."""

    target: str = Field(description="Path in the image.", pattern=r"^/")
    text: str = Field(description="Its content.", max_length=65536)
    mode: str = Field(default="0644", description="Mode in octal.", pattern=r"^0[0-7]{3}$")


class Compose(Strict):
    """A from-scratch image of static programs that the distribution has."""

    packages: Strings = Field(description="Packages to take files from.", min_length=1)
    files: tuple[ComposeFile, ...] = Field(description="Files of the packages.", strict=False, min_length=1)
    texts: tuple[ComposeText, ...] = Field(default=(), description="Text files.", strict=False)
    entrypoint: Strings = Field(description="The image's entrypoint.")
    cmd: Strings = Field(default=(), description="The image's default arguments.")
    user: str = Field(default="", description="User and group, as uid:gid.")


class ImageData(Strict):
    """What an image's file states. ``{pause}`` stands for the pause image of the Kubernetes version."""

    reference: str = Field(description="The name by which pods use the image.")
    sources: tuple[Literal["registry", "compose"], ...] = Field(
        description="Kinds of source, in the order in which they are tried.", strict=False, min_length=1
    )
    compose: Compose | None = Field(default=None, description="How to compose it.")

    @model_validator(mode="after")
    def _composed(self) -> ImageData:
        if "compose" in self.sources and self.compose is None:
            raise ValueError('sources names "compose", but there is no [compose] table')
        return self


@cache
def load_image(path: Path, pause: str = "") -> ImageData:
    """Return an image's data.

    Raises:
        DataError: the file does not follow the schema.
    """
    data = validate(read_toml(path), ImageData, label(path))
    return data.model_copy(update={"reference": expand(data.reference, {"pause": pause})})
