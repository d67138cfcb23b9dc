"""Distances between the features of two sets as entries, each beside its floors.

A distance has three yardsticks: the same metric between two halves of the real set (``floor``), the
same between real images and what the generator's VAE makes of them (``vae_floor``), and, for the
Fréchet distance, itself at equal numbers of images (``equal_n``). Entries as in ``utils.scores``.
Shapes: N_r real, N_s synthetic images, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from utils import metrics
from utils.scores import Entry, Side, absent, entry

NEIGHBOURS = 5  # k of precision, recall, density, coverage
NEIGHBOUR_METRICS = ("precision", "recall", "density", "coverage")
KID_SUBSETS = 100  # as torch-fidelity and the paper
KID_SUBSET_SIZE = 1000
EQUAL_N_DRAWS = 5
NO_FLOOR = "no floor: halved by patient, the real set does not give twice {} images"


@dataclass(frozen=True)
class Pools:
    """Features of one comparison.

    Attributes:
        real: (N_r, D).
        synthetic: (N_s, D).
        patients: (N_r,) the patient of each real image.
        reconstructed: (N_r, D) of the real images passed through the VAE; None without one.
    """

    real: np.ndarray
    synthetic: np.ndarray
    patients: np.ndarray
    reconstructed: np.ndarray | None = None

    @property
    def counts(self) -> dict[str, int]:
        """``n_real`` and ``n_synthetic``."""
        return {"n_real": len(self.real), "n_synthetic": len(self.synthetic)}

    def halves(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Features of two halves of the real set that share no patient."""
        first, second = metrics.split_halves(self.patients, seed=seed)
        return self.real[first], self.real[second]


@dataclass(frozen=True)
class DistanceOptions:
    """See `score_distances`."""

    num_resamples: int
    seed: int
    device: str


def score_distances(
    names: Sequence[str],
    real: Side,
    synthetic: Side,
    *,
    labels: Sequence[str],
    num_resamples: int,
    seed: int,
    device: str = "cpu",
) -> dict[str, tuple[Entry, dict[str, Entry]]]:
    """Entries of all images and per label.

    Args:
        names: Of ``fid``, ``kid``, ``cmmd``, ``prdc``; ``kid`` joins ``fid`` where that is biased,
            with fewer images than features.
        real: The real images with their features.
        synthetic: The synthetic ones.
        labels: Labels to give an entry each.
        num_resamples: Of the Fréchet distance's bootstrap; under 2: no interval.
        seed: Of resamples, subsets and halves.
        device: Where neighbours are looked for.

    Returns:
        Name of a metric -> entry over all images, and label -> entry.
    """
    options = DistanceOptions(num_resamples, seed, device)
    smallest = min(len(real.images), len(synthetic.images))
    if "fid" in names and "kid" not in names and smallest < real.features.pool.shape[1]:
        names = [*names, "kid"]
    patients, reconstructed = real.images.patients(), real.reconstructed

    def of(real_index: np.ndarray, synthetic_index: np.ndarray) -> dict[str, Entry]:
        pools = Pools(
            real.features.pool[real_index],
            synthetic.features.pool[synthetic_index],
            patients[real_index],
            None if reconstructed is None else reconstructed.pool[real_index],
        )
        found: dict[str, Entry] = {}
        for name in names:
            found |= _ENTRIES[name](pools, options)
        return found

    overall = of(np.arange(len(real.images)), np.arange(len(synthetic.images)))
    if copies := real.count_equal_pixels(synthetic):
        next(iter(overall.values())).setdefault("notes", []).append(
            f"{copies} synthetic image(s) equal a real image of this comparison pixel for pixel: "
            "they lower every distance and are no new data"
        )
    per_label = {
        label: of(real.images.having(label), synthetic.images.having(label)) for label in labels
    }
    return {
        name: (found, {label: entries[name] for label, entries in per_label.items()})
        for name, found in overall.items()
    }


def _too_few(pools: Pools, needed: int, direction: str) -> Entry | None:
    """An entry that says so, where a side has fewer images than the metric needs."""
    if min(pools.counts.values()) >= needed:
        return None
    why = "{n_real} real and {n_synthetic} synthetic image(s): {needed} of each are needed"
    return absent(direction, **pools.counts, why=why.format(**pools.counts, needed=needed))


def _floors(
    pools: Pools, distance: Callable[..., float], *, needed: int, seed: int
) -> tuple[dict[str, object], list[str]]:
    """``floor``, ``floor_n``, ``vae_floor`` of a distance, and notes."""
    found: dict[str, object] = {}
    notes = []
    halves = pools.halves(seed)
    if min(map(len, halves)) >= needed:
        found["floor"] = distance(real=halves[0], synthetic=halves[1])
        found["floor_n"] = [len(half) for half in halves]
    else:
        notes.append(NO_FLOOR.format(needed))
    if pools.reconstructed is not None:
        found["vae_floor"] = distance(real=pools.real, synthetic=pools.reconstructed)
    return found, notes


def frechet_entry(pools: Pools, options: DistanceOptions) -> dict[str, Entry]:
    """Fréchet distance with its interval, its floors, and itself at equal N."""
    needed = metrics.MIN_IMAGES
    if short := _too_few(pools, needed, "lower"):
        return {"fid": short}
    sets = {"real": pools.real, "synthetic": pools.synthetic}
    interval = equal_n = None
    notes = []
    units = (len(set(pools.patients.tolist())), len(pools.synthetic))
    if options.num_resamples >= 2 and min(units) < metrics.MIN_GROUPS:
        notes.append(f"no interval: fewer than {metrics.MIN_GROUPS} patients or synthetic images")
    elif options.num_resamples >= 2:
        with tqdm(total=options.num_resamples, desc="fid resamples", leave=False) as bar:
            interval = metrics.frechet_interval(
                **sets,
                real_groups=pools.patients,
                num_resamples=options.num_resamples,
                seed=options.seed,
                progress=bar.update,
            )
    floors, more = _floors(pools, metrics.frechet_distance, needed=needed, seed=options.seed)
    notes += more
    if "floor" in floors:
        equal_n = _at_equal_n(pools, min(*floors["floor_n"], len(pools.synthetic)), options.seed)
    dim = pools.real.shape[1]
    if min(pools.counts.values()) < dim:
        notes.append(
            f"{min(pools.counts.values())} images in {dim} dimensions: with so few the distance "
            "is too large by an unknown amount; compare at equal N, with the floor, and with kid, "
            "which has no such bias"
        )
    value = metrics.frechet_distance(**sets)
    more = {"ci95": interval, **floors, "equal_n": equal_n, "notes": notes}
    return {"fid": entry(value, direction="lower", **pools.counts, **more)}


def _at_equal_n(pools: Pools, size: int, seed: int) -> dict[str, float]:
    """The distance and its floor between sets of ``size`` images, means over draws."""
    draws = {"size": size, "num_draws": EQUAL_N_DRAWS, "seed": seed}
    halves = pools.halves(seed)
    value, std = metrics.frechet_distance_at_equal_n(
        real=pools.real, synthetic=pools.synthetic, **draws
    )
    floor, _ = metrics.frechet_distance_at_equal_n(real=halves[0], synthetic=halves[1], **draws)
    return {"n": size, "value": value, "std": std, "floor": floor}


def kernel_entry(pools: Pools, options: DistanceOptions) -> dict[str, Entry]:
    """Kernel distance (KID on Inception features): mean and deviation over subsets."""
    needed = 4  # subsets of two
    if short := _too_few(pools, needed, "lower"):
        return {"kid": short}

    def distance(*, real: np.ndarray, synthetic: np.ndarray) -> tuple[float, float, int]:
        size = min(KID_SUBSET_SIZE, min(len(real), len(synthetic)) // 2)
        found = metrics.kernel_inception_distance(
            real=real,
            synthetic=synthetic,
            subset_size=size,
            num_subsets=KID_SUBSETS,
            seed=options.seed,
        )
        return *found, size

    floors, notes = _floors(
        pools, lambda **sets: distance(**sets)[0], needed=needed, seed=options.seed
    )
    value, std, size = distance(real=pools.real, synthetic=pools.synthetic)
    more = {"std": std, "subset_size": size, **floors, "notes": notes}
    return {"kid": entry(value, direction="lower", **pools.counts, **more)}


def cmmd_entry(pools: Pools, options: DistanceOptions) -> dict[str, Entry]:
    """CMMD, on unit-length CLIP embeddings."""
    if short := _too_few(pools, 1, "lower"):
        return {"cmmd": short}
    floors, notes = _floors(pools, metrics.cmmd, needed=1, seed=options.seed)
    value = metrics.cmmd(real=pools.real, synthetic=pools.synthetic)
    return {"cmmd": entry(value, direction="lower", **pools.counts, **floors, notes=notes)}


def neighbour_entries(pools: Pools, options: DistanceOptions) -> dict[str, Entry]:
    """Precision, recall, density, coverage with bootstrap intervals over images."""
    needed = NEIGHBOURS + 1
    if short := _too_few(pools, needed, "higher"):
        return {name: dict(short) for name in NEIGHBOUR_METRICS}

    def of(real: np.ndarray, synthetic: np.ndarray):
        return metrics.prdc(real=real, synthetic=synthetic, k=NEIGHBOURS, device=options.device)

    found = of(pools.real, pools.synthetic)
    halves = pools.halves(options.seed)
    half = of(*halves) if min(map(len, halves)) >= needed else None
    vae = None if pools.reconstructed is None else of(pools.real, pools.reconstructed)
    notes = [] if half else [NO_FLOOR.format(needed)]
    entries = {}
    for name in NEIGHBOUR_METRICS:
        over_real = name in ("recall", "coverage")
        interval = _share_interval(
            getattr(found, name), pools.patients if over_real else None, seed=options.seed
        )
        entries[name] = entry(
            float(getattr(found, name).mean()),
            direction="higher",
            **pools.counts,
            ci95=interval,
            floor=None if half is None else float(getattr(half, name).mean()),
            floor_n=None if half is None else [len(each) for each in halves],
            vae_floor=None if vae is None else float(getattr(vae, name).mean()),
            k=NEIGHBOURS,
            notes=list(notes),
        )
    return entries


def _share_interval(
    values: np.ndarray, patients: np.ndarray | None, *, seed: int
) -> tuple[float, float] | None:
    """Interval of a mean over images: of yes and no of single images Wilson's, else bootstrap."""
    single = patients is None or len(np.unique(patients)) == len(patients)
    if values.dtype == bool and single:
        return metrics.wilson_interval(int(values.sum()), len(values))
    return metrics.bootstrap_interval(values, groups=patients, seed=seed)


_ENTRIES: Mapping[str, Callable[[Pools, DistanceOptions], dict[str, Entry]]] = {
    "fid": frechet_entry,
    "kid": kernel_entry,
    "cmmd": cmmd_entry,
    "prdc": neighbour_entries,
}
