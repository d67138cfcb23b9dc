"""Divide patients into train, val and test so that every label is shared out evenly."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from utils.cli import UserError
from utils.dataset_records import SPLITS, Record


def group_by_patient(records: Sequence[Record], *, by_image: bool) -> dict[str, list[int]]:
    """Indices of each patient's images.

    Args:
        records: The images.
        by_image: Take an image without patient as a patient of its own.

    Raises:
        UserError: If images have no patient and that was not allowed.
    """
    unknown = [record for record in records if record.patient_id is None]
    if unknown and not by_image:
        raise UserError(
            f"{len(unknown)} of {len(records)} rows have no patient_id, first: "
            f"{unknown[0].where}; scans of one eye would land on both sides. If every image is "
            "of another patient, say so with --by_image"
        )
    groups = defaultdict(list)
    for index, record in enumerate(records):
        patient = record.patient_id
        groups[f"image {record.file_name}" if patient is None else f"patient {patient}"].append(
            index
        )
    return dict(groups)


def split_patients(
    patients: Mapping[str, Counter], *, shares: Mapping[str, float], seed: int
) -> dict[str, str]:
    """Assign patients to splits by iterative stratification.

    Sechidis et al. 2011 (https://doi.org/10.1007/978-3-642-23808-6_10), on patients instead of
    single samples: labels are served from the rarest to the most frequent; each patient goes
    where most images of that label are still wanted. The result depends on names, counts and
    seed only, not on the order of the table.

    Args:
        patients: Number of images per label of each patient; an image without label counts under
            the empty label.
        shares: Share of the images per split, summing to 1.
        seed: Order in which patients are served.

    Returns:
        The split of each patient.
    """
    order = sorted(patients, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    totals = sum(patients.values(), Counter())
    wanted = {
        split: {label: share * count for label, count in totals.items()}
        for split, share in shares.items()
        if share > 0
    }
    assigned: dict[str, str] = {}
    for label in sorted(totals, key=lambda label: (totals[label], label)):
        for name in order:
            if name in assigned or label not in patients[name]:
                continue
            best = max(wanted, key=lambda s: (wanted[s][label], sum(wanted[s].values())))
            assigned[name] = best
            for own, count in patients[name].items():
                wanted[best][own] -= count
    return assigned


def assign_splits(
    records: Sequence[Record], *, val_share: float, test_share: float, seed: int, by_image: bool
) -> list[str]:
    """Split of each record: no patient in two, the labels shared out evenly.

    Args:
        records: The images.
        val_share: Share of the images in [0, 1); likewise ``test_share``; the rest is train.
        test_share: See above.
        seed: Another seed is another division.
        by_image: Whether an image without patient is a patient of its own.

    Raises:
        UserError: If there are images without patient, or a wanted split stays empty.
    """
    groups = group_by_patient(records, by_image=by_image)
    counts = {
        name: Counter(label for index in indices for label in records[index].labels or ("",))
        for name, indices in groups.items()
    }
    shares = {"train": 1 - val_share - test_share, "val": val_share, "test": test_share}
    assigned = split_patients(counts, shares=shares, seed=seed)
    empty = [name for name in SPLITS if shares[name] > 0 and name not in assigned.values()]
    if empty:
        raise UserError(f"{len(groups)} patients are too few: {', '.join(empty)} stays empty")
    splits = [""] * len(records)
    for name, indices in groups.items():
        for index in indices:
            splits[index] = assigned[name]
    return splits
