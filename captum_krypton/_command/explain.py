"""`explain`: maps of one image, or of all in a folder."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .. import ArgumentError
from .explainer import Explainer, draw
from .failure import FINE, SOME_FAILED, CommandError, UsageError, say
from .files import write_bytes, writing
from .folder import MapFolder, opened
from .info import versions
from .inputs import Images, find
from .models import load_network
from .network import Network, Request
from .page import PageEntry, write_page
from .parser import Options
from .pictures import Picture, PictureError
from .summary import FAILED, Row, check_format, drops, row_of, table, words
from .weights import digest

__all__ = ["run"]

_BETWEEN_SUMMARIES = 30.0  # seconds


def run(options: Options) -> int:
    """Explain what is asked for.

    Returns:
        The exit code.

    Raises:
        CommandError: where nothing can be explained, or the output cannot be written.
    """
    images = find(options.images, options.place)
    folder = _goes_to_folder(options, images)
    check_format(options.summary)
    if options.place is not None and options.place.suffix.lower() != ".npz" and not options.plan:
        _check_plots()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with _spoken_warnings():
        network = load_network(_request(options))
        say(f"{options.model}, weights: {network.source}")
        if network.source == "random":
            say("the weights are random: so are the classes, and the maps show nothing learnt")
        explainer = _explainer(network, options)
        if options.plan:
            return _plan(explainer, next(iter(images.paths.values())))
        if folder is None:
            return _each(explainer, images, options)
        settings = _settings(options, network, explainer, images)
        made_by = versions(("captum-krypton", "torch"))
        with opened(folder, settings, made_by, options.overwrite) as maps:
            return _Run(explainer, images, maps, options).run()


def _check_plots() -> None:
    if find_spec("matplotlib") is None:
        raise CommandError("pictures need matplotlib: pip install 'captum-krypton[plot]'")


def _explainer(network: Network, options: Options) -> Explainer:
    try:
        return Explainer.of(network, options)
    except PictureError as error:  # the model's transform
        raise CommandError(str(error)) from error


def _plan(explainer: Explainer, path: Path) -> int:
    try:
        print(explainer.plan(path))
    except PictureError as error:
        raise CommandError(f"{path}: {error}") from error
    return FINE


def _goes_to_folder(options: Options, images: Images) -> Path | None:
    """The folder for the output; None for files of one image, or none.

    Raises:
        UsageError: where the options do not go together.
    """
    place = options.place
    if place is None:
        if options.html and not options.plan:
            raise UsageError("--html needs --output: the page lies beside it, or in it")
        return None
    kind = place.suffix.lower()
    if place.is_dir() or not kind or str(options.output).endswith("/"):
        return place
    if images.several:
        raise UsageError(f"--output {place}: a file is for one image; for several give a folder")
    if kind not in (".png", ".npz"):
        raise UsageError(f"--output {place}: expected a .png or .npz file, or a folder")
    (image,) = images.paths.values()
    if place.exists() and place.samefile(image):
        raise UsageError(f"--output {place}: that is the image itself")
    return None


def _request(options: Options) -> Request:
    return Request(
        options.model,
        options.weights,
        options.model_arguments,
        options.trust_pickle,
        options.size,
        options.mean,
        options.std,
        options.channels,
    )


def _settings(
    options: Options, network: Network, explainer: Explainer, images: Images
) -> dict[str, Any]:
    """What maps depend on."""
    pairs = {"window": options.window, "stride": options.stride}
    return {
        "images": str(images.base),
        "model": options.model,
        "model_arguments": {name: repr(v) for name, v in options.model_arguments.items()},
        "weights": digest(network.module),
        "preparation": f"{network.preparation.mode}, {network.preparation.text}",
        "outcome": explainer.outcomes.kind,
        "target": "predicted" if explainer.target is None else explainer.target,
        **{name: "x".join(map(str, pair)) if pair else "default" for name, pair in pairs.items()},
        "baseline": options.baseline,
        "quality": options.quality,
        "budget": options.budget,
    }


@contextmanager
def _spoken_warnings() -> Iterator[None]:
    """Warnings as lines for whoever watches, without the place in the code."""

    def speak(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        say(f"{category.__name__}: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = speak
        yield


def _each(explainer: Explainer, images: Images, options: Options) -> int:
    """Explain images whose maps are printed, or written into files beside each other."""
    failed = 0
    for name, path in images.paths.items():
        try:
            heat, picture = explainer.explain(path, options.progress)
        except PictureError as error:
            say(f"{name}: {error}")
            failed += 1
            continue
        row = row_of(name, heat, explainer.label(heat))
        print(words(row, _unit(options) or "outcome"))
        place = options.place
        if place is None:
            continue
        if place.suffix.lower() == ".npz":
            with writing(place):
                heat.save(place)
        else:
            write_bytes(place, draw(heat, picture, str(row.label), _unit(options)))
        print(f"  wrote {place}")
        if options.html:
            page = place.with_suffix(".html")
            with writing(page):
                write_page(page, [_entry(row, heat, picture)], f"Occlusion map of {name}")
            print(f"  wrote {page}")
    return SOME_FAILED if failed else FINE


def _unit(options: Options) -> str:
    """What an outcome is; empty where nobody knows."""
    return "" if options.outcome == "raw" else options.outcome


def _entry(row: Row, heat: Any, picture: Picture) -> PageEntry:
    return PageEntry(
        row.image,
        str(row.label),
        float(heat.reference.reshape(())),
        float(row.largest_drop or 0.0),
        heat.report.seconds,
        picture,
        drops(heat),
        heat.extent(),
        heat.report.estimated_ssim,
    )


@dataclass
class _Run:
    """All images into a folder: those that are left."""

    explainer: Explainer
    images: Images
    maps: MapFolder
    options: Options
    rows: dict[str, Row] = field(default_factory=dict)
    written: float = 0.0

    def run(self) -> int:
        """Explain them, and write what was found.

        Returns:
            The exit code.
        """
        left = self._left()
        try:
            self._explain(left)
        except KeyboardInterrupt:
            self._write_summary()
            say(f"{len(self.rows)} images are done; the same command does the others")
            raise
        self._write_summary()
        print(f"wrote {self.maps.summary_of(self.options.summary)}")
        if self.options.html:
            self._write_page()
            print(f"wrote {self.maps.page}")
        failed = sum(row.status == FAILED for row in self.rows.values())
        done = len(self.rows) - failed
        print(f"{done} maps in {self.maps.path}, {len(left) - failed} of them made now")
        if failed:
            say(f"{failed} of {len(self.rows)} images failed; the summary says why")
        return SOME_FAILED if failed else FINE

    def _left(self) -> dict[str, Path]:
        """The images without a map; the rows of those that have one are taken from it."""
        paths = self.images.paths
        for name in self.maps.names():
            source = paths.get(name)
            if source is not None and not self.maps.is_done(name, source):
                continue
            heat = self.maps.load(name)
            if heat is None:
                continue
            row = self.rows[name] = row_of(name, heat, self.explainer.label(heat))
            if source is not None and not self.maps.picture_of(name).exists():
                self._draw_again(row, heat, source)
        return {name: path for name, path in paths.items() if name not in self.rows}

    def _explain(self, left: dict[str, Path]) -> None:
        self.written = time.monotonic()
        total, known = len(self.images.paths), len(self.images.paths) - len(left)
        quiet = not self.options.progress
        with tqdm(total=total, initial=known, unit="image", disable=quiet) as bar:
            for name, path in left.items():
                self.rows[name] = self._row(name, path)
                bar.update()
                if time.monotonic() - self.written > _BETWEEN_SUMMARIES:
                    self._write_summary()

    def _row(self, name: str, path: Path) -> Row:
        """One image, explained and written; or why it failed."""
        try:
            heat, picture = self.explainer.explain(path, False)
        except (CommandError, ArgumentError, ImportError):  # the same for every image
            raise
        except Exception as error:  # whatever is wrong with one image, the others are explained
            known = isinstance(error, PictureError)
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            say(f"{name}: {reason}")
            return Row(name, FAILED, reason)
        row = row_of(name, heat, self.explainer.label(heat))
        self.maps.keep(name, heat)
        self._draw(row, heat, picture)
        return row

    def _draw_again(self, row: Row, heat: Any, source: Path) -> None:
        try:
            self._draw(row, heat, self.explainer.picture_of(source))
        except PictureError as error:
            say(f"{row.image}: has a map, and no picture can be drawn: {error}")

    def _draw(self, row: Row, heat: Any, picture: Picture) -> None:
        write_bytes(
            self.maps.picture_of(row.image),
            draw(heat, picture, str(row.label), _unit(self.options)),
        )

    def _write_summary(self) -> None:
        rows = [self.rows[name] for name in sorted(self.rows)]
        kind = self.options.summary
        write_bytes(self.maps.summary_of(kind), table(rows, kind))
        self.written = time.monotonic()

    def _write_page(self) -> None:
        """The page of all maps, from their files and the images."""
        entries = []
        for name, row in sorted(self.rows.items()):
            heat = self.maps.load(name) if row.status != FAILED else None
            if heat is None:
                continue
            source = self.images.paths.get(name, self.images.base / name)
            try:
                picture = self.explainer.picture_of(source)
            except PictureError as error:
                say(f"{name}: not on the page: {error}")
                continue
            entries.append(_entry(row, heat, picture))
        with writing(self.maps.page):
            write_page(self.maps.page, entries, f"Occlusion maps of {self.images.base.name}")
