"""The tables of the README and the documentation, from the measurements in docs/data.

    python examples/benchmarks/_tables.py           # writes README.md's table anew
    python examples/benchmarks/_tables.py --check   # exit status 1 if it is out of date

Standard library only: the documentation is built with it.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "docs" / "data"
# The README's table lies between these two lines.
BEGIN, END = (
    "<!-- speed table: python examples/benchmarks/_tables.py -->",
    "<!-- end of speed table -->",
)

# Maps are equal where they differ by less than this share of the largest attribution, or by no
# more than a few times what float32 itself is off, against float64, in a plain forward pass.
TOLERANCE, ROUNDING = 1e-4, 8
INCREMENTAL = ("krypton", "launched", "fused", "reference")  # sides of ours, which make whole maps
_NOTHING = "*No measurement is committed yet.*"


def verdict(row: dict[str, Any]) -> str:
    """What a network's row says: `equal`, or what is wrong with it."""
    if "error" in row:
        return "failed"
    if row["path"] != "incremental":
        return f"ran {row['path']}"
    allowed = max(TOLERANCE * row["largest_attribution"], ROUNDING * row["outcomes"]["naive_error"])
    equal = row["largest_attribution"] > 0 and row["difference"] <= allowed
    return "equal" if equal else "differs"


def over_captum(row: dict[str, Any]) -> float:
    """A network's speed-up over Captum, later maps."""
    timed = row["timed"]
    ratio: float = timed["captum_seconds"] / timed["seconds"]
    return ratio


def machine_line(*results: dict[str, Any]) -> str:
    """The machines of some measurements, in words, and from when to when they were made."""
    dates: dict[str, list[str]] = {}
    for result in results:
        dates.setdefault(_machine(result), []).append(result["machine"]["date"])
    return " and ".join(
        f"{machine}; {' to '.join(sorted({min(days), max(days)}))}"
        for machine, days in dates.items()
    )


def _machine(result: dict[str, Any]) -> str:
    where = result["machine"]
    found = {n: v for n, v in where["versions"].items() if v != "not installed"}
    versions = ", ".join(f"{name} {version}" for name, version in found.items())
    return (
        f"{where['gpu'] or where['processor']} ({where['vector instructions']}), "
        f"{where['threads']} CPU threads, {where['system']}, Python {where['python']}, "
        f"{versions}"
    )


def network_table(result: dict[str, Any]) -> str:
    """The table that `network_table.py` measured."""
    titles = {
        "network": "---",
        "operators (global)": "--:",
        "side": "--:",
        "relative difference": "--:",
        "verdict": "---",
        "timed side": "--:",
        "windows": "--:",
        "Captum, s": "--:",
        "first map, s": "--:",
        "later maps, s": "--:",
        "speed-up": "--:",
        "by operations": "--:",
    }

    def cells(row: dict[str, Any]) -> list[str]:
        side = str(row["size"])
        if "error" in row:
            error = row["error"].strip().splitlines()[-1].replace("|", "\\|")
            return [row["name"], "", side, "", f"failed: {error}", *[""] * 7]
        timed = row["timed"]
        return [
            row["name"],
            f"{row['operators']} ({row['global_operators']})",
            side,
            f"{row['difference'] / (row['largest_attribution'] or 1):.1e}",
            verdict(row),
            str(timed["size"]),
            str(timed["windows"]),
            f"{timed['captum_seconds']:.1f}",
            f"{timed['first_seconds']:.1f}",
            f"{timed['seconds']:.1f}",
            f"{over_captum(row):.2f}",
            f"{timed['theoretical_speedup']:.2f}",
        ]

    return markdown_table(titles, [cells(row) for row in result["networks"]])


def speed_table(results: list[dict[str, Any]]) -> str:
    """The table of what `compare_with_captum.py` measured, one for each machine."""
    titles = {
        "network": "---",
        "side": "--:",
        "window/stride": "--:",
        "windows": "--:",
        "Captum, s": "--:",
        "fastest naive, s": "--:",
        "first map, s": "--:",
        "later maps, s": "--:",
        "speed-up over Captum": "--:",
        "over the fastest naive": "--:",
        "by operations": "--:",
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
            str(result["size"]),
            f"{result['window']}/{result['stride']}",
            str(result["windows"]),
            f"{sides['captum']['seconds']:.1f}",
            f"{min(naive):.1f}",
            f"{ours['first_seconds']:.1f}",
            f"{ours['seconds']:.1f}",
            f"{ratio['over_captum']:.1f}",
            f"{ratio['over_fastest_naive']:.1f}",
            f"{ours['report']['theoretical_speedup']:.1f}",
        ]

    machines: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        machines.setdefault(_machine(result), []).append(result)
    parts = [
        f"{markdown_table(titles, [cells(result) for result in group])}\n\n"
        f"Measured on: {machine_line(*group)}."
        for group in machines.values()
    ]
    return "\n\n".join(parts) if parts else _NOTHING


def detail_table(results: list[dict[str, Any]]) -> str:
    """Memory, accuracy and prediction of the same comparisons."""
    titles = {
        "network": "---",
        "window/stride": "--:",
        "batch": "--:",
        "peak, MiB": "--:",
        "Captum's, MiB": "--:",
        "share": "--:",
        "rise, MiB": "--:",
        "Captum's, MiB ": "--:",
        "share ": "--:",
        "naive error": "--:",
        "our error": "--:",
        "ratio": "--:",
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

    return markdown_table(titles, [cells(result) for result in results]) if results else _NOTHING


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

    return markdown_table(titles, [cells(result) for result in results]) if results else _NOTHING


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
        "over contiguous": "--:",
        "over channels last": "--:",
        "without, over contiguous": "--:",
        "over channels last ": "--:",
    }

    def cells(result: dict[str, Any]) -> list[str]:
        rms = result["rms"]
        plain = [rms["contiguous"], rms["channels last"]]
        ours = [rms["captum-krypton"], rms["without Winograd"]]
        ratios = [f"{own / other:.2f}" for own in ours for other in plain]
        return [result["model"], *(f"{error:.1e}" for error in (*plain, *ours)), *ratios]

    return markdown_table(titles, [cells(result) for result in results]) if results else _NOTHING


def _kind(row: dict[str, Any]) -> str:
    if row["algorithm"] != "torch":
        return str(row["algorithm"])
    return "linear" if row["macs_full"] else "other operators"


def gpu() -> dict[str, Any]:
    """What `gpu_check.py` measured."""
    found: dict[str, Any] = json.loads((DATA / "gpu.json").read_text())
    return found


def gpu_speed_table(result: dict[str, Any]) -> str:
    """Maps on a GPU: milliseconds, and Captum's over ours."""
    titles = {
        "network": "---",
        "windows": "--:",
        "Captum, default": "--:",
        "best batch": "--:",
        "plain torch": "--:",
        "no graphs": "--:",
        "exact": "--:",
        "first map": "--:",
        "over default": "--:",
        "over best": "--:",
    }

    def cells(compared: dict[str, Any]) -> list[str]:
        sides, ratio = compared["sides"], compared["speedup"]

        def milliseconds(name: str) -> str:
            side = sides.get(name, {})
            return f"{1e3 * side['seconds']:.0f}" if "seconds" in side else "failed"

        return [
            compared["model"],
            str(compared["windows"]),
            milliseconds("captum_default"),
            f"{milliseconds('captum')} ({sides['captum']['batch']})",
            milliseconds("reference"),
            milliseconds("launched"),
            milliseconds("krypton"),
            f"{1e3 * sides['krypton']['first_seconds']:.0f}",
            f"{ratio['over_captum_default']:.0f}",
            f"{ratio['over_captum']:.1f}",
        ]

    return markdown_table(titles, [cells(compared) for compared in result["networks"]])


def gpu_line(result: dict[str, Any]) -> str:
    """The same in a sentence."""
    titles = {"vgg16": "VGG16", "resnet18": "ResNet18", "inception_v3": "Inception v3"}
    parts = []
    for compared in result["networks"]:
        sides = compared["sides"]
        ours, best, default = (
            f"{1e3 * sides[name]['seconds']:.0f}"
            for name in ("krypton", "captum", "captum_default")
        )
        name = titles.get(compared["model"], compared["model"])
        parts.append(f"{name} {ours} ms instead of {best} (by default {default})")
    where, first = result["machine"], result["networks"][0]
    return (
        f"Later maps on a GPU ({where['gpu']}), windows of {first['window']}, stride "
        f"{first['stride']}: {', '.join(parts)}. `docs/guides/gpus.md` says more."
    )


def gpu_few_table(result: dict[str, Any]) -> str:
    """Maps of few windows on a GPU, in milliseconds."""
    titles = {"network": "---", "windows": "--:", "Captum": "--:", "ours": "--:", "path": "---"}
    rows = [
        [
            row["model"],
            str(row["windows"]),
            f"{1e3 * row['captum']:.1f}",
            f"{1e3 * row['krypton']:.1f}",
            row["path"],
        ]
        for row in result["few_windows"]
    ]
    return markdown_table(titles, rows)


def gpu_bandwidth_table(result: dict[str, Any]) -> str:
    """The gather beside a device copy of its output: GB written a second."""
    titles = {"blocks": "---", "channels": "---", "type": "---"}
    titles |= {"gather": "--:", "copy": "--:", "share": "--:"}
    rows = [
        [
            " x ".join(map(str, row["output"])),
            "last" if row["channels_last"] else "first",
            row["dtype"],
            f"{row['gather_gb_per_s']:.0f}",
            f"{row['copy_gb_per_s']:.0f}",
            f"{row['share']:.2f}",
        ]
        for row in result["bandwidth"]
    ]
    return markdown_table(titles, rows)


def gpu_profile_table(result: dict[str, Any]) -> str:
    """Which kernels the time of a later map goes to, in milliseconds."""
    titles = {"network": "---", "map": "--:", "kernels": "--:"}
    titles |= {name: "--:" for name in (*_GPU_KERNELS, "other kernels")}

    def cells(found: dict[str, Any]) -> list[str]:
        spent = dict.fromkeys((*_GPU_KERNELS, "other kernels"), 0.0)
        for kernel, seconds in found["kernels"].items():
            kinds = [k for k, parts in _GPU_KERNELS.items() if any(p in kernel for p in parts)]
            spent[kinds[0] if kinds else "other kernels"] += seconds
        total = sum(spent.values())
        columns = [f"{1e3 * seconds:.1f}" for seconds in spent.values()]
        return [found["model"], f"{1e3 * found['seconds']:.0f}", f"{1e3 * total:.1f}", *columns]

    return markdown_table(titles, [cells(found) for found in result["profiles"]])


_GPU_KERNELS = {
    # Products in TF32 are those of convolutions: linear layers have float32 unless one asks.
    "convolutions": ("fprop", "convolve", "tf32", "tensorop", "nchwToNhwc", "convertTensor"),
    "linear": ("gemm", "gemv"),
    "gather": ("gather_kernel",),
    "pooling": ("pool",),
    "bias and clamp": ("finish_kernel",),
    "joining": ("CatArray",),
}


def approximation_table(result: dict[str, Any]) -> str:
    """The table that `approximate_quality.py` measured: medians over the photographs."""
    titles = {
        "approximation": "---",
        "SSIM": "--:",
        "lowest": "--:",
        "estimated": "--:",
        "target met": "--:",
        "Spearman": "--:",
        "windows run": "--:",
        "of them exactly": "--:",
        "over exact": "--:",
        "over Captum": "--:",
    }
    ways: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        ways.setdefault(row["way"], []).append(row)

    def cells(name: str, rows: list[dict[str, Any]]) -> list[str]:
        def middle(key: str) -> float:
            return statistics.median(row[key] for row in rows)

        seconds = middle("seconds")
        target = quality_of(name)
        met = sum(row["ssim"] >= target for row in rows) if target else 0
        return [
            name,
            f"{middle('ssim'):.3f}",
            f"{min(row['ssim'] for row in rows):.3f}",
            f"{middle('estimated'):.3f}" if target else "",
            f"{met} of {len(rows)}" if target else "",
            f"{middle('spearman'):.3f}",
            f"{middle('windows'):.0%}",
            f"{middle('exact_windows'):.0%}",
            f"{statistics.median(row['exact_seconds'] / row['seconds'] for row in rows):.1f}",
            f"{result['captum']['seconds'] / seconds:.1f}",
        ]

    exact = statistics.median(row["exact_seconds"] for row in result["rows"])
    over = f"{result['captum']['seconds'] / exact:.1f}"
    rows = [["exact", "1", "1", "", "", "1", "100%", "100%", "1", over]]
    rows += [cells(name, found) for name, found in ways.items()]
    return markdown_table(titles, rows)


def approximation_page() -> str:
    """The table of docs/approximate.md, with what it was measured on."""
    result = json.loads((DATA / "approximate" / "lite0.json").read_text())
    photographs = len({row["photograph"] for row in result["rows"]})
    return (
        f"{approximation_table(result)}\n\n{result['network']}, {photographs} photographs, "
        f"{result['size']} pixels a side, windows of {result['window']}, stride "
        f"{result['stride']}: {result['windows']} windows. {machine_line(result)}"
    )


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


def approximations() -> list[dict[str, Any]]:
    """The committed results of `approximate_quality.py`, by network."""
    return [json.loads(file.read_text()) for file in sorted((DATA / "approximate").glob("*.json"))]


def estimate_table(results: list[dict[str, Any]]) -> str:
    """How near maps' own estimates of their SSIM are, by network and by all of them."""
    titles = {
        "network": "---",
        "maps": "--:",
        "target met": "--:",
        "SSIM minus estimate, median": "--:",
        "5th percentile": "--:",
        "lowest": "--:",
    }

    def cells(name: str, rows: list[dict[str, Any]]) -> list[str]:
        apart = sorted(row["ssim"] - row["estimated"] for row in rows)
        met = sum(row["ssim"] >= quality_of(row["way"]) for row in rows)
        return [
            name,
            str(len(rows)),
            f"{met} of {len(rows)}",
            f"{statistics.median(apart):+.3f}",
            f"{statistics.quantiles(apart, n=20, method='inclusive')[0]:+.3f}",
            f"{apart[0]:+.3f}",
        ]

    judged = {
        f"{result['network']}, stride {result['stride']}": [
            row for row in result["rows"] if quality_of(row["way"])
        ]
        for result in results
    }
    every = [row for rows in judged.values() for row in rows]
    rows = [cells(name, found) for name, found in judged.items()]
    for target in sorted({quality_of(row["way"]) for row in every}):
        of_it = [row for row in every if quality_of(row["way"]) == target]
        rows.append(cells(f"all, target {target:g}", of_it))
    return markdown_table(titles, [*rows, cells("all", every)])


def estimates_page() -> str:
    """The measured part of what docs/approximate.md says about estimates."""
    results = approximations()
    pairs = sum(len({row["photograph"] for row in result["rows"]}) for result in results)
    return (
        f"{estimate_table(results)}\n\n{pairs} pairs of network and photograph. "
        f"Measured on: {machine_line(*results)}"
    )


def approximation_speed_table(result: dict[str, Any]) -> str:
    """Speed-ups over Captum's fastest batch, by network and approximation."""
    titles = {
        "network": "---",
        "approximation": "---",
        "windows run": "--:",
        "seconds": "--:",
        "over exact": "--:",
        "over Captum": "--:",
    }
    rows = []
    for network in result["networks"]:
        exact, captum = network["rows"][0]["seconds"], network["captum"]["seconds"]
        rows += [
            [
                network["model"],
                row["way"],
                f"{row['windows']:.0%}",
                f"{row['seconds']:.2f}",
                f"{exact / row['seconds']:.1f}",
                f"{captum / row['seconds']:.1f}",
            ]
            for row in network["rows"]
        ]
    return markdown_table(titles, rows)


def approximation_speed_page() -> str:
    """The tables of `approximate_speed.py`, with what they were measured on."""
    results = [json.loads(f.read_text()) for f in sorted(DATA.glob("approximate_speed*.json"))]
    return "\n\n".join(
        f"{approximation_speed_table(result)}\n\nWindows of {result['window']}, stride "
        f"{result['stride']}. Measured on: {machine_line(result)}"
        for result in results
    )


def quality_of(way: str) -> float:
    """The target of a way of `approximate_quality.py`, 0 where it has none."""
    return float(way.split()[1].strip(",")) if way.startswith("quality") else 0.0


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


def profiles() -> list[dict[str, Any]]:
    """The committed results of `benchmark.py --profile`, by network."""
    return [json.loads(file.read_text()) for file in sorted((DATA / "profiles").glob("*.json"))]


def networks_page() -> str:
    """The measured part of the documentation's page on networks."""
    file = DATA / "networks.json"
    if not file.exists():
        return _NOTHING
    result = json.loads(file.read_text())
    rows = result["networks"]
    equal = sum(verdict(row) == "equal" for row in rows)
    slower = [row["name"] for row in rows if "timed" in row and over_captum(row) < 1]
    return (
        f"{equal} of {len(rows)} networks return Captum's map incrementally. "
        f"Slower than Captum: {', '.join(slower) or 'none'}.\n\n"
        f"{network_table(result)}\n\n"
        f"Windows of {result['window']} pixels, stride {result['stride']} where maps are compared "
        f"and {result['timed_stride']} where they are timed, "
        f"{result['weights']} weights. Measured on: {machine_line(result)}."
    )


def update_readme(text: str) -> str:
    """README.md with what was measured between its markers."""
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}\n\n{speed_table(comparisons())}\n\n{gpu_line(gpu())}\n\n{END}{tail}"


def markdown_table(titles: dict[str, str], rows: list[list[str]]) -> str:
    """Rows of cells under titles, each with its alignment in Markdown."""
    lines = [list(titles), list(titles.values()), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    """Write or check README.md's table."""
    readme = ROOT / "README.md"
    before = readme.read_text()
    after = update_readme(before)
    if "--check" in sys.argv[1:]:
        if before != after:
            print("README.md: its speed table differs from docs/data; run _tables.py")
        return int(before != after)
    readme.write_text(after)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
