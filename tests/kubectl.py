"""A stand-in for kubectl that runs the pods of Jobs as processes of this machine, and keeps what it was asked for.

Of Jobs it knows what ``workflow/profiles/kubernetes`` uses. ``STAND_IN`` names the folder where each has its manifest,
its log and, once it has ended, its exit code.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path


FOLDER = Path(os.environ["STAND_IN"])


def create() -> None:
    manifest = json.load(sys.stdin)
    name = f"{manifest['metadata']['generateName']}{len(list(FOLDER.glob('*.json')))}"
    (FOLDER / f"{name}.json").write_text(json.dumps(manifest))
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    script = '"$@"; echo $? > "$0.ended"; mv "$0.ended" "$0.exit"'
    with open(FOLDER / f"{name}.log", "w") as log:
        process = subprocess.Popen(
            ["sh", "-c", script, str(FOLDER / name), *container["command"]],
            cwd=container["workingDir"],
            env={name: os.environ[name] for name in ("HOME", "PATH", "STAND_IN") if name in os.environ},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    (FOLDER / f"{name}.pid").write_text(str(process.pid))
    print(name, end="")


def get(name: str) -> None:
    if not (FOLDER / f"{name}.json").exists():
        return  # --ignore-not-found
    ended = FOLDER / f"{name}.exit"
    code = ended.read_text().strip() if ended.exists() else None
    print({None: "/", "0": "1/"}.get(code, "/1"), end="")


def delete(name: str) -> None:
    os.killpg(int((FOLDER / f"{name}.pid").read_text()), signal.SIGTERM)
    (FOLDER / f"{name}.json").rename(FOLDER / f"{name}.deleted")


if __name__ == "__main__":
    verb, *rest = [word for word in sys.argv[1:] if word != "job" and not word.startswith("--")]
    if verb == "create":
        create()
    for name in rest:
        {"get": get, "delete": delete}[verb](name)
