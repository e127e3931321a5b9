"""Every error this project raises on purpose: a stable reference and an exit code per class.

The message says what happened and to what; the context shows evidence (last lines of a log, the keys in
question); the hint is the next thing to type. Nothing here prints or exits: the ``cli`` room does.
"""

from __future__ import annotations

from collections.abc import Iterator


class ImagebuilderError(Exception):
    """Base of all errors that a user can cause or meet.

    Attributes:
        ref: stable kebab-case reference, fit for scripts and searches.
        exit_code: the process's exit code; unique per class.
        meaning: one sentence for the generated list of errors.
    """

    ref = "error"
    exit_code = 70
    meaning = "Something failed that has no class of its own; please report it."

    def __init__(self, message: str, *, context: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.context = context
        self.hint = hint


class CheckFailedError(ImagebuilderError):
    """A check that was asked for did not pass."""

    ref = "check-failed"
    exit_code = 1
    meaning = "A check ran to its end and did not pass."


class UsageError(ImagebuilderError):
    """The request itself is wrong: an unknown name, a bad combination of options."""

    ref = "usage"
    exit_code = 2
    meaning = "The command line or the request names something that does not exist or does not fit."


class DataError(ImagebuilderError):
    """A TOML file (profile, target, imagebuilder.toml) is not of its schema."""

    ref = "data-invalid"
    exit_code = 3
    meaning = "A profile, target, step or configuration file does not follow its schema."


class IncompatibleError(ImagebuilderError):
    """Two versions that cannot work together."""

    ref = "incompatible"
    exit_code = 4
    meaning = "The versions asked for cannot run together (for instance kubelet and containerd)."


class UnreachableError(ImagebuilderError):
    """No source of a component answered."""

    ref = "source-unreachable"
    exit_code = 5
    meaning = "No source of a component, or no mirror, answered in time."


class UntrustedError(ImagebuilderError):
    """Bytes whose checksum or signature is not what it must be."""

    ref = "untrusted"
    exit_code = 6
    meaning = "A checksum or signature is wrong; nothing of that download was used."


class UnresolvableError(ImagebuilderError):
    """A package, version or image that its source does not have."""

    ref = "unresolvable"
    exit_code = 7
    meaning = "A source answered, but does not have the package, version or image asked for."


class PrivilegeError(ImagebuilderError):
    """The work needs rights that this user does not have."""

    ref = "not-root"
    exit_code = 8
    meaning = "The direct engine needs root, or a user with subordinate ids who may make user namespaces."


class ToolMissingError(ImagebuilderError):
    """A program that has to be on this host is not there."""

    ref = "tool-missing"
    exit_code = 9
    meaning = "A program that the host must have is not installed; the hint installs it."


class CommandError(ImagebuilderError):
    """A program ended with an error, or could not be started."""

    ref = "command-failed"
    exit_code = 10
    meaning = "A program that was started ended with an error; its last lines and its log are shown."


class StepError(ImagebuilderError):
    """A provisioning step of the recipe failed inside the root tree."""

    ref = "step-failed"
    exit_code = 11
    meaning = "A step of the recipe failed; the step, its last lines and its log are shown."


class CacheError(ImagebuilderError):
    """The cache holds something that is not what it says."""

    ref = "cache-broken"
    exit_code = 12
    meaning = "The cache cannot be used, or an entry of it is not what it says it is."


class ArtifactError(ImagebuilderError):
    """A file given as an artifact is none, or is not whole."""

    ref = "artifact-invalid"
    exit_code = 13
    meaning = "A file or folder given as an artifact is missing, incomplete or of an unknown format."


class BootError(ImagebuilderError):
    """A guest died or said that it cannot go on."""

    ref = "boot-failed"
    exit_code = 14
    meaning = "The guest ended, panicked or reported a failure before it reached the stage asked for."


class DeadlineError(ImagebuilderError):
    """Something did not happen within its time."""

    ref = "deadline"
    exit_code = 15
    meaning = "A program or a guest did not reach its goal within its deadline, and was ended."


class HostError(ImagebuilderError):
    """The host refused: disk full, no permission, read-only."""

    ref = "host"
    exit_code = 16
    meaning = "The host refused an operation: disk full, permission, read-only file system."


class CatalogError(ImagebuilderError):
    """A catalog of boxes is not what it must be."""

    ref = "catalog-broken"
    exit_code = 22
    meaning = "A folder is no catalog of boxes, or a file of the catalog is damaged; nothing in it was changed."


class CertificateError(ImagebuilderError):
    """A certificate, a key or a request is not what it is taken for."""

    ref = "certificate-invalid"
    exit_code = 24
    meaning = "A certificate, key or authority is damaged, expired, or does not fit its use; nothing was changed."


class PackageError(ImagebuilderError):
    """A data package that is refused.

    Attributes:
        code: stable code of the reason, one of those in ``docs/data-package.md``; the agent uses the same.
    """

    ref = "package-refused"
    exit_code = 25
    meaning = "A data package or a pointer is refused; the message begins with a code of docs/data-package.md."

    def __init__(self, code: str, message: str = "", *, context: str = "", hint: str = "") -> None:
        super().__init__(f"{code}: {message}" if message else code, context=context, hint=hint)
        self.code = code


class InterruptedByUserError(ImagebuilderError):
    """Ctrl-C or SIGTERM."""

    ref = "interrupted"
    exit_code = 130
    meaning = "Stopped by Ctrl-C or SIGTERM; nothing half-written is left, and the next run just works."


def error_classes() -> Iterator[type[ImagebuilderError]]:
    """Yield every error class, the base first, then by exit code."""
    yield ImagebuilderError
    yield from sorted(ImagebuilderError.__subclasses__(), key=lambda cls: cls.exit_code)
