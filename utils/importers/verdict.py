"""What is wrong with an import as a whole, found in its journal: pixels, repeats, patients."""

from collections import Counter

from utils.dataset_pixels import DUPLICATE, shortened_note, windowed_note
from utils.dataset_records import MAX_LISTED_PROBLEMS, Problem
from utils.importers.journal import IS_SOUND, Journal

_FAILED = """
INSERT INTO problems
SELECT images.number, images.number, images.place, results.kind, results.detail
FROM images JOIN results USING (name) WHERE results.kind != ''
"""

# Of rows that do not go together the first is kept: the first without a problem so far, or
# --skip_invalid would drop it and those that are dropped for it. If all have one, the first of all.
_FIRST = f"COALESCE(MIN(CASE WHEN {IS_SOUND} THEN images.number END), MIN(images.number))"

_SPLIT = f"""
WITH patients AS (
    SELECT patient, {_FIRST} AS number FROM images
    WHERE patient != '' AND split != '' GROUP BY patient
)
INSERT INTO problems
SELECT later.number, later.number, later.place, 'patient in two splits',
    'patient ' || later.patient || ' is in ' || later.split || ' here and in ' || first.split
    || ' at ' || first.place
FROM images AS later JOIN patients USING (patient) JOIN images AS first
    ON first.number = patients.number
WHERE later.split != '' AND later.split != first.split
"""

_DUPLICATE = f"""
WITH digests AS (
    SELECT digest, {_FIRST} AS number FROM images JOIN results USING (name)
    WHERE results.kind = '' GROUP BY digest HAVING COUNT(*) > 1
)
INSERT INTO problems
SELECT later.number, later.number, later.place, ?,
    later.name || ' has the pixels of ' || first.name || ' at ' || first.place
    || CASE WHEN later.split = first.split THEN '' ELSE
    ', which is in split ' || first.split || ', this in ' || later.split END
FROM images AS later JOIN results USING (name) JOIN digests USING (digest)
    JOIN images AS first ON first.number = digests.number
WHERE results.kind = '' AND later.number != first.number
"""


def judge(journal: Journal) -> None:
    """Add what is wrong with pixels, repeats and splits to the problems that the rows have."""
    with journal.transaction():
        journal.connection.execute(_FAILED)
        journal.connection.execute(_SPLIT)
        journal.connection.execute(_DUPLICATE, (DUPLICATE,))


def count_problems(journal: Journal) -> Counter[str]:
    """How many problems there are of each kind."""
    query = "SELECT kind, COUNT(*) FROM problems GROUP BY kind"
    return Counter(dict(journal.connection.execute(query)))


def first_problems(journal: Journal) -> list[Problem]:
    """As many as are told in full."""
    query = f"SELECT place, kind, message FROM problems ORDER BY number LIMIT {MAX_LISTED_PROBLEMS}"
    return [Problem(*row) for row in journal.connection.execute(query)]


def count_skipped(journal: Journal) -> int:
    """How many rows have a problem, one or more."""
    query = "SELECT COUNT(*) FROM (SELECT DISTINCT number FROM problems)"
    return journal.connection.execute(query).fetchone()[0]


def depth_notes(journal: Journal) -> list[str]:
    """What to tell of images that are kept deeper than 8 bits; no problem."""
    query = (
        "SELECT COUNT(*), MIN(images.number), images.name, {} FROM images JOIN results "
        "USING (name) WHERE results.kind = '' AND depth > 8 AND window {} ''"
    )
    windowed = journal.connection.execute(query.format("window", "!=")).fetchone()
    shortened = journal.connection.execute(query.format("window", "=")).fetchone()
    notes = []
    if windowed[0]:
        notes.append(windowed_note(windowed[0], f"{windowed[2]} {windowed[3]}"))
    if shortened[0]:
        notes.append(shortened_note(shortened[0], shortened[2]))
    return notes
