"""From the flags of ``train_text_to_image.py`` to the samples it trains on."""

import argparse
from dataclasses import dataclass

from utils.diffusion import PipelineParts
from utils.frequency_samples import FrequencySet
from utils.latent_cache import encode_once, is_cacheable
from utils.latent_cache_flags import latent_cache_dir
from utils.preference_pairs import WEIGHT_COLUMN
from utils.preference_samples import MixedSet, PairSet, trained_samples
from utils.rehearsal import RehearsalSet, RehearsedSet
from utils.sample_weights import read_weights
from utils.sampling import vae_factor
from utils.text_encoding import settle_num_caption_chunks
from utils.training_data import SampleOptions, TrainingSet, make_training_set, possible_captions
from utils.training_datasets import TrainingDatasets
from utils.training_notes import tell_long_captions
from utils.weight_flags import AS_FREQUENCY
from utils.workers import cores_per_process

MAX_READERS = 8  # of images; more wait for the disk
MAX_CACHE_READERS = 2  # a sample takes 0.3 ms, most of it the noise


@dataclass(frozen=True)
class TrainingSamples:
    """Samples of each of `utils.training_datasets.TrainingDatasets`; None where there is none."""

    images: TrainingSet | None
    held_out: TrainingSet | None
    pairs: PairSet | None
    rehearsal: RehearsalSet | None
    rehearsal_held_out: TrainingSet | None

    def trained(self, share: float) -> TrainingSet | RehearsedSet | MixedSet:
        """What is trained on, all together.

        Args:
            share: Of the images' samples that are rehearsed.
        """
        images = self.images
        if self.rehearsal is not None:
            images = RehearsedSet(images, self.rehearsal, share)
        return trained_samples(images, self.pairs)


def make_samples(
    args: argparse.Namespace,
    accelerator,
    parts: PipelineParts,
    datasets: TrainingDatasets,
    seed: int,
) -> TrainingSamples:
    """Samples of all data, with what the latent cache keeps of them.

    Args:
        args: The script's flags.
        accelerator: Tells device, precision and the process's share of the encoding.
        parts: The pipeline; its text encoder's configuration keeps the number of chunks.
        datasets: The data.
        seed: Of everything random.
    """
    side = args.resolution // vae_factor(parts.vae.config)
    options = SampleOptions(
        seed=seed,
        resolution=args.resolution,
        resize_mode=args.resize_mode,
        random_flip=args.random_flip,
        caption_dropout_prob=args.caption_dropout_prob,
        latent_shape=(parts.vae.config.latent_channels, side, side),
        num_timesteps=parts.noise_scheduler.config.num_train_timesteps,
        noise_offset=args.noise_offset,
        input_perturbation=args.input_perturbation,
        num_crops=args.cache_crops,
    )
    samples = _tokenize_samples(args, parts, datasets, options)
    if is_cacheable(samples, wanted=args.cache_latents):
        samples = encode_once(
            samples,
            parts,
            accelerator,
            folder=latent_cache_dir(args),
            batch_size=args.train_batch_size,
            num_workers=num_loader_workers(args, accelerator, cached=False),
            with_text=args.train != "unet+text_encoder",
            required=bool(args.cache_latents) or args.cache_only,
        )
    if all(each.latents is None for each in samples if each is not None):
        parts.vae.to(accelerator.device)
        parts.text_encoder.to(accelerator.device)
    return TrainingSamples(*samples)


def _tokenize_samples(
    args: argparse.Namespace,
    parts: PipelineParts,
    datasets: TrainingDatasets,
    options: SampleOptions,
) -> list[TrainingSet | None]:
    """The samples with token ids; how many a caption may have stays in the text encoder."""
    weighted = FrequencySet if args.weights_as == AS_FREQUENCY else TrainingSet
    held_out = options.held_out()
    kinds = (
        (weighted, datasets.images, options, args.weight_column),
        (TrainingSet, datasets.held_out, held_out, None),
        (PairSet, datasets.pairs, options.of_pairs(), WEIGHT_COLUMN),
        (RehearsalSet, datasets.rehearsal, options, None),
        (TrainingSet, datasets.rehearsal_held_out, held_out, None),
    )
    present = [dataset for _, dataset, *_ in kinds if dataset is not None]
    num_chunks = settle_num_caption_chunks(
        parts.tokenizer,
        parts.text_encoder,
        (caption for each in present for caption in possible_captions(each, options)),
        long_captions=args.long_captions,
    )
    for dataset in datasets.trained_on():
        tell_long_captions(dataset, parts.tokenizer, num_chunks)
    return [
        None
        if dataset is None
        else make_training_set(
            *(dataset, each, parts.tokenizer, num_chunks),
            kind=kind,
            weights=read_weights(dataset, column),
        )
        for kind, dataset, each, column in kinds
    ]


def num_loader_workers(args: argparse.Namespace, accelerator, *, cached: bool) -> int:
    """Processes that make samples for this one; none on a CPU, whose cores train.

    Args:
        args: The script's flags.
        accelerator: Tells device and number of processes.
        cached: Whether nothing is read but the latent cache.
    """
    if args.dataloader_num_workers is not None:
        return args.dataloader_num_workers
    if accelerator.device.type == "cpu":
        return 0
    spare = max(1, cores_per_process(accelerator.num_processes) - 1)
    return min(MAX_CACHE_READERS if cached else MAX_READERS, spare)
