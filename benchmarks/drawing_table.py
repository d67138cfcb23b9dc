"""What benchmarks/generate_throughput.py found, as a table and as rows for docs/benchmarks.md."""

OURS = "ours"
SIDES = {
    OURS: "ours",
    "ours_float32": "ours, float32",
    "plain": "plain pipeline, same settings",
    "plain_float32": "plain pipeline, same settings, float32",
    "default_loop": "plain pipeline, a prompt at a time, defaults",
}


def table(result: dict) -> str:
    """The figures in columns."""
    lines = [f"{'':46s} images/s  ours is faster, times  CPU s an image  Frechet distance"]
    for name, row in result["sides"].items():
        ratio, distance = row["ours_is_faster"], result["frechet_distance"].get(name)
        span = f"{ratio['median']:.2f} ({ratio['least']:.2f}-{ratio['most']:.2f})"
        judged = "-"
        if distance:
            low, high = distance["ci95"]
            judged = f"{distance['value']:.1f} ({low:.1f}-{high:.1f})"
        lines.append(
            f"{SIDES[name]:46s} {row['images_per_s']:8.2f}  {span:>21s}  "
            f"{row['cpu_seconds_per_image']:14.2f}  {judged:>20s}"
        )
    floor = result["frechet_distance"].get("simulated_scans")
    if floor:
        lines.append(f"other simulated scans, as many: Frechet distance {floor['value']:.1f}")
    return "\n".join(lines)


def markdown(result: dict) -> str:
    """One row per other side for docs/benchmarks.md; the day is to be filled in."""
    what = f"{result['model']}, {result['resolution']} px, {result['steps']} steps"
    what += f", batch {result['batch_size']}, {result['precision']}"
    if tuple(result["guidance_interval"]) != (0, 1):
        what += ", guided from {:g} to {:g}".format(*result["guidance_interval"])
    own = result["sides"][OURS]["images_per_s"]
    rows = []
    for name, row in result["sides"].items():
        ratio = row["ours_is_faster"]
        if name != OURS:
            rows.append(
                f"| `ImageSampler` against {SIDES[name]}: {what} | {ratio['median']:.2f} times "
                f"({ratio['least']:.2f}-{ratio['most']:.2f}): {own:.2f} against "
                f"{row['images_per_s']:.2f} images/s | {result['device']}, DAY |"
            )
    return "\n".join(rows)
