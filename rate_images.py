r"""Let doctors rate real and synthetic images blindly, in a browser, and analyse what they say.

    python rate_images.py create --real_dir data/oct --synthetic_dir runs/synthetic \
        --num_images 60 --raters "Dr A" "Dr B" --output_dir runs/study
    python rate_images.py raters --study_dir runs/study --show_links
    python rate_images.py serve --study_dir runs/study
    python rate_images.py export --study_dir runs/study --output_dir runs/ratings
    python rate_images.py analyze --study_dir runs/study --output_dir runs/agreement

Each rater opens a personal link and sees all images in an own random order; nothing but the pixels
can tell which are real (docs/ratings.md). Each command has its own --help.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from utils import cli
from utils.commands import add_commands
from utils.rating_answers import QUESTIONS
from utils.rating_flags import add_analyze_flags, add_export_flags, analyze_problem, export_problem
from utils.rating_order import MAX_REPEAT_SHARE

CREATE_HELP = """\
Draw images, make them alike in all but their pixels, and write the folder of a study.

    python rate_images.py create --real_dir data/oct --synthetic_dir runs/synthetic \\
        --num_images 60 --raters "Dr A" "Dr B" --output_dir runs/study
    python rate_images.py create --real_dir data/oct --real_split test \\
        --synthetic_dir before=runs/synthetic_1 after=runs/synthetic_2 \\
        --num_images 40 --questions turing quality preference --num_pairs 80 \\
        --repeat_share 0.2 --raters "Dr A" "Dr B" "Dr C" --output_dir runs/before_after

Every arm gives the same number of images of each diagnosis. The links of the raters are in the
folder's tokens.json, which its owner alone can read; delete it once they are handed out.
"""

RATERS_HELP = """\
List the raters of a study and how far they are; add some, show links, lock out.

    python rate_images.py raters --study_dir runs/study
    python rate_images.py raters --study_dir runs/study --add "Dr C" --show_links
    python rate_images.py raters --study_dir runs/study --renew "Dr A" --show_links
    python rate_images.py raters --study_dir runs/study --revoke "Dr B"

A server that runs meanwhile knows of it at once.
"""

SERVE_HELP = """\
Serve a study until Ctrl-C or SIGTERM.

    python rate_images.py serve --study_dir runs/study
    python rate_images.py serve --study_dir runs/study --port 8080 --show_links
    python rate_images.py serve --study_dir runs/study --public_url https://ratings.example.org

The server speaks plain HTTP and listens on this machine alone. For raters elsewhere put a reverse
proxy with TLS on the same machine in front of it, and name its address by --public_url.
"""

EXPORT_HELP = """\
Write answers as CSV and JSONL, the rated images, and pairs for preference training.

    python rate_images.py export --study_dir runs/study --output_dir runs/ratings
"""

ANALYZE_HELP = """\
Turing test, ratings by arm and agreement of the raters, with intervals; a page to read.

    python rate_images.py analyze --study_dir runs/study --output_dir runs/agreement
    python rate_images.py analyze --ratings runs/ratings --output_dir runs/agreement
"""


def _named_source(text: str) -> tuple[str | None, str]:
    """NAME=DIR or DIR."""
    name, equals, source = text.partition("=")
    if not equals or Path(text).exists():
        return None, cli.data_source(text)
    if not re.fullmatch(r"[\w.+-]+", name):
        raise argparse.ArgumentTypeError(f"{name!r} is no name of letters, digits, . _ + -")
    return name, cli.data_source(source)


def _repeat_share(text: str) -> float:
    share = cli.probability(text)
    if share > MAX_REPEAT_SHARE:
        raise argparse.ArgumentTypeError(f"{text!r} is above {MAX_REPEAT_SHARE:g}")
    return share


def _name(text: str) -> str:
    name = cli.one_line(text)
    if not 0 < len(name) <= 100:
        raise argparse.ArgumentTypeError("a name of 1 to 100 characters is needed")
    return name


def _port(text: str) -> int:
    port = cli.non_negative_int(text)
    if port > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is above 65535")
    return port


def _public_url(text: str) -> str:
    try:
        parts = urlsplit(text)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number
        sound = False
    if not sound or parts.path.strip("/") or parts.query or parts.fragment or parts.username:
        raise argparse.ArgumentTypeError(f"{text!r} is not like https://ratings.example.org")
    return text.rstrip("/")


def _add_study_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--study_dir", type=cli.existing_dir, required=True, metavar="DIR", help="folder of create"
    )


def _add_create_flags(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("images")
    data.add_argument(
        "--real_dir", type=cli.data_source, required=True, metavar="SOURCE", help="real images"
    )
    data.add_argument(
        "--real_split",
        choices=("train", "val", "test", "all"),
        default="test",
        help="split they are drawn from, if they have one (default: %(default)s)",
    )
    data.add_argument(
        "--synthetic_dir",
        type=_named_source,
        nargs="+",
        required=True,
        metavar="[NAME=]SOURCE",
        help="synthetic sets, each an arm of the study (default name: the folder's)",
    )
    data.add_argument(
        "--num_images", type=cli.positive_int, required=True, help="images drawn of each arm"
    )
    data.add_argument(
        "--num_pairs",
        type=cli.positive_int,
        help="pairs for the question preference (default: as many as --num_images)",
    )
    data.add_argument(
        "--resolution",
        type=cli.resolution,
        help="side in pixels, a multiple of 8 (default: the smallest of the arms' usual sides)",
    )
    data.add_argument(
        "--resize_mode",
        choices=("center_crop", "pad", "stretch"),
        default="center_crop",
        help="how all images become squares (default: %(default)s)",
    )
    data.add_argument(
        "--color",
        choices=("gray", "rgb"),
        default="gray",
        help="form of all images (default: %(default)s)",
    )
    data.add_argument(
        "--skip_invalid", action="store_true", help="drop rows with a problem, and count them"
    )
    cli.add_runtime_flags(data, "seed", "num_workers", "offline")
    study = parser.add_argument_group("study")
    study.add_argument(
        "--questions",
        nargs="+",
        choices=QUESTIONS,
        default=["turing", "quality"],
        help="what is asked of every image; preference of pairs (default: turing quality)",
    )
    study.add_argument(
        "--repeat_share",
        type=_repeat_share,
        default=0.1,
        help="share of the items that a rater sees twice, in [0, 0.5], to measure self-agreement "
        "(default: %(default)s)",
    )
    study.add_argument(
        "--raters", type=_name, nargs="+", default=[], metavar="NAME", help="who will rate"
    )
    study.add_argument(
        "--title",
        type=_name,
        default="Image rating",
        help="what the page is called; do not tell the raters what is tested (default: "
        "%(default)s)",
    )
    cli.add_runtime_flags(parser, "output_dir")


def _add_raters_flags(parser: argparse.ArgumentParser) -> None:
    _add_study_dir(parser)
    for flag, text in (
        ("add", "join the study, each with an own order"),
        ("renew", "get a new link; the old one is worthless then"),
        ("revoke", "are locked out; their answers stay"),
    ):
        parser.add_argument(
            f"--{flag}", type=_name, nargs="+", default=[], metavar="NAME", help=text
        )
    _add_link_flags(parser)


def _add_link_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--show_links", action="store_true", help="print the raters' links")
    parser.add_argument(
        "--public_url",
        type=_public_url,
        metavar="URL",
        help="address by which raters reach a reverse proxy on this machine (default: none)",
    )


def _add_serve_flags(parser: argparse.ArgumentParser) -> None:
    _add_study_dir(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; another one than this machine's own sends the ratings "
        "unencrypted (default: %(default)s)",
    )
    parser.add_argument(
        "--port", type=_port, default=8000, help="port; 0 takes a free one (default: %(default)s)"
    )
    _add_link_flags(parser)


def build_parser() -> argparse.ArgumentParser:
    """The five commands and their flags."""
    parser = cli.make_parser(__doc__)
    commands = (
        ("create", _add_create_flags, create, CREATE_HELP),
        ("raters", _add_raters_flags, raters, RATERS_HELP),
        ("serve", _add_serve_flags, serve, SERVE_HELP),
        ("export", add_export_flags, export, EXPORT_HELP),
        ("analyze", add_analyze_flags, analyze, ANALYZE_HELP),
    )
    add_commands(parser, commands)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and cross-check; anything wrong ends here, with exit status 2."""
    args = build_parser().parse_args(argv)
    checks = {
        "create": _create_problem,
        "raters": _raters_problem,
        "export": export_problem,
        "analyze": analyze_problem,
    }
    if args.command in checks and (problem := checks[args.command](args)):
        args.error(problem)
    return args


def _create_problem(args: argparse.Namespace) -> str | None:
    output_dir = args.output_dir
    if output_dir.exists() and any(output_dir.iterdir()):
        return f"--output_dir {output_dir} exists and is not an empty folder"
    if len(set(args.raters)) < len(args.raters):
        return "--raters names somebody twice"
    if args.num_pairs and "preference" not in args.questions:
        return "--num_pairs goes with --questions preference"
    return None


def _raters_problem(args: argparse.Namespace) -> str | None:
    named = [*args.add, *args.renew, *args.revoke]
    if len(set(named)) < len(named):
        return "--add, --renew and --revoke name somebody twice"
    return None


def create(args: argparse.Namespace) -> int:
    """Make a study."""
    from utils.rating_study import create_study
    from utils.run_folder import print_result

    facts = create_study(args)
    print_result({"study_dir": args.output_dir, "raters": args.raters, **facts})
    return 0


def raters(args: argparse.Namespace) -> int:
    """Add, renew and revoke; then list."""
    from utils import rating_links
    from utils.rating_store import Store
    from utils.run_folder import print_result

    with Store.open(args.study_dir) as store:
        rating_links.add_raters(store, args.add)
        for name in args.renew:
            rating_links.renew_token(store, name)
        for name in args.revoke:
            rating_links.revoke(store, name)
        url = args.public_url or "http://127.0.0.1:8000"
        links = rating_links.personal_links(args.study_dir, url) if args.show_links else {}
        listed = [
            {
                "rater": rater.name,
                "done": store.num_done(rater),
                "shown": store.num_shown(rater),
                "active": rater.active,
                **({"link": links.get(rater.name)} if args.show_links else {}),
            }
            for rater in store.raters()
        ]
    print_result({"study_dir": args.study_dir, "raters": listed})
    return 0


def serve(args: argparse.Namespace) -> int:
    """Serve until a signal."""
    from utils.rating_service import serve_study

    serve_study(args)
    return 0


def export(args: argparse.Namespace) -> int:
    """Write the answers."""
    from utils.rating_export import run
    from utils.run_folder import print_result

    print_result(run(args))
    return 0


def analyze(args: argparse.Namespace) -> int:
    """Write the statistics."""
    from utils.rating_report import run
    from utils.run_folder import print_result

    print_result(run(args))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    args = parse_args(argv)
    command: Callable[[argparse.Namespace], int] = args.run
    return command(args)


if __name__ == "__main__":
    cli.main_guard(main)
