"""An S3 server for tests, real where it can be: Ceph's RADOS Gateway with one monitor and one object daemon in memory.

    python tests/services/s3_server.py DIR [PORT]

Prints one line of JSON (kind, endpoint, access_key_id, secret_access_key, folder) once it answers, and serves until its
stdin closes or it is told to stop; so it ends with whoever started it. DIR must be empty or absent. Without Ceph's
programs (Debian: ceph-mon ceph-osd ceph-mgr radosgw ceph-common) it is moto's server, which checks no credentials.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

ACCESS_KEY_ID, SECRET_ACCESS_KEY = "testaccesskey", "testsecretkey1"
KEYRING = """
[mon.]
key = {key}
caps mon = "allow *"
[client.admin]
key = {key}
caps mon = "allow *"
caps osd = "allow *"
caps mgr = "allow *"
[osd.0]
key = {key}
caps mon = "allow profile osd"
caps osd = "allow *"
[client.rgw]
key = {key}
caps mon = "allow rw"
caps osd = "allow rwx"
"""
PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "ceph", "ceph-authtool", "monmaptool", "radosgw-admin")
GATEWAY = ("radosgw", "-n", "client.rgw")
CONFIG = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_port},v1:127.0.0.1:{mon_port_v1}]
public network = 127.0.0.0/8
keyring = {folder}/keyring
auth allow insecure global id reclaim = false
paxos propose interval = 0.05
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 0
admin socket = {folder}/$name.asok
run dir = {folder}
log file = {folder}/$name.log
err to stderr = false
log to stderr = false
[mon.a]
mon data = {folder}/mon
[osd.0]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 4294967296
[client.rgw]
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw crypt require ssl = false
rgw crypt s3 kms backend = testing
rgw crypt s3 kms encryption keys = "{keys}"
"""
# Keys of the KMS that the gateway brings for tests, by name.
KMS_KEYS = {
    "a-key": "MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA=",
    "other-key": "MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE=",
}


def main() -> int:
    """Serve until stdin closes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int, nargs="?", default=0)
    arguments = parser.parse_args()
    port = arguments.port or free_port()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        if kind() == "moto":
            start_moto(port)
        else:
            start_gateway(arguments.folder.resolve(), port, daemons)
        said = {
            "kind": kind(),
            "endpoint": f"http://127.0.0.1:{port}",
            "access_key_id": ACCESS_KEY_ID,
            "secret_access_key": SECRET_ACCESS_KEY,
            "folder": str(arguments.folder.resolve()),
        }
        print(json.dumps(said), flush=True)
        sys.stdin.read()
    except KeyboardInterrupt:
        pass
    finally:
        stop(daemons)
    return 0


def kind() -> str:
    """Which server this machine can run: `rgw` or `moto`."""
    return "rgw" if all(shutil.which(program) for program in PROGRAMS) else "moto"


def free_port() -> int:
    """A port that nothing listens on, away from those that Ray and the system hand out by themselves."""
    while True:
        port = random.randrange(20000, 30000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


def start_moto(port: int) -> None:
    from moto.server import ThreadedMotoServer

    ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False).start()


def start_gateway(folder: Path, port: int, daemons: list[subprocess.Popen[bytes]]) -> None:
    """Start monitor, object daemon and gateway as children; each is appended to `daemons` as it starts."""
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir(parents=True)
    mon_port, mon_port_v1 = free_port(), free_port()
    fsid, osd_id = str(uuid.uuid4()), str(uuid.uuid4())
    conf = folder / "ceph.conf"
    keys = " ".join(f"{name}={key}" for name, key in KMS_KEYS.items())
    ports = {"port": port, "mon_port": mon_port, "mon_port_v1": mon_port_v1}
    conf.write_text(CONFIG.format(folder=folder, fsid=fsid, keys=keys, **ports))
    environment = with_conf(folder)

    def run(*command: str) -> str:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise SystemExit(f"{command[0]} failed: {done.stderr.strip()}; logs are in {folder}")
        return done.stdout

    (folder / "keyring").write_text(KEYRING.format(key=run("ceph-authtool", "--gen-print-key").strip()))
    monmap = f"{folder}/monmap"
    addresses = f"[v2:127.0.0.1:{mon_port},v1:127.0.0.1:{mon_port_v1}]"
    run("monmaptool", "--create", "--addv", "a", addresses, "--fsid", fsid, monmap)
    run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", f"{folder}/keyring")
    daemons.append(serve(folder, "ceph-mon", "-i", "a"))
    run("ceph", "--connect-timeout", "30", "osd", "new", osd_id, "0")
    run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd_id)
    daemons.append(serve(folder, "ceph-osd", "-i", "0"))
    daemons.append(serve(folder, *GATEWAY))
    keys = ("--access-key", ACCESS_KEY_ID, "--secret-key", SECRET_ACCESS_KEY)
    wait_for(f"http://127.0.0.1:{port}", daemons, folder)
    run("radosgw-admin", "user", "create", "--uid", "test", "--display-name", "test", *keys)


def serve(folder: Path, *command: str) -> subprocess.Popen[bytes]:
    """Start one of Ceph's programs as a child."""
    with (folder / f"{command[0]}.out").open("ab") as out:
        return subprocess.Popen(
            [*command, "-f"], env=with_conf(folder), stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )


def with_conf(folder: Path) -> dict[str, str]:
    """The environment in which Ceph's programs find their server."""
    return {**os.environ, "CEPH_ARGS": f"-c {folder / 'ceph.conf'}"}


def wait_for(endpoint: str, daemons: list[subprocess.Popen[bytes]], folder: Path, within_s: float = 90) -> None:
    """Return when the server answers; leave with a message when a daemon has ended or time is up."""
    until = time.monotonic() + within_s
    while time.monotonic() < until and all(daemon.poll() is None for daemon in daemons):
        try:
            urllib.request.urlopen(endpoint, timeout=2).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"Ceph's gateway does not answer at {endpoint}; logs are in {folder}")


def stop(daemons: list[subprocess.Popen[bytes]]) -> None:
    """End children, gateway first; by force after five seconds."""
    for daemon in reversed(daemons):
        daemon.terminate()
        try:
            daemon.wait(timeout=5)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


if __name__ == "__main__":
    sys.exit(main())
