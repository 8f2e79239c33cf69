"""Follow README.md and docs/start.md literally: run every snippet as printed, in an environment that has nothing.

``nox -s snippets`` builds the wheels and calls this. What a reader is taken to have is made first: a clone of the
repository, a photo, a scene and a clip, and folders with the names of the checkpoints, which hold the demo models. The
packages come from the wheels, everything else from where pip finds it, at the versions of constraints.txt.

The test command is left out unless ``--suite`` is given: it is what CI runs anyway, and takes as long. What starts
vLLM is left out too: it takes another transformers, and ``nox -s vllm`` starts it. With ``--example SECONDS`` only the
first install line of README.md and its example are run, and may take that long together.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/start.md")
SUITE = "python3 -m nox -s tests"

# The checkpoints that the pages name, and the demo model that stands in for each.
CHECKPOINTS = {
    "llava-hf/llava-1.5-7b-hf": "packages/vitcop-llava/src/vitcop_llava/tools/demo/weights",
    "llava-hf/LLaVA-NeXT-Video-7B-hf": "packages/vitcop-video/src/vitcop_video/demo/weights",
}

# The first page installs no command line yet.
DRAW = """
from vitcop_llava.tools.demo.scenes import render, sample_scene
render(sample_scene(34)).convert("RGB").save("photo.jpg")
"""

# What a reader of the pages has, made once the package that can make it is installed.
FILES = {
    "vitcop-llava": f"""python3 -c '{DRAW}' """,
    "vitcop-video": "vitcop scene --clip --seed 3 --out clip.mp4",
}

# Runs the Python of one page from top to bottom, as a reader would who pastes one snippet after the other.
PASTE = """
import json, sys
names = {"__name__": "__main__"}
for place, source in json.load(sys.stdin):
    print(">>>", place, flush=True)
    exec(compile(source, place, "exec"), names)
"""


@dataclass(frozen=True)
class Snippet:
    """One fenced block of a page.

    Attributes:
        place: Page and line, as in ``README.md:12``.
        language: What the fence says: ``"python"`` or ``"console"``.
        source: The text between the fences.
    """

    place: str
    language: str
    source: str

    def commands(self) -> Iterator[str]:
        """Yield the commands of a console block; where some lines begin with ``$``, the others are output."""
        lines = [line for line in self.source.replace("\\\n", " ").splitlines() if line.strip()]
        prompted = [line[2:] for line in lines if line.startswith("$ ")]
        yield from prompted or lines


def find_links() -> list[str]:
    """Return where pip looks for wheels already; the environment variable that adds a folder would replace these."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True)
    settings = (line.partition("=") for line in listed.stdout.splitlines())
    return [link for key, _, value in settings if key.endswith(".find-links") for link in shlex.split(value.strip("'"))]


def snippets(page: str) -> list[Snippet]:
    """Return every fenced block of ``page`` in its order.

    Raises:
        ValueError: A block is in a language that this script cannot run.
    """
    found = []
    for token in MarkdownIt().parse((ROOT / page).read_text(encoding="utf-8")):
        if token.type != "fence" or token.map is None:
            continue
        place = f"{page}:{token.map[0] + 1}"
        if token.info not in ("python", "console"):
            raise ValueError(f"{place}: a snippet must be python or console, got {token.info!r}")
        found.append(Snippet(place, token.info, token.content))
    return found


class Reader:
    """Somebody with a clone, an empty environment and a few files."""

    def __init__(self, folder: Path, wheels: Path) -> None:
        self.folder = folder / "vitcop"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(self.folder)], check=True)
        for name in PAGES:  # with what is not committed yet
            shutil.copy(ROOT / name, self.folder / name)
        venv.create(folder / "empty", with_pip=True)
        unwanted = ("PYTHONPATH", "VIRTUAL_ENV")
        self.environment = {name: value for name, value in os.environ.items() if name not in unwanted} | {
            "PATH": f"{folder / 'empty' / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PIP_FIND_LINKS": " ".join((str(wheels), *find_links())),
            "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
            "HF_HUB_OFFLINE": "1",
        }
        self.missing = set(FILES)
        self.failed: list[str] = []

    def run(self, place: str, shown: str, command: list[str], text: str = "") -> None:
        """Run ``command`` in the clone, with ``text`` as its input, and say what became of it."""
        print(f"\n=== {place}: {shown}", flush=True)
        begin = time.monotonic()
        done = subprocess.run(command, cwd=self.folder, env=self.environment, input=text, text=True)
        took = f"{time.monotonic() - begin:.0f} s"
        print(f"=== {place}: {'ok' if done.returncode == 0 else f'exit code {done.returncode}'}, {took}", flush=True)
        if done.returncode != 0:
            self.failed.append(f"{place}: {shown}")

    def get_files(self, installed: str) -> None:
        """Make what the pages speak of, with vitcop's own command once the package that has it is installed."""
        for name, weights in CHECKPOINTS.items():
            if weights.startswith(f"packages/{installed}/"):
                shutil.copytree(ROOT / weights, self.folder / name)
        self.run(f"after {installed}", "files that the pages speak of", ["bash", "-euc", FILES[installed]])

    def follow(self, page: str, suite: bool) -> None:
        """Run the console blocks of ``page`` line by line, then its Python from top to bottom."""
        blocks = snippets(page)
        for block in blocks:
            for command in block.commands() if block.language == "console" else ():
                if command == SUITE and not suite:
                    print(f"\n=== {block.place}: {command}: not run, give --suite", flush=True)
                    continue
                if command.startswith("vllm "):
                    print(
                        f"\n=== {block.place}: {command}: not run, there is no vLLM beside this transformers",
                        flush=True,
                    )
                    continue
                self.run(block.place, command, ["bash", "-euc", command])
                words = shlex.split(command, comments=True)
                named = {word.partition("[")[0] for word in words[2:]} if words[:2] == ["pip", "install"] else set()
                for package in sorted(named & self.missing):
                    self.missing.remove(package)
                    self.get_files(package)
        self.paste(page, blocks)

    def paste(self, page: str, blocks: list[Snippet]) -> None:
        """Run the Python of some blocks of ``page`` from top to bottom."""
        python = [(block.place, block.source) for block in blocks if block.language == "python"]
        self.run(page, f"{len(python)} Python snippets", ["python3", "-c", PASTE], json.dumps(python))

    def follow_example(self, seconds: float) -> None:
        """Run what README.md begins with: install, and the example. Both together may take so many seconds."""
        page = PAGES[0]
        install, example, *_ = snippets(page)
        begin = time.monotonic()
        for command in install.commands():
            self.run(install.place, command, ["bash", "-euc", command])
        self.get_files("vitcop-llava")
        self.paste(page, [example])
        took = time.monotonic() - begin
        print(f"\n=== {page}: from an empty environment to the answer in {took:.0f} s", flush=True)
        if took > seconds:
            self.failed.append(f"{page}: the example took {took:.0f} s, and may take {seconds:.0f} s")


def main() -> None:
    """Follow the pages, and exit with 1 if a snippet failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("wheels", type=Path, help="the folder with the wheels of vitcop's packages")
    parser.add_argument("--suite", action="store_true", help="run the test command too")
    parser.add_argument("--example", type=float, metavar="SECONDS", help="only install and run README's example")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        reader = Reader(Path(folder), arguments.wheels.resolve())
        if arguments.example is not None:
            reader.follow_example(arguments.example)
        else:
            for page in PAGES:
                reader.follow(page, arguments.suite)
    print("\n" + ("\n".join(("failed:", *reader.failed)) if reader.failed else "every snippet runs as printed"))
    sys.exit(1 if reader.failed else 0)


if __name__ == "__main__":
    main()
