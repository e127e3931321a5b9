"""The environment of the recipe's steps, the same for every engine: what is installed, and where it lies in there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from imagebuilder.errors import UsageError
from imagebuilder.plan import BuildPlan, LayerPlan

REPOSITORY_OF = {"packages": "kubernetes", "docker-ce": "docker-ce"}  # source kinds that need an extra repository
EXTRA = "epel"  # the repository for packages that are asked for, where a profile has it
ALWAYS = frozenset({"IB_FAMILY", "IB_INIT"})  # lib.sh wants them, whatever the step states


def environment(
    plan: BuildPlan,
    *,
    kubernetes: str,
    packages: Mapping[str, Sequence[str]],
    payloads: Collection[str],
    inside: str,
    pause: bool = True,
) -> dict[str, str]:
    """Return the variables of all steps.

    Args:
        plan: what was decided.
        kubernetes: the exact version.
        packages: per component the packages that it comes from; empty when it is a payload.
        payloads: the components that come as programs.
        inside: the folder in the root tree that has payloads, archives and the user's files.
        pause: whether the pause image comes as an archive.
    """
    env = dict(plan.settings)
    for layer in ("base", "runtime"):
        env[f"IB_{layer.upper()}_PACKAGES"] = " ".join(plan.layer(layer).packages)
    env |= {
        "IB_RUNTIME_PACKAGES": " ".join(packages.get("docker", ())),
        "IB_KUBERNETES_VERSION": kubernetes,
        "IB_AGENT": f"{inside}/agent.py",
        "IB_GUEST_PACKAGES": " ".join(plan.target.packages(plan.profile.name, plan.profile.family)),
        "IB_SITE_PACKAGES": " ".join(plan.request.packages),
        "IB_PAUSE_ARCHIVE": f"{inside}/pause.tar" if pause else "",
        "IB_SITE_OVERLAYS": f"{inside}/overlays",
        "IB_SITE_TRUST": f"{inside}/trust",
        "IB_SITE_SCRIPTS": f"{inside}/scripts",
        "IB_SITE_IMAGES": f"{inside}/images",
    }
    for name, names in packages.items():
        env[f"IB_{name.upper()}_PACKAGES"] = " ".join(names)
        env[f"IB_{name.upper()}_PAYLOAD"] = f"{inside}/payload/{name}" if name in payloads else ""
    return env


def layer_environment(layer: LayerPlan, env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a layer's steps state, and no others."""
    names = {name for step in layer.steps for name in step.inputs} | ALWAYS
    return {name: value for name, value in env.items() if name in names}


def repositories(plan: BuildPlan, kinds: Sequence[str]) -> str:
    """Return the outside repositories that these kinds of source want, as ``IB_REPOSITORIES`` has them.

    One word for each: NAME|URI|SUITE|COMPONENTS|KEY|FINGERPRINT, see provision/steps/runtime/05-repositories.sh.

    Raises:
        UsageError: the profile does not have one of them.
    """
    words = []
    names = [REPOSITORY_OF[kind] for kind in kinds if kind in REPOSITORY_OF]
    if plan.request.packages and plan.repository(EXTRA):
        names.append(EXTRA)
    for name in dict.fromkeys(names):
        repository = plan.repository(name)
        if repository is None:
            raise UsageError(f"{plan.profile.title} has no repository {name}", hint="another --source")
        minor, mirror = plan.kubernetes_minor, plan.request.mirrors.get(name, "")
        uri, key = repository.uri_for(minor), repository.key_url_for(minor)
        if mirror:
            uri, key = mirror, key.replace(uri.rstrip("/"), mirror.rstrip("/"), 1)
        fingerprint = plan.request.keys.get(name, repository.fingerprint)
        words.append("|".join((name, uri, repository.suite, ",".join(repository.components), key, fingerprint)))
    return " ".join(words)
