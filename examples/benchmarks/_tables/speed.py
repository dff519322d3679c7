"""The tables of comparisons with Captum: speed, memory, accuracy, and where the time goes."""

from __future__ import annotations

import json
from typing import Any

from . import DATA, NOTHING, markdown_table, tables_by_machine

INCREMENTAL = ("krypton", "launched", "fused", "reference")  # sides of ours, which make whole maps


def comparisons(
    windows: str = "16-8", *, threads: int = 2, large: bool = False
) -> list[dict[str, Any]]:
    """The committed results of `benchmark.py`, by network.

    Args:
        windows: side and stride, such as `16-8`, or `total-16` for sixteen windows in all.
        threads: CPU threads.
        large: those of images with sides of 448 pixels, instead of what the networks expect.
    """
    files = sorted((DATA / "benchmark").glob(f"*_{windows}_threads-{threads}.json"))
    results = [json.loads(file.read_text()) for file in files]
    return [result for result in results if (result["size"] == 448) is large]


def headline() -> str:
    """What the home page says first of speed."""
    names = {"vgg16": "VGG16", "resnet18": "ResNet18", "resnet50": "ResNet50"}
    found = {result["model"]: result for result in comparisons() if result["model"] in names}
    parts = [
        f"{found[name]['sides']['krypton']['seconds']:.1f} s instead of "
        f"{found[name]['sides']['captum']['seconds']:.0f} for {title}"
        for name, title in names.items()
    ]
    (windows,) = {result["windows"] for result in found.values()}
    return f"A map of {windows} windows on two CPU cores: {', '.join(parts)}."


def gain(name: str = "vgg16", title: str = "VGG16") -> str:
    """What one gains, in a line."""
    (usual,), (large,) = (
        [result for result in comparisons(large=large) if result["model"] == name]
        for large in (False, True)
    )
    return (
        f"**Captum's occlusion maps, equal to the rounding, {usual['speedup']['over_captum']:.0f} "
        f"times sooner for {title}, and {large['speedup']['over_captum']:.0f} times at "
        f"{large['size']} pixels**: one class to replace, on two CPU cores."
    )


def speed_table(results: list[dict[str, Any]]) -> str:
    """The table of what `compare_with_captum.py` measured, one for each machine."""
    titles = {
        "network": "---",
        "times over Captum": "--:",
        "over fastest naive": "--:",
        "later maps, s": "--:",
        "first map, s": "--:",
        "Captum, s": "--:",
        "fastest naive, s": "--:",
        "times by operations": "--:",
        "side, px": "--:",
        "window/stride, px": "--:",
        "windows": "--:",
    }

    def cells(result: dict[str, Any]) -> list[str]:
        sides, ratio = result["sides"], result["speedup"]
        ours = sides["krypton"]
        naive = [
            side["seconds"]
            for name, side in sides.items()
            if name not in INCREMENTAL and "seconds" in side
        ]
        return [
            result["model"],
            f"{ratio['over_captum']:.1f}",
            f"{ratio['over_fastest_naive']:.1f}",
            f"{ours['seconds']:.1f}",
            f"{ours['first_seconds']:.1f}",
            f"{sides['captum']['seconds']:.1f}",
            f"{min(naive):.1f}",
            f"{ours['report']['theoretical_speedup']:.1f}",
            str(result["size"]),
            f"{result['window']}/{result['stride']}",
            str(result["windows"]),
        ]

    return tables_by_machine(titles, results, cells)


def detail_table(results: list[dict[str, Any]]) -> str:
    """Memory, accuracy and prediction of the same comparisons."""
    titles = {
        "network": "---",
        "window/stride, px": "--:",
        "batch": "--:",
        "peak, MiB": "--:",
        "Captum's peak, MiB": "--:",
        "peak over Captum's": "--:",
        "rise, MiB": "--:",
        "Captum's rise, MiB": "--:",
        "rise over Captum's": "--:",
        "naive error": "--:",
        "our error": "--:",
        "our error over naive": "--:",
        "predicted, s": "--:",
        "measured, s": "--:",
        "set-up, s": "--:",
    }

    def cells(result: dict[str, Any]) -> list[str]:
        ours, equality = result["sides"]["krypton"], result["equality"]
        report = ours["report"]
        peak, captum = ours["memory_peak_mib"], ours["captum_memory_peak_mib"]
        rise = peak - ours["memory_before_mib"]
        captum_rise = captum - result["sides"]["captum"]["memory_before_mib"]
        naive, own = equality["naive_rms"], equality["krypton_rms"]
        return [
            result["model"],
            f"{result['window']}/{result['stride']}",
            str(min(report["batch_size"], result["windows"])),
            f"{peak:.0f}",
            f"{captum:.0f}",
            f"{peak / captum:.2f}",
            f"{rise:.0f}",
            f"{captum_rise:.0f}",
            f"{rise / captum_rise:.2f}",
            f"{naive:.1e}",
            f"{own:.1e}",
            f"{own / naive:.1f}",
            f"{report['predicted_seconds']:.1f}",
            f"{ours['seconds']:.1f}",
            f"{ours.get('capture_seconds', ours['first_seconds']) - ours['seconds']:.1f}",
        ]

    return markdown_table(titles, [cells(result) for result in results]) if results else NOTHING


def profiles() -> list[dict[str, Any]]:
    """The committed results of `benchmark.py --profile`, by network."""
    return [json.loads(file.read_text()) for file in sorted((DATA / "profiles").glob("*.json"))]


def profile_table(results: list[dict[str, Any]]) -> str:
    """Where the time of maps goes, by algorithm, beside the machine's peak.

    A share of the peak is the rate of an algorithm's multiply-accumulates, as a direct convolution
    counts them, over that of a large matrix product: Winograd's can be above 100 %. The limit is
    the time of all of them at the peak.
    """
    titles = {
        "network": "---",
        "window/stride": "--:",
        "map, s": "--:",
        "predicted, s": "--:",
        "limit, s": "--:",
        "Winograd": "--:",
        "direct": "--:",
        "depthwise": "--:",
        "pooling": "--:",
        "joining": "--:",
        "linear": "--:",
        "other operators": "--:",
    }

    def cells(result: dict[str, Any]) -> list[str]:
        rows = [row for row in result["operators"] if row["kind"] != "shared"]
        total = sum(row["macs_incremental"] for row in rows) * result["windows"]

        def share(kind: str) -> str:
            found = [row for row in rows if _kind(row) == kind]
            seconds = sum(row["measured"] for row in found)
            macs = sum(row["macs_incremental"] for row in found) * result["windows"]
            if not seconds:
                return ""
            time = f"{seconds / result['seconds']:.0%}"
            return f"{time} at {macs / seconds / result['peak']:.0%}" if macs else time

        return [
            result["model"],
            f"{result['window']}/{result['stride']}",
            f"{result['seconds']:.2f}",
            f"{result['predicted_seconds']:.2f}",
            f"{total / result['peak']:.2f}",
            *(share(kind) for kind in list(titles)[5:]),
        ]

    return markdown_table(titles, [cells(result) for result in results]) if results else NOTHING


def _kind(row: dict[str, Any]) -> str:
    if row["algorithm"] != "torch":
        return str(row["algorithm"])
    return "linear" if row["macs_full"] else "other operators"


def accuracies() -> list[dict[str, Any]]:
    """What `benchmark.py --accuracy` measured."""
    return [json.loads(file.read_text()) for file in sorted((DATA / "accuracy").glob("*.json"))]


def accuracy_table(results: list[dict[str, Any]]) -> str:
    """Rounding errors of plain forward passes and of maps, and the maps' over the passes'."""
    titles = {
        "network": "---",
        "contiguous": "--:",
        "channels last": "--:",
        "captum-krypton": "--:",
        "without Winograd": "--:",
        "ours over contiguous": "--:",
        "ours over channels last": "--:",
        "without Winograd over contiguous": "--:",
        "without Winograd over channels last": "--:",
    }

    def cells(result: dict[str, Any]) -> list[str]:
        rms = result["rms"]
        plain = [rms["contiguous"], rms["channels last"]]
        ours = [rms["captum-krypton"], rms["without Winograd"]]
        ratios = [f"{own / other:.2f}" for own in ours for other in plain]
        return [result["model"], *(f"{error:.1e}" for error in (*plain, *ours)), *ratios]

    return markdown_table(titles, [cells(result) for result in results]) if results else NOTHING
