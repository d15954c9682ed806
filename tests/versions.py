"""Run the tests of the model under the first supported transformers and the newest on PyPI, or under VERSION ...

Each goes with what it needs (torch is not among that) into a throwaway folder that comes before this environment.
"""

import os
import subprocess
import sys
import tempfile

from nfcore.model import TRIED


TESTS = ("tests/test_model.py", "tests/test_convert.py", "tests/test_ecosystem.py")


def main(versions: list[str]) -> int:
    failed = []
    for version in versions or [f"{TRIED[0]}.*", ""]:
        wanted = f"transformers=={version}" if version else "transformers"
        with tempfile.TemporaryDirectory() as folder:
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, wanted]
            subprocess.run(install, check=True)
            path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
            environment = {**os.environ, "PYTHONPATH": path}
            found = subprocess.run(
                [sys.executable, "-c", "import transformers; print(transformers.__version__)"],
                env=environment,
                check=True,
                capture_output=True,
                text=True,
            ).stdout.strip()
            print(f"transformers {found}", flush=True)
            # A version nobody tried is to be tried, so that its warning is none of the errors.
            command = [sys.executable, "-m", "pytest", "-q", "-n0", "-W", "default:nfcore was tested", *TESTS]
            if subprocess.run(command, env=environment).returncode:
                failed.append(found)
    print(f"failed under transformers {', '.join(failed)}" if failed else "passed under all of them")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
