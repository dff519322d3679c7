"""How a map was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from .display import field_table, short_repr

__all__ = ["ImageReport", "Report"]


@dataclass(frozen=True)
class ImageReport:
    """How the map of one image of a batch was made.

    Attributes:
        seconds: its share of the wall-clock time. Images whose windows run in the same batches have
            equal shares; so has what is done for all of them, such as the set-up.
        windows_evaluated: of its windows, those that were run, and those that need not be.
        windows_exact: windows that were run without a threshold.
        estimated_ssim: the structural similarity to the exact map that its map is expected to have;
            1 where all of it is exact, None where nothing was estimated.
    """

    seconds: float = 0.0
    windows_evaluated: int = 0
    windows_exact: int = 0
    estimated_ssim: float | None = None


@dataclass(frozen=True, repr=False)
class Report:
    """How a map was made.

    Attributes:
        path: "incremental" (only what a window can reach was computed again), "full" (whole
            volumes in the captured graph, where a plan with patches would have cost more),
            "naive" (the forward function for every window: a model's first ones, too few for a
            graph to pay, or all where maps by the plan were seen to take longer) or "captum" (a
            fall-back, for the reasons given).
        reasons: why the path is not "incremental".
        windows: windows of the map, an input's images not counted.
        groups: groups of windows of equal geometry.
        batches: batches run.
        batch_size: the most rows in a batch at the end.
        seconds: wall-clock time in all.
        setup_seconds: the part of it spent on capture, planning and the first use's check.
        theoretical_speedup: multiply-accumulates saved over the map (Eq. 17), those of windows that
            were not run among them; 1 where none are.
        checked_windows: windows also run through the forward function itself (first use only).
        largest_check_error: the largest difference seen there, in units of the outcome.
        backend: the gather kernel in use, "cpp", "cuda" or "reference".
        predicted_seconds: what base and windows of all images were expected to take.
        threshold: the projective field threshold tau (Section 4.2); 1 where no change was cropped.
        windows_evaluated: windows that were run, over all images, and those that need not be (see
            `windows_unreached`); the others were interpolated.
        windows_exact: windows that were run without a threshold.
        estimated_ssim: the structural similarity to the exact map that the map of each image is
            expected to have at least; 1 where all are exact, None where nothing was estimated.
        batches_replayed: batches that were replayed from a CUDA graph.
        windows_unreached: windows that cannot reach what the outcome reads (a far pixel, say): none
            of them is run, and their outcome is the untouched one.
        images: the same for each image of the batch.
    """

    path: str
    reasons: tuple[str, ...] = ()
    windows: int = 0
    groups: int = 0
    batches: int = 0
    batch_size: int = 0
    seconds: float = 0.0
    setup_seconds: float = 0.0
    theoretical_speedup: float = 1.0
    checked_windows: int = 0
    largest_check_error: float = 0.0
    backend: str = ""
    predicted_seconds: float = 0.0
    threshold: float = 1.0
    windows_evaluated: int = 0
    windows_exact: int = 0
    estimated_ssim: float | None = None
    batches_replayed: int = 0
    windows_unreached: int = 0
    images: tuple[ImageReport, ...] = ()

    def __repr__(self) -> str:
        return short_repr(self)

    def _repr_html_(self) -> str:
        return field_table(self, without=("images",))

    def to_dict(self) -> dict[str, Any]:
        """The report as `json.dumps` takes it; tuples are lists."""
        made = asdict(self)
        made["reasons"] = list(self.reasons)
        made["images"] = list(made["images"])
        return made

    @classmethod
    def from_dict(cls, made: Mapping[str, Any]) -> Report:
        """The report that `to_dict` made; what this release does not know is left out.

        Raises:
            TypeError: where the path is missing.
        """
        known = _known(cls, made)
        known["reasons"] = tuple(known.get("reasons", ()))
        images = known.get("images", ())
        known["images"] = tuple(ImageReport(**_known(ImageReport, image)) for image in images)
        return cls(**known)

    def shared(self, images: int) -> Report:
        """With a report for each of so many images: what is not of one image is of all alike."""
        if images == 0:
            return self
        alike = ImageReport(
            0.0, self.windows_evaluated // images, self.windows_exact // images, self.estimated_ssim
        )
        own = self.images or (alike,) * images
        share = (self.seconds - sum(image.seconds for image in own)) / images
        return replace(
            self, images=tuple(replace(image, seconds=image.seconds + share) for image in own)
        )


def _known(cls: Any, made: Mapping[str, Any]) -> dict[str, Any]:
    """What of a mapping is a field of a class."""
    return {field.name: made[field.name] for field in fields(cls) if field.name in made}
