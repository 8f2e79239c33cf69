"""The one entry point for every check. ``nox`` runs the default ones, ``nox -s demo`` shows the library at work."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"
nox.options.error_on_external_run = True
nox.options.sessions = ["lint", "typecheck", "tests", "cross_check", "docs", "snippets", "build"]

ROOT = Path(__file__).parent
CONSTRAINTS = ROOT / "constraints.txt"
GROUPS = nox.project.load_toml(ROOT / "pyproject.toml")

CORE, CUDA, LLAVA, VIDEO, VLLM = (
    f"packages/{name}" for name in ("vitcop-core", "vitcop-cuda", "vitcop-llava", "vitcop-video", "vitcop-vllm")
)
PACKAGES = (CORE, CUDA, LLAVA, VIDEO)
RELEASED = (*PACKAGES, VLLM)  # vitcop-vllm installs without vLLM, and runs only beside it

# What `nox -s demo` runs: a held-out scene, questions about it, the picture of what survives, and what pruning saves on
# this machine. The scene is chosen, and its pages say so: every question about one of its shapes is answered right, and
# what Stage III keeps lies on the shape that the first question is about.
DEMO_SEED = "206"
DEMO_QUESTIONS = ("What shape is green?", "Where is the purple cross?", "What color is the square?")
DEMO_BENCH = (
    "vitcop bench --shape quarter --dtype float32 --method vitcop --retain 64 --repeats 3 --new-tokens 1 --brief"
)
DEMO_COMMANDS = (
    ("vitcop", "scene", "--seed", DEMO_SEED, "--out", "{folder}/scene.png", "--force"),
    *(("vitcop", "ask", "{folder}/scene.png", text, "--retain", "11.1%", "--compare") for text in DEMO_QUESTIONS),
    ("vitcop", "show", "{folder}/scene.png", DEMO_QUESTIONS[0], "--retain", "11.1%", "--out", "{folder}/survivors.png"),
    tuple(DEMO_BENCH.split()),
)

FIND_DEMO_WEIGHTS = "import pathlib, vitcop_llava, vitcop_video; " + (
    "folders = [pathlib.Path(package.__file__).parent for package in (vitcop_llava, vitcop_video)]; "
    "assert all(list(folder.glob('**/demo/weights/*.safetensors')) for folder in folders), 'a wheel has no weights'"
)

if sys.version_info < (3, 11):  # noqa: UP036  (nox itself runs on older versions)
    raise SystemExit(f"vitcop needs Python 3.11 or newer; nox runs on {sys.version.split()[0]}")


def install(session: nox.Session, *requirements: str) -> None:
    """Installs at the pinned versions only: without them pip would take the newest torch, with gigabytes of CUDA."""
    session.install("--constraint", str(CONSTRAINTS), *requirements)


def install_group(session: nox.Session, group: str) -> None:
    install(session, *nox.project.dependency_groups(GROUPS, group))


# What the sessions use of packages beyond pruning and reading: the command line, the demo, a second reader of videos.
EXTRAS = {LLAVA: "[tools]", VIDEO: "[tools,decord]"}


def install_packages(session: nox.Session, *packages: str, extras: bool = True) -> None:
    """Installs packages of this repository as editable, built with the session's own setuptools and torch."""
    install(session, "setuptools", "wheel")
    if CUDA in packages:
        install_group(session, "kernels")
    named = [package + EXTRAS.get(package, "") if extras else package for package in packages]
    install(session, "--no-build-isolation", *(part for package in named for part in ("--editable", package)))


def install_torchcodec(session: nox.Session) -> None:
    """Installs a reader of video that is optional, without what its metadata would bring along."""
    # Where the system has no FFmpeg it cannot be imported, and what would use it is skipped with that reason.
    install(session, "--no-deps", "torchcodec")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting with ruff."""
    install_group(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def typecheck(session: nox.Session) -> None:
    """Check types with mypy --strict: sources, tests, scripts, noxfile.py and docs/conf.py."""
    install_group(session, "typecheck")
    install_group(session, "kernels")  # for its tests; the Python of vitcop-cuda itself is read from its folder
    install_packages(session, CORE, LLAVA, VIDEO)
    install_torchcodec(session)
    session.run(
        "mypy",
        *("noxfile.py", "conftest.py", "docs/conf.py", "docs/benchmarks/render.py", "scripts"),
        *(f"{package}/src" for package in RELEASED),
    )
    # One run a folder: test modules are no packages, and their names repeat.
    for folder in ("tests", "tests_lmms", *(f"{package}/tests" for package in RELEASED)):
        if any((ROOT / folder).rglob("*.py")):
            session.run("mypy", folder)


# One process a core: tests take one thread each, and share nothing. With two threads each, those that wait take the
# cores from those that work: the core's tests took 57 s instead of 21 on two cores.
PARALLEL = ("-n", "auto")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@nox.session
def tests(session: nox.Session) -> None:
    """Run the whole test suite; arguments after -- go to pytest."""
    for group in ("test", "ray"):
        install_group(session, group)
    install_packages(session, *RELEASED)
    install_torchcodec(session)
    if session.posargs:
        session.run("pytest", *session.posargs, env=ONE_THREAD)
        return
    # What a GPU would be asked to do, as far as a CPU can: nobody may find out there that a step does not start.
    trial = str(Path(session.create_tmp()) / "gpu-check")
    session.run("python", "scripts/gpu_check.py", "--dry-run", trial, env=ONE_THREAD)
    # On the references; below, where vitcop-cuda is loaded, the same tests run on the kernels.
    session.run("pytest", "-q", *PARALLEL, CORE, env=ONE_THREAD)
    # Apart from the environment, which it would break: transformers' own processor of clips, to compare with.
    folder = Path(session.create_tmp()) / "torchvision"
    install(session, "--no-deps", "--upgrade", "--target", str(folder), "torchvision")
    # The packages are named: only then does pytest know the options that their conftest.py add.
    session.run("pytest", *PARALLEL, f"--torchvision={folder}", *PACKAGES, "tests", env=ONE_THREAD)


# What holds of pruning whatever is installed beside it, and of prefixes in files.
LEAN = ("lean_import", "keep_all", "batches", "decoding", "conversations", "leaves_nothing", "prefix", "prefix_store")
NOT_LEAN = (
    "from importlib.util import find_spec; "
    "found = [name for name in ('PIL', 'matplotlib') if find_spec(name)]; assert not found, found"
)


@nox.session
def lean(session: nox.Session) -> None:
    """Run the properties of pruning with torch, transformers, numpy and safetensors alone."""
    install_group(session, "lean")
    install_packages(session, CORE, LLAVA, extras=False)
    session.run("python", "-c", NOT_LEAN)
    session.run("vitcop", silent=True, success_codes=[2])
    session.run("pytest", "-q", *PARALLEL, *(f"{LLAVA}/tests/test_{name}.py" for name in LEAN), env=ONE_THREAD)


@nox.session
def transformers_suite(session: nox.Session) -> None:
    """Run transformers' own tests with every model pruned; -- FOLDER is a checkout, or a part of one."""
    if not session.posargs:
        session.error("give the folder that has transformers' tests in it: nox -s transformers_suite -- FOLDER")
    install_group(session, "transformers-suite")
    install_packages(session, CORE, LLAVA, VIDEO)
    session.run("python", "-m", "transformers_suite", *session.posargs, env={"PYTHONPATH": str(ROOT / "tests")})


# How vLLM runs on any machine that has no GPU, and asks nobody about anything.
ON_CPUS = ONE_THREAD | {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_PLUGINS": "vitcop",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}


@nox.session
def vllm(session: nox.Session) -> None:
    """Test vitcop-vllm beside vLLM for CPUs, in an environment of its own; arguments after -- go to pytest."""

    def add(*requirements: str) -> None:
        session.install("--constraint", str(ROOT / "constraints-vllm.txt"), *requirements)

    add("setuptools", "wheel", "torch")
    add("--no-deps", *nox.project.dependency_groups(GROUPS, "vllm-alone"))
    add(*nox.project.dependency_groups(GROUPS, "vllm"))
    add("--no-build-isolation", *(part for package in (CORE, LLAVA, VLLM) for part in ("--editable", package)))
    module = ROOT / VLLM / "tests" / "support" / "torchvision_schemas.py"
    where = session.run("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", silent=True)
    packages = Path(str(where).strip())
    shutil.copy(module, packages)
    (packages / "torchvision_schemas.pth").write_text("import torchvision_schemas\n")
    # Warnings of vLLM and of what it brings are none of ours.
    session.run("pytest", "-W", "default", *(session.posargs or (f"{VLLM}/tests", "--durations=5")), env=ON_CPUS)


@nox.session
def lmms(session: nox.Session) -> None:
    """Test the models and tasks for lmms-eval beside it, in an environment of its own; arguments after -- to pytest."""
    install_packages(session, CORE, LLAVA, VIDEO)
    offline = install_lmms_eval(session)
    # What lmms-eval and its libraries warn of is none of our business.
    session.run("pytest", "-W", "default", *(session.posargs or ["tests_lmms"]), env=ONE_THREAD | offline)


def install_lmms_eval(session: nox.Session) -> dict[str, str]:
    """Install lmms-eval; return the environment in which it looks for nothing on a network."""
    install_group(session, "lmms")
    # What it asks for: torchvision, which breaks transformers beside a torch for CPUs, and an older PyAV than ours.
    install(session, "--no-deps", "lmms-eval")
    return {"HF_HUB_OFFLINE": "1", "HF_HOME": str(session.create_tmp())}


# What goes through the kernels in a process that sanitizers watch.
SANITIZED = [f"{CUDA}/tests/test_{name}.py" for name in ("matches_reference", "properties", "bad_input")]
RACE_CHECK = f"{CUDA}/tests/native/race_check.cpp"
SANITIZERS = {"thread": [], "address,undefined": ["-fno-sanitize-recover=undefined"]}


@nox.session
def cross_check(session: nox.Session) -> None:
    """Run the kernels' tests under sanitizers and compile the CUDA code; -- --require-nvcc fails without nvcc."""
    for group in ("test", "kernels"):
        install_group(session, group)
    install_packages(session, CORE)  # the tests build the kernels, with sanitizers
    install(session, "tqdm")
    libraries = [runtime_library(session, name) for name in ("libasan.so", "libubsan.so")]
    # Leaks are none of its business here: Python keeps much until it ends. test_memory.py watches the kernels.
    watched = {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0", **ONE_THREAD}
    # Threads at real barriers are slow there; the program below runs them under the same sanitizers.
    session.run("pytest", "-q", *PARALLEL, "--sanitize=address", "-k", "not threads", *SANITIZED, env=watched)

    # Without torch, whose own threads ThreadSanitizer does not understand.
    flags = ["-std=c++20", "-O1", "-g", "-ffp-contract=off", f"-I{CUDA}/csrc", f"-I{CUDA}/csrc/include", "-pthread"]
    for name, more in SANITIZERS.items():
        program = str(Path(session.create_tmp()) / f"race_check_{name.partition(',')[0]}")
        command = ("g++", *flags, f"-fsanitize={name}", *more, RACE_CHECK, "-o", program)
        session.run(*command, external=True)
        session.run(program, external=True)
    session.run("python", "scripts/cuda_compile.py", *session.posargs)


def runtime_library(session: nox.Session, name: str) -> str:
    """Where the compiler keeps a sanitizer's library, which has to be loaded before the interpreter's own."""
    found = str(session.run("gcc", f"-print-file-name={name}", silent=True, external=True)).strip()
    if not Path(found).is_absolute():
        session.error(f"the compiler has no {name}")
    return found


# The ends of what the metadata allows: its lower bounds, and the newest releases that were tried.
OLDEST_TORCH, OLDEST_OTHERS = "torch==2.11.0", ("transformers==5.17.0", "av==15.0.0")
NEWEST_TORCH, NEWEST_OTHERS = "torch==2.14.1", ("transformers==5.24.0", "av==18.1.0")

# These have CUDA, and get of NVIDIA's libraries only two small ones; the rest are empty files.
TORCH_COMES_WITH = ("nvidia-cuda-runtime==13.0.96", "nvidia-cuda-cupti==13.0.85")
TORCH_NEEDS = ("filelock", "fsspec", "jinja2", "networkx", "sympy", "typing-extensions", "setuptools>=77,<82")


def install_torch(session: nox.Session, torch: str) -> str:
    """An interpreter with another torch than the pinned one, as built for CUDA: 540 MB, kept from run to run."""
    folder = Path(session.create_tmp()) / torch
    python = str(folder / "bin" / "python")
    pip = (python, "-m", "pip", "install", "-q")
    if not (folder / "complete").exists():
        session.run("python", "-m", "venv", "--clear", str(folder))
        session.run(*pip, *TORCH_NEEDS, external=True)
        session.run(*pip, "-c", str(CONSTRAINTS), "numpy", "wheel", "ninja", "pybind11", external=True)
        session.run(*pip, "--no-deps", torch, *TORCH_COMES_WITH, external=True)
        session.run(python, "scripts/torch_without_nvidia.py", external=True)
        (folder / "complete").touch()
    return python


def copy_of_kernels(session: nox.Session) -> Path:
    """A copy of vitcop-cuda to build from: beside the sources lie kernels that were built for another torch."""
    sources = Path(session.create_tmp()) / "vitcop-cuda"
    shutil.rmtree(sources, ignore_errors=True)
    shutil.copytree(ROOT / CUDA, sources, ignore=shutil.ignore_patterns("build", "*.so", "*.egg-info"))
    return sources


# What a session compiles the CUDA kernels for where there is no GPU to tell.
BUILT_FOR = {"TORCH_CUDA_ARCH_LIST": "9.0"}


@nox.session
def abi(session: nox.Session) -> None:
    """Build one wheel of vitcop-cuda, CUDA included, with the oldest torch; run it with that and the pinned one."""
    oldest = install_torch(session, OLDEST_TORCH)
    wheels = Path(session.create_tmp()) / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    make_wheel = ("-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", str(wheels))
    session.run(oldest, *make_wheel, str(copy_of_kernels(session)), env=BUILT_FOR, external=True)
    (wheel,) = map(str, wheels.glob("*.whl"))
    session.run(oldest, "scripts/abi_check.py", "symbols", wheel, external=True)

    install(session, "torch", "numpy", "pybind11")
    for python in (oldest, "python"):
        forced = ("-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", f"./{CORE}", wheel)
        session.run(python, *forced, external=True)
        session.run(python, "scripts/abi_check.py", "run", external=True)


# What goes with one release of torch or transformers comes without a pin, and what asks for torch without its
# dependencies: those of its build for CUDA are gigabytes.
GO_WITH_THEM = ("torch", "huggingface-hub", "tokenizers", "torchcodec", "torchvision", "setuptools")
ASK_FOR_TORCH = ("accelerate", "peft", "torchao")
RUN_ON = ("psutil", "decord", "matplotlib", "pillow", "rich", "safetensors", "tqdm", "typer")


def run_suite_on(session: nox.Session, torch: str, others: tuple[str, ...]) -> None:
    """Runs the tests, or what the session is given, on these versions; everything else is as pinned."""
    python = install_torch(session, torch)
    folder = Path(session.create_tmp())
    pins = folder / "constraints.txt"
    unpinned = {*GO_WITH_THEM, *(each.partition("==")[0] for each in others)}
    kept = (line for line in CONSTRAINTS.read_text().splitlines() if line.partition("==")[0] not in unpinned)
    pins.write_text("\n".join(kept))
    pip = (python, "-m", "pip", "install", "-q", "-c", str(pins))
    test = [name for name in nox.project.dependency_groups(GROUPS, "test", "ray") if name not in ASK_FOR_TORCH]
    session.run(*pip, *others, *RUN_ON, *test, external=True)
    session.run(*pip, "--no-deps", *ASK_FOR_TORCH, external=True)

    ours = (
        *(part for package in (CORE, LLAVA, VIDEO, VLLM) for part in ("--editable", package)),
        str(copy_of_kernels(session)),
    )
    session.run(*pip, "--no-deps", "--no-build-isolation", "--force-reinstall", *ours, env=BUILT_FOR, external=True)
    arguments = session.posargs or (*PARALLEL, *PACKAGES, "tests")
    session.run(python, "-m", "pytest", *arguments, env=ONE_THREAD, external=True)


@nox.session
def oldest(session: nox.Session) -> None:
    """Run the whole test suite on the oldest torch, transformers and PyAV there may be; -- gives pytest arguments."""
    run_suite_on(session, OLDEST_TORCH, OLDEST_OTHERS)


@nox.session
def newest(session: nox.Session) -> None:
    """Run the whole test suite on the newest torch and transformers that were tried; -- gives pytest arguments."""
    run_suite_on(session, NEWEST_TORCH, NEWEST_OTHERS)


@nox.session
def ordeal(session: nox.Session) -> None:
    """Try 100,000 damaged inputs, 10,000 requests and 50 kills of every command; -- --short takes a minute."""
    install_group(session, "test")
    install_packages(session, CORE, LLAVA, VIDEO)
    offline = install_lmms_eval(session)
    path = {"PYTHONPATH": str(ROOT / "tests")}
    session.run("python", "-m", "ordeal", *session.posargs, env=ONE_THREAD | offline | path)


@nox.session(venv_backend="none")
def gpu(session: nox.Session) -> None:
    """Build, check and measure on a GPU, with the Python and torch that are there; -- [--second] FOLDER."""
    session.run("python3", "scripts/gpu_check.py", *(session.posargs or ["docs/benchmarks/gpu"]), external=True)


@nox.session
def demo(session: nox.Session) -> None:
    """See pruning work: answers, a picture of what survives, and the time saved on this machine."""
    install_packages(session, CORE, LLAVA)
    folder = ROOT / "demo-output"
    folder.mkdir(exist_ok=True)
    (folder / "survivors.png").unlink(missing_ok=True)
    for command in DEMO_COMMANDS:
        session.run(*(argument.format(folder=folder) for argument in command))
    session.log(f"pictures: {folder}")


@nox.session
def figures(session: nox.Session) -> None:
    """Make the tables and pictures of README and docs again, from the stored results and the demo models."""
    install_packages(session, *RELEASED)
    session.run("python", "docs/benchmarks/render.py")
    session.run("python", "scripts/checkpoints.py")
    folder = session.create_tmp()
    target = "docs/images/survivors.png"
    session.run("vitcop", "scene", "--seed", DEMO_SEED, "--out", f"{folder}/scene.png", "--force")
    show = ("vitcop", "show", f"{folder}/scene.png", DEMO_QUESTIONS[0], "--retain", "11.1%")
    session.run(*show, "--out", target, "--force")
    session.run("python", "-m", "vitcop_video.demo.sheet", "--seed", "3", "--out", "docs/images/demo-clip.png")
    session.run("vitcop", "scene", "--clip", "--seed", "3", "--out", f"{folder}/clip.mp4", "--force")
    target = "docs/images/contact-sheet.png"
    session.run("vitcop", "show", f"{folder}/clip.mp4", "What happens first?", "--out", target, "--force")


# The published comparisons of the demo model, by the name that their results are stored under.
COMPARISONS = {
    "comparison": (),
    "table-4": ("--preset", "table-4", "--retain", "1/3,2/9,1/9,1/18"),
    "table-7": ("--preset", "table-7", "--retain", "1/3,2/9,1/9,1/18"),
    "official": ("--method", 'vitcop, vitcop(compat="official")', "--retain", "1/3,2/9,1/9"),
    "signals": (
        *("--method", 'vitcop, vitcop(vision_saliency="received"), vitcop(cutoff_distance="auto")'),
        *("--method", 'earlyvitcop, earlyvitcop(ranking="layer0")', "--retain", "1/3,2/9,1/9,1/18"),
    ),
}
CLIPS = "demo-clips"
COMPARED_CLIPS = (
    *("--questions", f"{CLIPS}/questions.jsonl", "--retain", "1/3,1/9,1/18", "--max-new-tokens", "8"),
    *("--method", "vitcop(layers=(1, 6)), vitcop(layers=(1, 6), cluster_frames=8)"),
    *("--method", "visionzip, sparsevlm, pyramiddrop, fastv"),
)
CLIP_SIGNALS = (
    *("--questions", f"{CLIPS}/questions.jsonl", "--retain", "1/3,1/9,1/18", "--max-new-tokens", "8"),
    *("--method", 'vitcop(layers=(1, 6)), vitcop(layers=(1, 6), cutoff_distance="auto")'),
)


@nox.session
def comparisons(session: nox.Session) -> None:
    """Measure the published comparisons of the demo models again, and store the results."""
    install_packages(session, CORE, LLAVA, VIDEO)
    session.run("python", "-m", "vitcop_video.demo.files", "--clips", "500", "--out", CLIPS)
    for name, arguments in (COMPARISONS | {"clips": COMPARED_CLIPS, "clip-signals": CLIP_SIGNALS}).items():
        folder = Path(session.create_tmp()) / name
        session.run("vitcop", "compare", *arguments, "--device", "cpu", "--out", str(folder), "--force")
        shutil.copy(folder / "result.json", ROOT / "docs" / "benchmarks" / f"demo-{name}.json")


@nox.session
def docs(session: nox.Session) -> None:
    """Run the doctests and build the pages with Sphinx, warnings as errors."""
    install_group(session, "docs")
    install_packages(session, CORE, LLAVA, VIDEO, VLLM)
    for builder in ("doctest", "html"):
        session.run("sphinx-build", "-W", "-n", "--keep-going", "-b", builder, "docs", f"docs/_build/{builder}")


@nox.session
def snippets(session: nox.Session) -> None:
    """Follow README.md and docs/start.md literally in an empty environment; -- --suite runs the tests too."""
    install_group(session, "snippets")
    install(session, "setuptools", "wheel")
    wheels = Path(session.create_tmp()) / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    for package in (CORE, LLAVA, VIDEO, VLLM):
        session.run("python", "-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), package, silent=True)
    session.run("python", "scripts/follow_docs.py", str(wheels), *session.posargs)


# What pip install and README's example may take from an empty environment, with torch near at hand.
EXAMPLE_SECONDS = "180"


@nox.session
def build(session: nox.Session) -> None:
    """Build wheels and source distributions into dist/; in fresh environments, run README's example and import all."""
    install_group(session, "build")
    install_group(session, "kernels")
    install(session, "setuptools", "wheel")
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    for package in RELEASED:  # the wheel is built from the source distribution, so that this one is known to be whole
        session.run("python", "-m", "build", "--no-isolation", "--outdir", str(dist), package)
    session.run("twine", "check", "--strict", *map(str, sorted(dist.iterdir())))
    session.run("python", "scripts/follow_docs.py", str(dist), "--example", EXAMPLE_SECONDS)

    fresh = Path(session.create_tmp()) / "fresh"
    session.run("python", "-m", "venv", "--clear", str(fresh))
    python = str(fresh / "bin" / "python")
    wheels = sorted(map(str, dist.glob("*.whl")))
    session.run(python, "-m", "pip", "install", "-q", "-c", str(CONSTRAINTS), *wheels, external=True)
    names = sorted(Path(package).name.replace("-", "_") for package in RELEASED)
    report = "import {0}; print('{0}', {0}.__version__)"
    for name in names:
        session.run(python, "-I", "-W", "error", "-c", report.format(name), external=True)
    session.run(python, "-I", "-c", FIND_DEMO_WEIGHTS, external=True)
    # The wheels bring what pruning needs; the command says what it needs beyond that.
    vitcop = (str(fresh / "bin" / "vitcop"), "--help")
    session.run(*vitcop, silent=True, external=True, success_codes=[2])
    tools = [f"{wheel}[tools]" for wheel in wheels if Path(wheel).name.startswith("vitcop_llava-")]
    session.run(python, "-m", "pip", "install", "-q", "-c", str(CONSTRAINTS), *tools, external=True)
    session.run(*vitcop, silent=True, external=True)
