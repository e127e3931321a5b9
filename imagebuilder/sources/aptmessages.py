"""What apt and mmdebstrap say when they fail, turned into errors that say what happened."""

from __future__ import annotations

import re
import time

from imagebuilder.errors import (
    CommandError,
    DeadlineError,
    HostError,
    ImagebuilderError,
    UnreachableError,
    UnresolvableError,
    UntrustedError,
)  # fmt: skip

OTHER_MIRROR = "name another mirror with --mirror"
OUT_OF_REACH = f"check the network, or {OTHER_MIRROR}"
CONTEXT_LINES = 10  # a wrong hash takes nine: the address, what was expected and what came
SPOKEN = re.compile(r"(E|W|N|Error|Warning|Notice): |Err:|  | \S+ : ")
NOISE = re.compile(
    r"W: Download is performed unsandboxed|E: (mmdebstrap failed|apt-get update --error-on)"
    r"|\w+: Some index files failed to download|\w+: .*see the DEPRECATION section in apt-key"
)

# What apt says, and what it means; the first that matches is taken. The texts are those of apt 2.6 to 3.0.
# "{clock}" in a hint is what this machine's clock says.
MEANINGS: tuple[tuple[type[ImagebuilderError], str, str, str], ...] = (
    (
        HostError,
        r"No space left on device|You don't have enough free space",
        "has more than there is space for on this host",
        "df -h; the folders are those of --cache-dir and --output",
    ),
    (
        UntrustedError,
        r"not.* valid yet|Not live until",
        "has an index from the future, by this machine's clock",
        "set this machine's clock: {clock}",
    ),
    (
        UntrustedError,
        r"Release file .* is expired",
        "has an index that is no longer valid, by this machine's clock",
        f"{{clock}}; if that is right, the mirror is no longer updated: {OTHER_MIRROR}",
    ),
    (
        UntrustedError,
        r"Hash Sum mismatch|unexpected size|Hashes of (expected|received)",
        "sent a file whose hash is not the one in its signed index",
        f"try again later, or {OTHER_MIRROR}",
    ),
    (
        UntrustedError,
        r"NO_PUBKEY|BADSIG|EXPKEYSIG|REVKEYSIG|is not signed|invalid signature|Clearsigned file"
        r"|signatures couldn't be verified|Missing key|does not verify|is expired"
        r"|signature verification failed|Message has been manipulated|bin/sqv returned an error",
        "has an index without a valid signature",
        "check the mirror, its key, and this machine's clock: {clock}",
    ),
    (
        UnresolvableError,
        r"Unable to locate package|no installation candidate|was not found|unmet dependencies|held broken"
        r"|Unable to satisfy dependencies|Unsatisfied dependencies",
        "does not have what was asked for",
        "check the names; the archive can be searched with: apt-cache search WORD",
    ),
    (
        UnreachableError,
        r"Could not (resolve|connect)|Unable to connect|Connection (failed|timed out|refused|reset)"
        r"|Temporary failure|unreachable",
        "is out of reach",
        OUT_OF_REACH,
    ),
    (
        UnresolvableError,
        r"does not have a Release file|404 +Not Found",
        "answers, but does not have a file that it should have",
        "check the mirror's address: it must have this release, and be up to date",
    ),
    (UnreachableError, r"Failed to fetch", "does not give its files", OTHER_MIRROR),
)


class explained:  # noqa: N801 - used as a word: "with explained(mirror)"
    """Turns apt's failures into errors that say what happened; ``who`` is the archive or its address."""

    def __init__(self, who: str) -> None:
        self.who = re.sub(r"//[^/@]+@", "//", who)

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Raise the error that a failed apt stands for."""
        if isinstance(error, DeadlineError):
            message = f"{self.who} is too slow: it was given up"
            raise UnreachableError(message, context=error.message, hint=OUT_OF_REACH) from error
        if not isinstance(error, CommandError):
            return
        said = "\n".join(line for line in error.context.splitlines() if not line.startswith("command: "))
        if found := _meaning(said, self.who):
            raise found from error


def meaning_of(said: str, who: str) -> ImagebuilderError:
    """Return the error that apt's words stand for, for who finds the same without apt; ``who`` as in explained."""
    return _meaning(said, explained(who).who) or CommandError(said)


def _meaning(said: str, who: str) -> ImagebuilderError | None:
    for meaning, pattern, text, hint in MEANINGS:
        if re.search(pattern, said):
            return meaning(f"{who} {text}", context=_relevant(said), hint=hint.replace("{clock}", clock()))
    return None


def clock() -> str:
    """Return what this machine's clock says, in words."""
    return time.strftime("it says %Y-%m-%d %H:%M UTC", time.gmtime(time.time()))


def _relevant(said: str) -> str:
    """Keep apt's own error lines: what it says of progress tells nothing. apt 3 writes "Error: " for "E: "."""
    lines = [line for line in said.splitlines() if SPOKEN.match(line) and not NOISE.match(line)]
    return "\n".join(lines[-CONTEXT_LINES:]) or said
