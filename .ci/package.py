"""Build sdist and wheel, check what is in them, and use both without the checkout.

python .ci/package.py  # in an environment with the extra [test]

The environments are clean of everything but what is installed here: the dependencies are those of
the calling environment, read from beside it, so that torch is not downloaded twice.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
BESIDE = {
    *("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "README.md"),
    *("pyproject.toml", "setup.cfg"),
}
SMOKE = """
import sys, torch, sj_prune
from spikingjelly.activation_based import functional, layer, neuron
from sj_prune.reports.catalogue import published
assert sj_prune.__file__.startswith(sys.prefix), sj_prune.__file__
net = torch.nn.Sequential(layer.Linear(64, 64), neuron.LIFNode(), layer.Linear(64, 8))
functional.set_step_mode(net, "m")
x_seq = 4 * torch.rand(4, 2, 64)
net, report = sj_prune.prune(net, [(x_seq, None)], sj_prune.methods.Magnitude(sparsity=0.9))
fast = sj_prune.deploy(net, x_seq)
weights = f'{report.totals["weights"]} => {report.totals["weights_kept"]} weights deployed'
print(f"sj_prune {sj_prune.__version__}: {len(list(published()))} methods, {weights}")
"""


def run(*command: object, **options: object) -> str:
    """Run a program; what it says is shown if it fails."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def check(kind: str, found: set[str], wanted: set[str]) -> None:
    """End with what is missing from an archive and what should not be there."""
    if found != wanted:
        sys.exit(f"{kind} lacks {sorted(wanted - found)} and has {sorted(found - wanted)} beside")
    print(f"{kind}: {len(found)} files, as tracked")


def contents(folder: Path, library: set[str]) -> None:
    """Check that the archives hold the library's tracked files, and no tests."""
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    check("wheel", names, library)
    with tarfile.open(sdist) as archive:
        files = [member.name.partition("/")[2] for member in archive if member.isfile()]
    names = {name for name in files if ".egg-info/" not in name and name != "PKG-INFO"}
    check("sdist", names, library | BESIDE)


def use(archive: Path, folder: Path) -> None:
    """Install an archive into an environment of its own, and prune and deploy with it."""
    home = folder / archive.suffix.strip(".")
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    run(python, "-m", "pip", "install", "-q", "--no-deps", archive, env=clean, cwd=folder)
    (site,) = home.glob("lib/python*/site-packages")
    (site / "zz_dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    clean |= {"SJ_PRUNE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    print(f"{archive.name}:", run(python, "-c", SMOKE, env=clean, cwd=folder).strip())
    run(python, "-m", "sj_prune", "methods", env=clean, cwd=folder)


def main() -> None:
    tracked = set(run("git", "ls-files", "sj_prune", cwd=ROOT).splitlines())
    version = (ROOT / "sj_prune" / "_version.py").read_text().split('"')[-2]
    if f"\nversion: {version}\n" not in (ROOT / "CITATION.cff").read_text():
        sys.exit(f"CITATION.cff has another version than {version}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # What is committed, without what an editable install has left here.
        run("git", "archive", "-o", folder / "tree.tar", "HEAD", cwd=ROOT)
        shutil.unpack_archive(folder / "tree.tar", folder / "tree")
        # The wheel is made of the sdist.
        run(sys.executable, "-m", "build", "-o", folder, folder / "tree")
        contents(folder, tracked)
        for archive in sorted(folder.glob("sj_prune-*")):
            use(archive, folder)


if __name__ == "__main__":
    main()
