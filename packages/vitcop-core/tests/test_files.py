"""Files are written whole or not at all, and only regular files of bounded size are read."""

import errno
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vitcop_core.files import open_regular, read_bytes, write_bytes, write_json, write_text, write_whole
from vitcop_core.journal import Journal, lines_of, partial_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a.bin", b"\0\1")
    write_text(tmp_path / "a.txt", "grün \udcff")
    write_json(str(tmp_path / "a.json"), {"a": [1, None]})
    assert (tmp_path / "a.bin").read_bytes() == b"\0\1"
    assert (tmp_path / "a.txt").read_bytes() == "grün \\udcff".encode()
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, None]}
    assert names(tmp_path) == ["a.bin", "a.json", "a.txt"]


def test_reading_takes_the_memory_of_the_file_and_not_of_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 5000)
    tracemalloc.start()
    try:
        assert read_bytes(tmp_path / "a", 2**31) == b"x" * 5000
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")
def test_a_file_that_says_it_is_empty_is_read_to_its_end() -> None:
    path = Path("/proc/self/status")
    assert path.stat().st_size == 0
    assert read_bytes(path, 2**20).startswith(b"Name:")
    with pytest.raises(OSError, match="must have at most 20 bytes, and has more"):
        read_bytes(path, 20)


def test_an_error_in_the_block_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), write_whole(path) as stream:
        stream.write(b"half" * (1 // 0))
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_json_that_is_none_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert names(tmp_path) == []


def test_readers_see_the_old_file_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with write_whole(path) as stream:
        stream.write(b"new")
        stream.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_without_overwrite_a_file_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_bytes(path, b"first", overwrite=False)
    with pytest.raises(FileExistsError) as caught:
        write_bytes(path, b"second", overwrite=False)
    assert caught.value.filename == str(path)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    with pytest.raises(FileExistsError):
        write_bytes(tmp_path / "dangling", b"second", overwrite=False)
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["a", "dangling"]


@pytest.mark.parametrize("has_links", [True, False])
def test_without_overwrite_a_file_that_came_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    if not has_links:
        monkeypatch.setattr(os, "link", lambda *names: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    path = tmp_path / "a"
    with pytest.raises(FileExistsError), write_whole(path, overwrite=False):
        path.write_bytes(b"first")
    assert path.read_bytes() == b"first"
    write_bytes(tmp_path / "b", b"new", overwrite=False)
    assert names(tmp_path) == ["a", "b"]


def test_permissions_follow_the_umask_and_the_file_that_was_there(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "new", b"")
        (tmp_path / "old").touch()
        (tmp_path / "old").chmod(0o604)
        write_bytes(tmp_path / "old", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o604


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "far" / "a")
    write_bytes(link, b"first")  # a dangling link says where the file goes
    write_bytes(link, b"second")
    assert link.is_symlink()
    assert (tmp_path / "far" / "a").read_bytes() == b"second"
    assert names(tmp_path / "far") == ["a"]


USES: list[Callable[[Any], Any]] = [
    lambda path: write_bytes(path, b""),
    lambda path: read_bytes(path, 10),
    Journal,
    open_regular,
]


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize("make", [make_pipe, make_socket, Path.mkdir])
@pytest.mark.parametrize("use", USES)
def test_only_regular_files_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], use: Callable[[Any], Any]
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    path = Path("a")
    make(path)
    with pytest.raises(OSError, match=r"must be a (regular )?file, not a") as caught:
        use(path)
    assert caught.value.filename == "a"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 300, "loop", "missing/a"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str, use: Callable[[Any], Any]) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    path = str(tmp_path / name)
    with pytest.raises(OSError) as caught:  # noqa: PT011  (the system has its own words)
        use(path)
    assert caught.value.filename == path
    assert names(tmp_path) == ["loop"]


def test_a_journal_needs_room_in_its_name(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File name too long"):
        Journal(tmp_path / ("x" * 250))
    assert names(tmp_path) == []


def test_a_long_name_that_a_file_can_have_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"there is no folder {tmp_path}/missing"):
        write_bytes(tmp_path / "missing" / "a", b"")


def test_an_error_about_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, write_whole(tmp_path / "a"):
        Path("/nowhere/b").read_bytes()
    assert caught.value.filename == "/nowhere/b"


def test_a_full_disk_leaves_nothing(tmp_path: Path, small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        write_bytes(small_disk / "a", b"x" * 100_000)
    assert caught.value.filename == str(small_disk / "a")
    assert names(small_disk) == []
    journal = Journal(small_disk / "b", [{"line": 0}])
    journal.add({"line": 1})
    with pytest.raises(OSError, match="No space left"):
        journal.add({"line": "x" * 100_000})
    journal.close()
    assert lines_of(partial_path(small_disk / "b"), 1000) == [{"line": 0}, {"line": 1}]
    assert partial_path(small_disk / "b").read_bytes().endswith(b"}\n")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_reading_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 2048)
    assert read_bytes(path, 2048) == b"x" * 2048
    with pytest.raises(OSError, match="must have at most 1 KiB, and has more") as caught:
        read_bytes(path, 1024)
    assert caught.value.errno == errno.EFBIG
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "missing", 10)


KILLED = """
import sys, time
from vitcop_core.files import write_whole
with write_whole(sys.argv[1]) as stream:
    stream.write(b"half"); stream.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


def start(program: str, *arguments: object) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def kill(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_what_a_kill_leaves_is_removed_by_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    process, busy = start(KILLED, path), start(KILLED, tmp_path / "busy")
    kill(process)
    assert path.read_bytes() == b"old"
    assert len(names(tmp_path)) == 3
    write_bytes(tmp_path / "b", b"")
    left = [name for name in names(tmp_path) if name not in ("a", "b")]
    assert len(left) == 1  # that of the process that still writes
    assert left[0].startswith(".vitcop-")
    assert left[0].endswith(".unfinished")
    kill(busy)
    write_bytes(tmp_path / "b", b"")
    assert names(tmp_path) == ["a", "b"]


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a"
    contents = [bytes([number]) * 5000 for number in range(4)]
    faults: list[Exception] = []

    def write(content: bytes) -> None:
        try:
            for _ in range(100):
                write_bytes(path, content)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            assert path.read_bytes() in contents
    assert not faults
    assert names(tmp_path) == ["a"]


def test_a_journal_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("old\n")
    journal = Journal(path)
    journal.add(1)
    journal.add(2, 3)
    assert path.read_text() == "old\n"
    assert lines_of(journal.partial, 100) == [1, 2, 3]
    journal.finish()
    assert lines_of(path, 100) == [1, 2, 3]
    assert names(tmp_path) == ["a.jsonl"]
    journal = Journal(path, [1])
    journal.add(3)
    journal.add(2)
    journal.finish([1, 2, 3])
    assert lines_of(path, 100) == [1, 2, 3]
    assert names(tmp_path) == ["a.jsonl"]


JOURNAL = """
import sys
from vitcop_core.journal import Journal
journal = Journal(sys.argv[1])
print("open", flush=True)
for number in range(10 ** 6):
    journal.add({"line": number, "text": "x" * 500})
"""


def test_a_killed_journal_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    process = start(JOURNAL, path)
    with pytest.raises(BlockingIOError, match="another process is writing it"):
        Journal(path)
    time.sleep(0.2)
    kill(process)
    assert not path.exists()
    left = lines_of(partial_path(path), 2**30)
    assert [line["line"] for line in left] == list(range(len(left)))
    journal = Journal(path, left)
    journal.add("more")
    journal.finish()
    assert lines_of(path, 2**30) == [*left, "more"]


def test_a_torn_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'1\n{"a"\n2\n{"line')
    assert lines_of(path, 100) == [1, 2]


def test_files_needs_no_torch() -> None:
    program = "import sys, vitcop_core.journal; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
