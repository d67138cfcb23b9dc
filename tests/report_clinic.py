"""Small clinics of scans with reports, for the tests of report models."""

import csv
import shutil

from demo.simulate import simulate


def write_reports(folder, splits, *, population=0, resolution=32, columns=None, **changes):
    """A dataset folder of simulated scans, two of a patient, a patient per entry of ``splits``."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(2 * len(splits)):
        scan = simulate(number, seed=population, resolution=resolution)
        name = f"images/{population}-{number:03d}.png"
        scan.image.save(folder / name)
        row = {
            "file_name": name,
            "text": scan.text,
            "label": scan.label,
            "patient_id": scan.truth["patient_id"],
            "split": splits[number // 2],
        }
        rows.append(row | {name: change(row) for name, change in changes.items()})
    columns = columns or list(rows[0])
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return folder
