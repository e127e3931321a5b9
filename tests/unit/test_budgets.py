"""What an image may cost, what grew where it costs more, and failures that are accepted with a reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from imagebuilder.config import Budgets, load_config, size_in_bytes
from imagebuilder.errors import DataError, UsageError
from imagebuilder.verify.budgets import BUDGET_CHECKS, check_budgets, parse_budget, spending
from imagebuilder.verify.model import CheckResult, Outcome
from imagebuilder.verify.waivers import apply_waivers, is_waiver_unused
from tests import report_samples as samples

ALL = {
    "image_size": 320 << 20, "installed_size": 600 << 20, "boot_ratio": 9.1, "boot_steps": 6, "enabled_units": 2,
    "packages": 5, "open_ports": 2,
}  # fmt: skip


def only(budgets: Budgets, **changes: object) -> CheckResult:
    options = {"inventory": samples.INVENTORY, "boots": samples.BOOTS, "baseline": samples.BASELINE} | changes
    (result,) = check_budgets(budgets, **options)  # type: ignore[arg-type]
    return result


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        ("450 MB", 450_000_000), ("1.2GiB", 1_288_490_189), ("1.2 GB", 1_200_000_000), ("512", 512), ("7k", 7000),
        ("3 KiB", 3072), (12, 12),
    ],
)  # fmt: skip
def test_sizes_have_units(text: str | int, bytes_: int) -> None:
    assert size_in_bytes(text) == bytes_


@pytest.mark.parametrize("text", ["", "MB", "-1", "1e9", "1,5 GB", "1 XB", "9" * 400, "٣ MB", "1 GB left"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a size is like"):
        size_in_bytes(text)


def test_budgets_are_read_from_the_users_file(tmp_path: Path) -> None:
    path = tmp_path / "imagebuilder.toml"
    path.write_text('[budgets]\nimage_size = "450 MB"\nboot_ratio = 14\npackages = 190\n[waivers]\nno-swap = "a lab"\n')
    config = load_config(path)
    assert config.budgets == Budgets(image_size=450_000_000, boot_ratio=14, packages=190)
    assert config.waivers == {"no-swap": "a lab"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("budgets.image_sise = 1", 'budgets.image_sise: unknown key (did you mean "image_size"?)'),
        ("budgets.image_size = 'large'", "budgets.image_size: a size is like"),
        ("budgets.image_size = -1", "budgets.image_size: input should be greater than or equal to 0"),
        ("budgets.boot_ratio = nan", "budgets.boot_ratio: input should be"),
        ("budgets.packages = 1.5", "budgets.packages: input should be a valid integer"),
        ("waivers.no-swap = ' '", "waivers.no-swap: string should match pattern"),
    ],
)
def test_bad_budgets_and_waivers_in_the_file_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "imagebuilder.toml").write_text(text)
    with pytest.raises(DataError) as caught:
        load_config(tmp_path / "imagebuilder.toml")
    assert message in caught.value.context


def test_options_are_over_the_file() -> None:
    file = Budgets(image_size=1, packages=7)
    budgets = parse_budget(["image-size=450MB", "boot_ratio=12.5", "open_ports= 3"], file)
    assert budgets == Budgets(image_size=450_000_000, packages=7, boot_ratio=12.5, open_ports=3)


@pytest.mark.parametrize("word", ["image_size", "imagesize=1", "=5", ""])
def test_an_option_that_names_no_budget_is_wrong_use(word: str) -> None:
    with pytest.raises(UsageError):
        parse_budget([word])


@pytest.mark.parametrize("word", ["image_size=large", "packages=many", "packages=²", "boot_ratio=inf", "packages=1.5"])
def test_an_option_with_a_limit_that_is_none_is_refused(word: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_budget([word])
    assert word.partition("=")[0] in caught.value.context


def test_every_budget_has_a_check_and_is_measured() -> None:
    budgets = Budgets.model_validate(ALL)
    results = check_budgets(budgets, samples.INVENTORY, samples.BOOTS)
    assert [result.id for result in results] == [check.id for check in BUDGET_CHECKS]
    assert {name.replace("_", "-") for name in Budgets.model_fields} == {check.id[7:] for check in BUDGET_CHECKS}
    assert {result.outcome for result in results} == {Outcome.PASSED}, "just at the limit is within it"


@pytest.mark.parametrize("name", ALL)
def test_one_less_than_what_is_there_fails_just_that_budget(name: str) -> None:
    limit = ALL[name] - (0.1 if name == "boot_ratio" else 1)
    results = check_budgets(Budgets.model_validate(ALL | {name: limit}), samples.INVENTORY, samples.BOOTS)
    failed = [result.id for result in results if result.outcome is Outcome.FAILED]
    assert failed == [f"budget-{name.replace('_', '-')}"]


@pytest.mark.parametrize(
    ("budgets", "found"),
    [
        pytest.param(
            Budgets(image_size=300 << 20),
            ("320 MiB, 20 MiB over the limit of 300 MiB", "+103 MiB linux-image (new)", "+30 MiB containerd",
             "+90 KiB jq (new)"),
            id="bytes",
        ),
        pytest.param(Budgets(enabled_units=1), ("2, 1 over the limit of 1", "new unit containerd.service"), id="units"),
        pytest.param(Budgets(open_ports=1), ("2, 1 over the limit of 1", "new port tcp/10250"), id="ports"),
        pytest.param(
            Budgets(packages=4), ("5, 1 over the limit of 4", "new package jq", "new package linux-image"),
            id="packages",
        ),
        pytest.param(
            Budgets(boot_ratio=9),
            ("9.10, 0.10 over the limit of 9.00", "bios, kubelet: 39.0 s before, 41.5 s now"),
            id="boot",
        ),
    ],
)  # fmt: skip
def test_over_budget_says_how_much_and_what_grew(budgets: Budgets, found: tuple[str, ...]) -> None:
    baseline = samples.BASELINE
    packages = tuple(one for one in baseline.inventory.packages if one.name not in ("jq", "linux-image"))
    baseline = replace(baseline, inventory=replace(baseline.inventory, packages=packages))
    assert only(budgets, baseline=baseline).found == found


def test_at_most_five_packages_are_named() -> None:
    inventory = replace(samples.BASELINE.inventory, packages=())
    many = tuple(replace(samples.PACKAGES[0], name=f"p{at}", size=at << 20) for at in range(1, 9))
    result = only(
        Budgets(installed_size=1),
        inventory=replace(samples.INVENTORY, packages=many),
        baseline=replace(samples.BASELINE, inventory=inventory),
    )
    assert [line.split()[2] for line in result.found[1:]] == ["p8", "p7", "p6", "p5", "p4"]


def test_without_a_baseline_it_says_that_nobody_knows_what_grew() -> None:
    assert only(Budgets(packages=1), baseline=None).found[1] == "no baseline was given: what grew is not known"


@pytest.mark.parametrize("budgets", [Budgets(boot_ratio=100), Budgets(open_ports=100)])
def test_what_no_boot_measured_is_a_failure(budgets: Budgets) -> None:
    result = only(budgets, boots=())
    assert (result.outcome, result.holds) == (Outcome.NOT_RUN, False)
    assert result.reason.startswith("no boot of this run measured")


def test_a_boot_with_kubelet_and_without_a_reference_leaves_the_ratio_unknown() -> None:
    boots = (samples.BOOTS[0], replace(samples.BOOTS[1], reference=0.0))
    (spent,) = spending(Budgets(boot_ratio=100), samples.INVENTORY, boots)
    assert (spent.value, spent.left) == (None, None)


def test_a_firmware_that_is_only_seen_to_boot_does_not_count_for_the_ratio() -> None:
    boots = (samples.BOOTS[0], replace(samples.BOOTS[1], stages={"login": 3.0}, reference=0.0))
    (spent,) = spending(Budgets(boot_ratio=100), samples.INVENTORY, boots)
    assert spent.value == pytest.approx(samples.BOOTS[0].stages["kubelet"] / samples.BOOTS[0].reference)


IDS = [result.id for result in samples.RESULTS]


def test_a_waiver_turns_a_failure_and_a_check_that_did_not_run() -> None:
    results = apply_waivers(samples.RESULTS, {"no-swap": " a lab ", "cgroup-v2": "old kernel"}, IDS)
    waived = {result.id: result for result in results if result.reason in ("a lab", "old kernel")}
    assert {result.outcome for result in waived.values()} == {Outcome.WAIVED}
    assert waived["no-swap"].found == samples.RESULTS[1].found
    assert waived["cgroup-v2"].found == ("the guest did not answer within 30 s",), "why it did not run can be read"


def test_other_results_stay_as_they_are() -> None:
    results = apply_waivers(samples.RESULTS, {"no-swap": "a lab"}, IDS)
    assert [new for new, old in zip(results, samples.RESULTS, strict=True) if new is not old] == [results[1]]


def test_a_waiver_that_nothing_needs_is_said() -> None:
    results = apply_waivers(samples.RESULTS, {"no-host-key": "for ever"}, IDS)
    assert [result.id for result in results if is_waiver_unused(result)] == ["no-host-key"]
    assert (results[0].outcome, results[0].holds) == (Outcome.PASSED, True)


@pytest.mark.parametrize(
    ("waivers", "line"),
    [
        ({"no-swpa": "a lab"}, 'waivers.no-swpa: there is no such check (did you mean "no-swap"?)'),
        ({"no-swap": " "}, "waivers.no-swap: a waiver needs a reason"),
    ],
)
def test_a_waiver_of_no_check_or_without_a_reason_is_refused(waivers: dict[str, str], line: str) -> None:
    with pytest.raises(DataError) as caught:
        apply_waivers(samples.RESULTS, waivers, IDS)
    assert line in caught.value.context
