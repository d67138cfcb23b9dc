import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from utils.cli import UserError
from utils.resumable_run import only_writer
from utils.stage_runner import StageRunner, to_argv

ROOT = Path(__file__).parents[1]


@pytest.fixture
def scripts(tmp_path):
    """A script that counts its starts, waits if it is told to, and prints its flags."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "count.py").write_text(
        textwrap.dedent(
            """
            import json, pathlib, sys, time
            log = pathlib.Path(sys.argv[1])
            with log.open("a") as file:
                file.write("started\\n")
            if "--fail" in sys.argv:
                sys.exit("it says why")
            if "--wait" in sys.argv:
                time.sleep(60)
            print(json.dumps({"argv": sys.argv[2:]}))
            """
        )
    )
    return tmp_path / "scripts"


def runner(tmp_path, scripts, lock=None):
    return StageRunner(tmp_path / "run", scripts, (), lock)


def starts(path):
    return path.read_text().count("started")


def test_flags_become_a_command_line():
    flags = {"model": Path("m"), "offline": True, "split": None, "show": False, "by": [1, "b"]}
    assert to_argv(flags) == ["--model", "m", "--offline", "--by", "1", "b"]


def test_a_stage_that_has_ended_is_not_started_again(tmp_path, scripts):
    one, log = runner(tmp_path, scripts), tmp_path / "log"
    assert one.run("round-1/draw", "count.py", [str(log), "--x"]) == {"argv": ["--x"]}
    assert one.run("round-1/draw", "count.py", [str(log), "--x"]) == {"argv": ["--x"]}
    assert starts(log) == 1
    assert list(one.seconds()) == ["round-1/draw"]
    again = one.run("round-1/draw", "count.py", [str(log), "--y"])  # another stage by this name
    assert again == {"argv": ["--y"]}
    assert starts(log) == 2


def test_flags_of_a_continuation_make_no_other_stage_of_it(tmp_path, scripts):
    one, argv = runner(tmp_path, scripts), [str(tmp_path / "log")]
    assert one.run("train", "count.py", argv, only_now=["--resume"]) == {"argv": ["--resume"]}
    one.run("train", "count.py", argv)
    assert starts(tmp_path / "log") == 1


def test_a_stage_that_fails_ends_the_run_and_is_started_again(tmp_path, scripts, capfd):
    one, log = runner(tmp_path, scripts), tmp_path / "log"
    with pytest.raises(UserError, match="stage draw ended with status 1"):
        one.run("draw", "count.py", [str(log), "--fail"])
    assert "it says why" in capfd.readouterr().err
    with pytest.raises(UserError):
        one.run("draw", "count.py", [str(log), "--fail"])
    assert starts(log) == 2


WAITING = """
import sys
from pathlib import Path
from utils.resumable_run import only_writer
from utils.stage_runner import StageRunner, stop_at_sigterm
folder, scripts, log = map(Path, sys.argv[1:4])
launcher = sys.argv[4:]
folder.mkdir(exist_ok=True)
stop_at_sigterm()
with only_writer(folder) as lock:
    runner = StageRunner(folder, scripts, launcher, lock)
    runner.run("draw", "count.py", [str(log), "--wait"])
"""


def start_waiting(tmp_path, scripts, launcher=()):
    """A process that waits for a stage which waits; started as soon as it returns."""
    log = tmp_path / "log"
    argv = [sys.executable, "-c", WAITING, str(tmp_path / "run"), str(scripts), str(log), *launcher]
    process = subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE)
    limit = time.monotonic() + 60
    while not (log.exists() and starts(log)):
        assert time.monotonic() < limit and process.poll() is None
        time.sleep(0.02)
    return process


def is_held(folder):
    try:
        with only_writer(folder):
            return False
    except UserError:
        return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("launcher", [(), ("sh", "-c", '"$@" & wait', "launcher", sys.executable)])
def test_a_signal_ends_the_stage_too(tmp_path, scripts, number, launcher):
    process = start_waiting(tmp_path, scripts, launcher)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert not is_held(tmp_path / "run")  # the stage holds it no more, for it has ended
    running = subprocess.run(["pgrep", "-f", str(scripts / "count.py")], capture_output=True)
    assert running.returncode == 1  # nor has a launcher left it behind


def test_a_stage_that_outlives_a_killed_run_holds_the_folder_until_it_ends(tmp_path, scripts):
    process = start_waiting(tmp_path, scripts)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    process.kill()
    process.wait()
    assert is_held(tmp_path / "run")
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    limit = time.monotonic() + 30
    while is_held(tmp_path / "run"):
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_what_a_stage_printed_is_kept_with_its_command(tmp_path, scripts):
    runner(tmp_path, scripts).run("a/b", "count.py", [str(tmp_path / "log"), "--x"])
    kept = json.loads((tmp_path / "run" / "logs" / "a" / "b.json").read_text())
    assert kept["command"].startswith("count.py ")
    assert kept["result"] == {"argv": ["--x"]}
