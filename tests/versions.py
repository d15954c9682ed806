"""Run the tests of the model and of the meter under the first supported transformers and the newest on PyPI, or under
VERSION ..., with peft and lm_eval, which the lock does not hold.

Each goes with what it needs into a throwaway environment that takes everything else from this one.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

from nfcore.model import TRIED


ROOT = Path(__file__).resolve().parent.parent
TESTS = ("test_model.py", "test_convert.py", "test_ecosystem.py", "test_meter.py")


def environment(folder: str, wanted: list[str]) -> str:
    """The Python of a new environment in ``folder`` that holds ``wanted`` on top of what this one has."""
    venv.create(folder, symlinks=True)
    python = f"{folder}/bin/python"
    place = sysconfig.get_path("purelib", vars={"base": folder, "platbase": folder})
    Path(place, "below.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--upgrade"]
    subprocess.run([*pip, *wanted], check=True)
    return python


def main(versions: list[str]) -> int:
    path = os.pathsep.join([str(ROOT), str(ROOT / "book")])
    failed = []
    for version in versions or [f"{TRIED[0]}.*", ""]:
        with tempfile.TemporaryDirectory() as folder:
            python = environment(folder, [f"transformers=={version}" if version else "transformers", "peft", "lm_eval"])
            show = "import transformers; print(transformers.__version__)"
            found = subprocess.run([python, "-c", show], check=True, capture_output=True, text=True).stdout.strip()
            print(f"transformers {found}", flush=True)
            # A version nobody tried is to be tried, so that its warning is none of the errors.
            command = [python, "-m", "pytest", "-q", "-n0", "-rs", "-W", "default:nfcore was tested"]
            tests = [str(ROOT / "tests" / name) for name in TESTS]
            if subprocess.run([*command, *tests], cwd=ROOT, env={**os.environ, "PYTHONPATH": path}).returncode:
                failed.append(found)
    print(f"failed under transformers {', '.join(failed)}" if failed else "passed under all of them")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
