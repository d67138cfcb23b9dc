"""An import by layout from start to end; one that was killed goes on with the same command.

Everything is made in ``OUTPUT_DIR.partial``: the dataset folder, the journal, the index of the
tables. At the end the folder is renamed to its place and the rest is deleted.
"""

import argparse
import errno
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tqdm import tqdm

from utils.cli import UserError
from utils.dataset_records import Problem, describe_problems
from utils.importers import publishing, verdict
from utils.importers.image_transfer import Manner, transfer
from utils.importers.journal import Done, Journal
from utils.importers.layout import Layout, LayoutOptions
from utils.importers.layout_names import LAYOUT_FLAGS
from utils.importers.layouts import find_layout
from utils.importers.listing import Listing, RowRules
from utils.importers.source_image import SourceImage
from utils.importers.table_index import TableIndex
from utils.pseudonyms import Pseudonyms
from utils.resumable_run import only_writer, open_run
from utils.run_folder import get_logger, write_json
from utils.volumes import state_of
from utils.workers import iterate_in_processes

# Flags that change nothing of the result, or only what is told at the end.
FREE_FLAGS = ("num_workers", "offline", "skip_invalid", "overwrite", "output_dir")
_COMMIT_ROWS = 128  # images that a killed import does again at most, beside those in work
_VOLUME_CHUNK = 64  # frames that one process takes at once, so that it reads a volume once

_logger = get_logger("import")


def partial_dir(output_dir: Path) -> Path:
    """Where an import is made before it is complete."""
    place = output_dir.resolve()
    return place.with_name(f"{place.name}.partial")


def import_layout(args: argparse.Namespace) -> dict:
    """Import a source that lies as one of the layouts says; returns the result.

    Args:
        args: The parsed flags of ``import``.

    Raises:
        UserError: If parts of the source are missing; with all problems at once otherwise.
    """
    layout, source = find_layout(args.layout), Path(args.source).expanduser()
    missing = layout.missing(source, _layout_options(args, None))
    if missing:
        lines = [f"--source {source} is not laid out as {layout.name}:"]
        lines += [f"  {part}" for part in missing]
        lines += ["Expected is:", layout.tree.strip("\n")]
        raise UserError("\n".join(lines))
    folder = _made_partial_dir(args.output_dir)
    with only_writer(folder), _kept_on_stop(folder):
        flags = {name: value for name, value in vars(args).items() if not callable(value)}
        open_run(
            folder,
            argparse.Namespace(**flags),
            # The second is in no finished folder's options, so that none is taken for a partial.
            identity={"layout": layout.name, "partial_of": args.output_dir.resolve().name},
            free_flags=FREE_FLAGS,
            outputs=publishing.OUTPUTS,
            anew=args.overwrite,
        )
        folder.chmod(0o700)  # the journal names patients
        if not (folder / publishing.RESULT_NAME).exists():
            _Import(args, layout, source, folder).make()
        return publishing.put_in_place(folder, args.output_dir)


def _made_partial_dir(output_dir: Path) -> Path:
    """The folder of `partial_dir`, there from now on.

    Raises:
        UserError: If it cannot be made, or could not take its place at the end.
    """
    place, folder = output_dir.resolve(), partial_dir(output_dir)
    if place.is_mount():
        raise UserError(
            f"--output_dir {output_dir}: a mount point, which no folder can replace; name a folder "
            f"inside it, e.g. {output_dir / 'dataset'}"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output_dir {output_dir}: {folder.name} beside it, where the import is made, cannot "
            f"be a folder ({error.strerror}); name another --output_dir"
        ) from error
    return folder


@contextmanager
def _kept_on_stop(folder: Path) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, OSError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or isinstance(error, KeyboardInterrupt):
            _logger.info("what is done stays in %s; the same command goes on", folder)
        raise


def _layout_options(args: argparse.Namespace, pseudonyms: Pseudonyms | None) -> LayoutOptions:
    names = ("views", "report_sections", "central_n", "around", "reports", "reports_key")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if "report_sections" in given:
        given["report_sections"] = tuple(given["report_sections"])
    return LayoutOptions(**given, pseudonyms=pseudonyms)


class _Import:
    """One import, between the checked flags and the finished folder beside its place."""

    def __init__(
        self, args: argparse.Namespace, layout: Layout, source: Path, folder: Path
    ) -> None:
        self._args, self._layout, self._source = args, layout, source
        self._folder, self._dataset = folder, folder / publishing.DATASET_NAME
        self._is_private = "pseudonym_key" in LAYOUT_FLAGS[args.layout]

    def make(self) -> None:
        self._dataset.mkdir(exist_ok=True)
        with Journal(self._folder / publishing.JOURNAL_NAME) as journal:
            start = time.monotonic()
            try:
                self._list(journal)
            except UserError:
                if not journal.count("results"):  # nothing would be lost, and the flags may change
                    publishing.discard(self._folder)
                raise
            listed = time.monotonic()
            self._transfer(journal)
            seconds = {"tables": listed - start, "images": time.monotonic() - listed}
            verdict.judge(journal)
            self._answer_problems(journal)
            result = publishing.write_tables(
                journal, self._dataset, self._args, self._layout, is_private=self._is_private
            )
            result["seconds"] = {name: round(value, 3) for name, value in seconds.items()}
            write_json(self._folder / publishing.RESULT_NAME, result)

    def _list(self, journal: Journal) -> None:
        args = self._args
        rules = RowRules(
            as_png=args.image_format == "png",
            keep_all=args.link or args.image_format == "keep",
            caption=args.caption,
            patient_pattern=args.patient_pattern,
            source_name=args.source_name,
            modality=args.modality,
        )
        listing = Listing(journal, self._layout, rules)
        options = _layout_options(args, self._pseudonyms(journal))
        scratch = self._folder / publishing.INDEX_NAME
        with TableIndex(scratch) as index, journal.transaction():
            told = _with_broken_rows(self._layout.images(self._source, options, index), index)
            for number, item in enumerate(tqdm(told, "reading tables", unit="img", mininterval=1)):
                listing.add(number, item)
        scratch.unlink()
        if not journal.count("images") and not journal.count("problems"):
            raise UserError(f"--source {self._source}: {self._layout.name} finds no image in it")

    def _pseudonyms(self, journal: Journal) -> Pseudonyms | None:
        if not self._is_private:
            return None
        path = self._args.pseudonym_key
        key = os.urandom(32) if path is None else path.read_bytes()
        pseudonyms = Pseudonyms(key)
        kept = journal.setting("pseudonym_key", key)
        if path is None:
            return Pseudonyms(kept)
        if kept != key:
            raise UserError(f"--pseudonym_key {path}: not the key this import was started with")
        return pseudonyms

    def _transfer(self, journal: Journal) -> None:
        journal.forget(self._changed(journal))
        pending, problems = journal.num_pending(), verdict.count_problems(journal)
        num_there = journal.count("images") - pending
        if num_there:
            _logger.info("%d images are there already, %d are to come", num_there, pending)
        if problems and not self._args.skip_invalid:
            first = verdict.first_problems(journal)[0]
            _logger.warning(
                "%d problems already, and the import will end with them (first: %s); "
                "--skip_invalid drops such rows",
                *(problems.total(), first),
            )
        manner = Manner(
            str(self._dataset),
            as_png=self._args.image_format == "png",
            link=self._args.link,
            window=self._args.window and tuple(self._args.window),
            max_side=self._args.max_side,
        )
        results = iterate_in_processes(
            partial(transfer, manner=manner),
            journal.pending(),
            total=pending,
            description="writing images",
            num_workers=self._args.num_workers,
            chunk_size=_VOLUME_CHUNK if journal.count("images WHERE frame IS NOT NULL") else 16,
        )
        _commit_in_steps(journal, results)

    def _changed(self, journal: Journal) -> Iterator[str]:
        """Names of images whose source has changed since, or whose file is not what it was."""
        for done in journal.results():
            target = self._dataset / done.name
            try:
                sizes = (*state_of(done.path), target.stat().st_size)
            except OSError:
                sizes = None
            if sizes != (done.size, done.mtime_ns, done.target_size):
                yield done.name

    def _answer_problems(self, journal: Journal) -> None:
        kinds = verdict.count_problems(journal)
        if not kinds:
            return
        num_sound = journal.num_sound()
        if self._args.skip_invalid and num_sound:
            first = verdict.first_problems(journal)[0]
            count = verdict.count_skipped(journal)
            _logger.warning("%s: %d rows dropped, first: %s", self._source, count, first)
            return
        text = describe_problems(self._source, verdict.first_problems(journal), kinds)
        if not num_sound:
            text += "\nNothing is left after dropping these."
        raise UserError(f"{text}\nWhat is done stays in {self._folder}; the command goes on there.")


def _with_broken_rows(
    told: Iterable[SourceImage | Problem], index: TableIndex
) -> Iterator[SourceImage | Problem]:
    """What a layout tells, and the rows of its tables that it was not given."""
    for item in told:
        yield from index.take_problems()
        yield item
    yield from index.take_problems()


def _commit_in_steps(journal: Journal, results: Iterable[Done]) -> None:
    """Keep results while they come, and what there is when something stops them."""
    waiting: list[Done] = []
    try:
        for result in results:
            waiting.append(result)
            if len(waiting) >= _COMMIT_ROWS:
                journal.add_results(waiting)
                waiting = []
    finally:
        journal.add_results(waiting)
