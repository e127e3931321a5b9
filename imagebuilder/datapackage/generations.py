"""``generations.json``, beside the packages: which number was given to what. A number is never given twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from imagebuilder.datapackage.manifest import MAX_GENERATION, Time
from imagebuilder.errors import DataError, HostError, UsageError
from imagebuilder.strict import Strict, label, validate

MAX_STATE = 16 << 20  # bytes; a node has 200


class Entry(Strict):
    """The last package of a node.

    Attributes:
        content: id of what it says besides its generation and time.
    """

    generation: Annotated[int, Field(ge=1, le=MAX_GENERATION)]
    content: str
    not_before: Time
    not_after: Time


class Generations(Strict):
    """The last package of every node."""

    kind: Literal["Generations"] = "Generations"
    cluster: str
    nodes: Mapping[str, Entry] = {}

    def to_bytes(self) -> bytes:
        """Return the file."""
        return (json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True) + "\n").encode()


def read_generations(path: Path, cluster: str) -> Generations:
    """Return what was given away so far.

    Raises:
        UsageError: the folder holds packages of another cluster.
        DataError: the file is damaged.
        HostError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            raw = json.loads(stream.read(MAX_STATE))
    except FileNotFoundError:
        return Generations(cluster=cluster)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        hint = "restore it; without it, state the generations: --generation N"
        raise DataError(f"{path} is damaged", context=str(error), hint=hint) from error
    state = validate(raw, Generations, label(path))
    if state.cluster != cluster:
        raise UsageError(f"{path.parent} holds packages of the cluster {state.cluster}", hint="--output DIR")
    return state
