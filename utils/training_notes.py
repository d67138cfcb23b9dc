"""What should be known about a data set before a long training: told once, in the log."""

from itertools import islice

from utils.dataset import Dataset
from utils.image_files import inspect_image
from utils.images import share_lost
from utils.lazy_records import texts
from utils.run_folder import get_logger
from utils.text_encoding import MAX_CAPTION_CHUNKS, max_tokens, token_lengths
from utils.training_state import Plan

MEMORISED_VIEWS = 200  # the first release's 1,230 views of each scan were a hazard
SIZED_IMAGES = 100  # looked at to tell what a crop drops
LISTED_CAPTIONS = 5
CAPTION_BATCH_SIZE = 1024  # tokenised at once, so that memory does not grow with the data

_logger = get_logger("train")


def tell_crop(dataset: Dataset, resize_mode: str) -> float:
    """Tell the mean share of the longer side that is cut off, in [0, 1), and return it."""
    sizes = [inspect_image(record.image_source) for record in dataset.records[:SIZED_IMAGES]]
    lost = [share_lost(size.width, size.height, resize_mode) for size in sizes]
    mean = sum(lost) / len(lost)
    if mean > 0:
        wide = sum(size.width > size.height for size in sizes) * 2 >= len(sizes)
        _logger.info(
            "%s drops %.0f %% of the %s of the images (at most %.0f %%); --resize_mode pad keeps "
            "all of it",
            *(resize_mode, 100 * mean, "width" if wide else "height", 100 * max(lost)),
        )
    return mean


def tell_long_captions(dataset: Dataset, tokenizer, num_chunks: int = 1) -> int:
    """Tell which captions are cut for having too many tokens, and return their number."""
    limit = max_tokens(tokenizer, num_chunks)
    captions, long, done = texts(dataset.records), [], 0
    while batch := list(islice(captions, CAPTION_BATCH_SIZE)):
        lengths = token_lengths(tokenizer, batch)
        long += [done + place for place, length in enumerate(lengths) if length > limit]
        done += len(batch)
    if long:
        first = ", ".join(dataset[index].where for index in long[:LISTED_CAPTIONS])
        more = ", ..." if len(long) > LISTED_CAPTIONS else ""
        _logger.warning(
            "%d of %d captions have more than the %d tokens that are read, and are cut: %s%s",
            *(len(long), len(dataset), limit, first, more),
        )
        if num_chunks == 1:
            most = max_tokens(tokenizer, MAX_CAPTION_CHUNKS)
            _logger.info("--long_captions chunk reads up to %d tokens", most)
    return len(long)


def warn_of_memorisation(
    plan: Plan, num_images: int, *, num_rehearsed: int = 0, share: float = 0.0
) -> None:
    """Warn if an image will be seen more than `MEMORISED_VIEWS` times, with the figure.

    Args:
        plan: Of the run.
        num_images: Images, or pairs, that it learns from.
        num_rehearsed: Images that are rehearsed.
        share: Of the samples that are rehearsed.
    """
    samples = plan.position(plan.last_step)
    for name, count, part in (("", num_images, 1 - share), ("rehearsed ", num_rehearsed, share)):
        views = samples * part / count if count else 0
        if views > MEMORISED_VIEWS:
            _logger.warning(
                "each %simage will be seen %.0f times (%d of %d samples, of %d images); beyond %d "
                "the model may memorise patients: make fewer steps, or audit for copies",
                *(name, views, samples * part, samples, count, MEMORISED_VIEWS),
            )
