"""The files in deploy/ and the Dockerfile say what the command line knows, and are hardened.

They are parsed, not run: neither a container engine nor systemd is asked for here.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from diffgr2.cli.serve import serve
from diffgr2.errors import ArtifactError, CheckpointError, ConfigError
from diffgr2.serve.limits import PUBLIC, Limits

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
SERVICE = COMPOSE["services"]["diffgr2"]
HEALTH = re.compile(r"http://127\.0\.0\.1:(\d+)(/[\w/]+)")


def unit() -> dict[str, list[str]]:
    """Every key of the unit file with its values, in order."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in (ROOT / "deploy" / "diffgr2.service").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            section = line.strip("[]")
            continue
        key, equals, value = line.partition("=")
        assert equals, line
        assert section in ("Unit", "Service", "Install")
        found.setdefault(key, []).append(value)
    return found


UNIT = unit()


def image() -> dict[str, list[str]]:
    """The Dockerfile's last stage: instruction -> arguments."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for line in text.rpartition("\nFROM ")[2].splitlines()[1:]:
        if line and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            found.setdefault(word, []).append(rest.strip())
    return found


IMAGE = image()


def environment(lines: list[str]) -> dict[str, str]:
    return dict(pair.split("=", 1) for line in lines for pair in shlex.split(line))


SETTINGS = {
    "image": environment(IMAGE["ENV"]),
    "compose": {**environment(IMAGE["ENV"]), **SERVICE["environment"]},
    "unit": environment(UNIT["Environment"]),
}


def command() -> Any:
    app = typer.Typer(add_completion=False)
    app.command()(serve)
    return typer.main.get_command(app)


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_options_with_values_that_they_take(name: str, monkeypatch) -> None:
    known = {parameter.envvar for parameter in command().params}
    ours = {key: value for key, value in SETTINGS[name].items() if key.startswith("DIFFGR2_")}
    assert len(ours) >= 3
    assert set(ours) <= known
    for key, value in ours.items():
        assert isinstance(value, str), f"{key}: quote it, YAML has its own ideas"
        monkeypatch.setenv(key, value)
    values = command().make_context("serve", []).params
    assert values["models"] == [ours["DIFFGR2_MODEL"]]
    assert values["port"] == 8000
    assert values["host"] == ("127.0.0.1" if name == "unit" else "0.0.0.0")
    if name != "image":
        assert values["keys_file"] == Path("/etc/diffgr2/keys.txt")
        assert values["log"] is True
        assert values["drain"] == 30.0


def test_a_stop_waits_longer_than_the_drain() -> None:
    drain = float(SETTINGS["compose"]["DIFFGR2_DRAIN"])
    assert drain + 5 <= float(SERVICE["stop_grace_period"].removesuffix("s"))
    assert float(SETTINGS["unit"]["DIFFGR2_DRAIN"]) + 5 <= float(UNIT["TimeoutStopSec"][0])
    assert SERVICE["stop_signal"] == IMAGE["STOPSIGNAL"][0] == UNIT["KillSignal"][0] == "SIGTERM"
    assert UNIT["KillMode"] == ["mixed"]


def test_health_is_asked_on_the_route_that_needs_no_key() -> None:
    asked = [SERVICE["healthcheck"]["test"][-1], IMAGE["HEALTHCHECK"][0], UNIT["ExecStartPost"][0]]
    for text in asked:
        ((port, path),) = HEALTH.findall(text)
        assert (port, path) == ("8000", "/health/ready")
        assert path in PUBLIC
    assert SERVICE["healthcheck"]["test"][0] == "CMD"
    compile(SERVICE["healthcheck"]["test"][-1], "healthcheck", "exec")
    script = UNIT["ExecStartPost"][0].split(' -c "')[1].removesuffix('"').replace("\\n", "\n")
    compile(script, "unit", "exec")


def test_the_container_has_no_rights() -> None:
    uid = re.search(r"--uid (\d+)", IMAGE["RUN"][0])
    assert uid is not None
    assert SERVICE["user"] == f"{uid[1]}:{uid[1]}"
    assert IMAGE["USER"] == ["diffgr2"]
    assert SERVICE["read_only"] is True
    assert SERVICE["cap_drop"] == ["ALL"]
    assert SERVICE["security_opt"] == ["no-new-privileges:true"]
    assert all(volume.endswith(":ro") for volume in SERVICE["volumes"])
    assert all("noexec" in mount for mount in SERVICE["tmpfs"])
    assert all(port.startswith("127.0.0.1:") for port in SERVICE["ports"])
    assert {"cpus", "mem_limit", "pids_limit", "ulimits", "restart", "healthcheck"} <= set(SERVICE)
    for word in ("privileged", "cap_add", "network_mode", "pid", "devices"):
        assert word not in SERVICE
    assert SERVICE["ulimits"]["nofile"] >= Limits().connections + 256


def test_the_service_has_no_rights() -> None:
    for key, value in {
        "User": "diffgr2",
        "NoNewPrivileges": "yes",
        "CapabilityBoundingSet": "",
        "AmbientCapabilities": "",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "PrivateTmp": "yes",
        "PrivateDevices": "yes",
        "RestrictNamespaces": "yes",
        "RestrictSUIDSGID": "yes",
        "SystemCallArchitectures": "native",
        "UMask": "0077",
    }.items():
        assert UNIT[key] == [value]
    assert {"MemoryMax", "TasksMax", "LimitNOFILE", "RestrictAddressFamilies"} <= set(UNIT)
    assert int(UNIT["LimitNOFILE"][0]) >= Limits().connections + 256
    assert not any(path.startswith("ReadWrite") for path in UNIT)
    assert "+" not in UNIT["ExecStart"][0].split()[0]


def test_what_cannot_be_mended_by_starting_again_is_not_tried_again() -> None:
    codes = {str(error.exit_code) for error in (ConfigError, ArtifactError, CheckpointError)}
    assert set(UNIT["RestartPreventExitStatus"][0].split()) == codes
    assert UNIT["Restart"] == ["on-failure"]


def test_reload_reaches_files_that_were_renamed_into_place() -> None:
    assert UNIT["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    mounts = [volume.removesuffix(":ro").rpartition(":")[2] for volume in SERVICE["volumes"]]
    for setting in ("DIFFGR2_MODEL", "DIFFGR2_KEYS"):
        path = Path(SETTINGS["compose"][setting])
        assert str(path.parent) in mounts  # the folder; a mounted file would never change
        assert str(path) not in mounts
