"""The types of an OS profile: what its TOML files may say, and what of it holds for one cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from imagebuilder.errors import DataError
from imagebuilder.strict import Strict, Strings, expand


class Release(Strict):
    """One release of an operating system."""

    suite: str = Field(description="The release's name in the archive, for instance a code name.")
    eol: str = Field(
        description="Last day of security updates, long-term support included: YYYY-MM-DD.",
        pattern=r"^\d{4}-\d{2}-\d{2}$",
    )
    containerd: str = Field(default="", description="Version of containerd that the distribution has, if any.")
    version: str = Field(
        default="", description="Version in the names of its images, where that is not the release's number."
    )


class Bootstrap(Strict):
    """How the first packages of the root tree are fetched; without it the direct engine cannot begin."""

    keyring: str = Field(description="Path on the host of the keyring that verifies the archive.")
    components: Strings = Field(description="Components of the archive, for instance main.")


class Packages(Strict):
    """Packages of the distribution, by what they are for."""

    base: Strings = Field(description="Everything of the OS that a node needs, without the kernel.")
    runtime: Strings = Field(
        default=(),
        description="The distribution's docker and containerd; what components.docker.packages names for"
        " another source replaces them.",
    )
    tools: Strings = Field(default=(), description="On top of base: the programs that write the disk, run in a chroot.")
    unwanted: Strings = Field(default=(), description="Packages of source images that a node has no use for.")


class Component(Strict):
    """Software that can come from several places."""

    sources: Strings = Field(description="Kinds of source, in the order in which they are tried.", min_length=1)
    packages: Mapping[str, Strings] = Field(default={}, description="Packages to install, per kind of source.")
    module: str = Field(default="", description="Folder under components/ for go-modules; {minor} is allowed.")
    programs: Strings = Field(default=(), description="Programs that the component must give.")
    containerd: Mapping[str, str] = Field(
        default={}, description="Lowest version of containerd that comes along, per kind of source."
    )

    def module_for(self, minor: str) -> str:
        """Return the folder under ``components/`` for one Kubernetes minor, for instance ``1.35``."""
        return expand(self.module, {"minor": minor})


class Repository(Strict):
    """A package repository outside the distribution."""

    uri: str = Field(description="Address; {minor} and {suite} are allowed.")
    suite: str = Field(default="", description="Suite, or / for a flat repository; nothing for rpm.")
    components: Strings = Field(default=(), description="Components; none for a flat repository and for rpm.")
    key_url: str = Field(description="Address of the signing key.")
    fingerprint: str = Field(description="The signing key's fingerprint.", pattern=r"^[0-9A-F]{40}$")

    def uri_for(self, minor: str) -> str:
        """Return the address for one Kubernetes minor, for instance ``1.35``."""
        return expand(self.uri, {"minor": minor})

    def key_url_for(self, minor: str) -> str:
        """Return the key's address for one Kubernetes minor."""
        return expand(self.key_url, {"minor": minor})


class Paths(Strict):
    """Where the operating system keeps what the steps write."""

    kubelet_defaults: str = Field(description="File with KUBELET_EXTRA_ARGS.")
    cni_bin: str = Field(description="Folder in which containerd looks for CNI plugins.")


class SourceImage(Strict):
    """What Packer starts from, of any kind."""

    ssh_user: str = Field(
        description="The user that Packer logs in as; removed at the end, unless it is root.",
        pattern=r"^[a-z_][a-z0-9_-]*$",
    )


class AwsImage(SourceImage):
    """The newest AMI of an owner whose name matches."""

    owner: str = Field(description="Account that publishes it.", pattern=r"^\d{12}$")
    name: str = Field(description="Name, with * for any text.")
    # With another name the build would get a second disk, and the root stay small (kubernetes-sigs/image-builder#317).
    # What the profiles state is unconfirmed: aws ec2 describe-images --query 'Images[].RootDeviceName' tells.
    root_device: str = Field(default="/dev/sda1", description="Name of its root device.", pattern=r"^/dev/[a-z0-9]+$")


class GceImage(SourceImage):
    """The newest image of a family on Google Compute Engine."""

    project: str = Field(description="Project that publishes it.")
    family: str = Field(description="Image family.")


class AzureImage(SourceImage):
    """An image of the Azure Marketplace."""

    publisher: str = Field(description="Publisher.")
    offer: str = Field(description="Offer.")
    sku: str = Field(description="Plan within the offer.")
    version: str = Field(default="latest", description="Version, or latest.")
    plan: bool = Field(
        default=False, description="Whether its purchase plan must be accepted once, and stated by every VM."
    )


class FileImage(SourceImage):
    """A file that is downloaded, or that the user puts where the build runs."""

    url: str = Field(description="Address; or the name of a file, where the vendor gives it to customers only.")
    checksum_url: str = Field(default="", description="Address of a list with its SHA-256 or SHA-512.")

    @model_validator(mode="after")
    def _checked(self) -> FileImage:
        if ("://" in self.url) is not bool(self.checksum_url):
            raise ValueError("an address needs a checksum_url, and a file's name has none")
        return self


class CloudImage(FileImage):
    """A disk that configures itself with cloud-init."""

    format: Literal["qcow2", "raw"] = Field(description="Format of the disk file.")


class IsoImage(FileImage):
    """An installer on a CD."""

    unattended: Literal["preseed", "kickstart", "autoinstall"] = Field(description="How it is told what to install.")
    install_url: str = Field(default="", description="Where it takes packages from, when the CD has none.")


class DigitaloceanImage(SourceImage):
    """An image of DigitalOcean."""

    slug: str = Field(description="The image's slug.")


class HcloudImage(SourceImage):
    """An image of the Hetzner Cloud."""

    image: str = Field(description="The image's name.")


class SourceImages(Strict):
    """What Packer starts from, per kind; a target names the kind that it wants."""

    aws: AwsImage | None = Field(default=None, description="An AMI.")
    gce: GceImage | None = Field(default=None, description="An image on Google Compute Engine.")
    azure: AzureImage | None = Field(default=None, description="An image of the Azure Marketplace.")
    cloud_image: CloudImage | None = Field(
        default=None, alias="cloud-image", description="A disk that configures itself with cloud-init."
    )
    iso: IsoImage | None = Field(default=None, description="An installer on a CD.")
    digitalocean: DigitaloceanImage | None = Field(default=None, description="An image of DigitalOcean.")
    hcloud: HcloudImage | None = Field(default=None, description="An image of the Hetzner Cloud.")

    def of(self, kind: str) -> SourceImage | None:
        """Return the image of a kind, or None."""
        image: SourceImage | None = getattr(self, kind.replace("-", "_"), None)
        return image


class ProfileData(Strict):
    """What a profile's files must state together."""

    title: str = Field(description="The name that people know, for instance Debian.")
    family: Literal["debian", "redhat"] = Field(description="Package family.")
    init: Literal["systemd", "sysvinit"] = Field(description="The program that is PID 1.")
    package_format: Literal["deb", "rpm"] = Field(description="Format of packages.")
    default_release: str = Field(description="The release taken when none is asked for.")
    releases: Mapping[str, Release] = Field(description="Supported releases by their number.", min_length=1)
    architectures: Strings = Field(description="Supported architectures, in our names: amd64, arm64.")
    kernel: Mapping[Literal["cloud", "generic"], str] = Field(description="Kernel package per flavour.")
    bootstrap: Bootstrap | None = Field(
        default=None, description="How the first packages of the root tree are fetched, for the direct engine."
    )
    packages: Packages = Field(description="Packages of the distribution, by what they are for.")
    components: Mapping[str, Component] = Field(description="Software that can come from several places.")
    repositories: Mapping[str, Repository] = Field(description="Package repositories, by name.")
    paths: Paths = Field(description="Where the operating system keeps what the steps write.")
    source_images: SourceImages = Field(
        default_factory=SourceImages, description="What Packer starts from, per kind; none for the direct engine alone."
    )
    missing_images: Mapping[str, str] = Field(
        default={}, description="Per kind that has no source image: why, as the end of a sentence."
    )
    subscription: bool = Field(default=False, description="Whether packages need the vendor's subscription.")
    kernel_arguments: Strings = Field(default=(), description="Kernel arguments, before the target's.")
    masked_generators: Strings = Field(default=(), description="Unit generators that must never run on a node.")
    masked_services: Strings = Field(default=(), description="Services that cost time at boot for nothing.")
    initramfs: Literal["small", "stock"] = Field(
        default="stock",
        description="Of disks that the direct engine makes: one of our own with the target's drivers alone, or the"
        " distribution's.",
    )
    hold: Strings = Field(description="Packages that are never upgraded on a node; those installed are held.")


class Profile(ProfileData):
    """A profile for one release, architecture and target: merged, and with its placeholders filled in."""

    name: str = Field(description="Name on the command line.")
    release: str = Field(description="The chosen release.")
    suite: str = Field(description="The chosen release's suite.")
    arch: str = Field(description="The chosen architecture, in our names.")

    @property
    def archive(self) -> Bootstrap:
        """Return how the first packages are fetched.

        Raises:
            DataError: the profile does not say.
        """
        if self.bootstrap is None:
            raise DataError(f"{self.title} has no [bootstrap]", hint="--engine packer")
        return self.bootstrap

    def runtime_packages(self, docker_source: str) -> tuple[str, ...]:
        """Return the packages of the runtime layer when docker comes from this kind of source."""
        return self.components["docker"].packages.get(docker_source, self.packages.runtime)

    def containerd_version(self, docker_source: str) -> str:
        """Return the version of containerd (at least) when docker comes from this kind of source."""
        brought = self.components["docker"].containerd
        return brought.get(docker_source, self.releases[self.release].containerd)
