"""Start a server over the micro shop, run a command with its address, stop the server.

Run in the main environment: `python tests/clients/serve.py COMMAND …` (see `make test-clients`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from support.live import Process
from support.micro_shop import build


def main() -> int:
    kept = os.environ.get("DIFFGR2_MICRO_SHOP")
    with tempfile.TemporaryDirectory() as scratch:
        bundle = build(Path(kept or scratch)) / "bundle"
        with Process(bundle) as server:
            env = {
                **os.environ,
                "DIFFGR2_CLIENTS_URL": server.url,
                "DIFFGR2_CLIENTS_BUNDLE": str(bundle),
                # Some of the libraries call home when they are imported or used.
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                "HAYSTACK_TELEMETRY_ENABLED": "False",
                "HF_HUB_OFFLINE": "1",
            }
            return subprocess.run(sys.argv[1:], env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
