"""The Debian package: installed, started, upgraded and purged in a root of its own over this machine's."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build/release"


def can_overlay():
    if os.geteuid() != 0:
        return "an overlay root needs root"
    probe = subprocess.run(["unshare", "--mount", "sh", "-c",
                            "mount -t tmpfs t /mnt && mkdir /mnt/u /mnt/w /mnt/m && "
                            "mount -t overlay o -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/m"], capture_output=True)
    return "" if probe.returncode == 0 else "no overlay file system here"


@pytest.fixture(scope="module")
def package():
    for old in BUILD.glob("cairn_*.deb"):
        old.unlink()
    subprocess.run(["cmake", "--build", BUILD, "--target", "package"], check=True, capture_output=True)
    [deb] = BUILD.glob("cairn_*.deb")
    return deb


class Machine:
    """A root over this machine's: what happens in it is forgotten."""

    def __init__(self, folder):
        self.root = folder / "m"
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
        self.folder = folder
        for name in ("u", "w", "m"):
            (folder / name).mkdir()
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o",
                        f"lowerdir=/,upperdir={folder}/u,workdir={folder}/w", self.root], check=True)
        for kind in ("proc", "dev"):
            subprocess.run(["mount", "--rbind", f"/{kind}", self.root / kind], check=True)

    def run(self, *command, code=0, **more):
        done = subprocess.run(["chroot", self.root, *map(str, command)], capture_output=True, text=True, **more)
        assert done.returncode == code, (command, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def put(self, deb, name="cairn.deb"):
        shutil.copy(deb, self.root / "tmp" / name)
        return f"/tmp/{name}"

    def close(self):
        subprocess.run(["umount", "-l", self.root / "proc"], check=False)
        subprocess.run(["umount", "-l", self.root / "dev"], check=False)
        subprocess.run(["umount", "-l", self.root], check=False)
        subprocess.run(["umount", "-l", self.folder], check=False)


@pytest.fixture
def machine(tmp_path):
    reason = can_overlay()
    if reason:
        pytest.skip(reason)
    machine = Machine(tmp_path)
    yield machine
    machine.close()


def test_the_package_says_what_it_needs_and_holds(package):
    control = subprocess.run(["dpkg-deb", "--field", package], capture_output=True, text=True, check=True).stdout
    for library in ("libgrpc", "librocksdb", "libraft", "libc-ares2", "libprotobuf-c1", "adduser"):
        assert library in control
    listing = subprocess.run(["dpkg-deb", "--contents", package], capture_output=True, text=True, check=True).stdout
    for path in ("/usr/bin/cairnd", "/usr/bin/cairnctl", "/lib/systemd/system/cairnd.service", "/etc/cairn/cairnd.yaml",
                 "/usr/share/man/man1/cairnctl.1", "/usr/share/man/man8/cairnd.8",
                 "/usr/share/bash-completion/completions/cairnctl", "/usr/include/cairn"):
        assert f".{path}" in listing
    assert "root/root" in listing.splitlines()[0]


def test_the_unit_is_sound(package, tmp_path):
    subprocess.run(["dpkg-deb", "--extract", package, tmp_path], check=True)
    unit = (tmp_path / "lib/systemd/system/cairnd.service").read_text().replace("/usr/bin/cairnd", f"{tmp_path}/usr/bin/cairnd")
    path = tmp_path / "cairnd.service"
    path.write_text(unit)
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", path], capture_output=True, text=True)
    assert done.returncode == 0 and "cairnd.service" not in done.stderr, done.stderr
    level = subprocess.run(["systemd-analyze", "security", "--offline=true", "--threshold=25", path],
                           capture_output=True, text=True)
    assert level.returncode == 0, level.stdout[-400:]


def test_the_programs_are_hardened(package, tmp_path):
    """Position-independent, relocations read-only, stack protector, fortified libc calls, no executable stack."""
    subprocess.run(["dpkg-deb", "--extract", package, tmp_path], check=True)
    programs = [path for path in (tmp_path / "usr/bin").iterdir() if path.read_bytes()[:4] == b"\x7fELF"]
    assert {"cairnd", "cairnctl"} <= {path.name for path in programs}
    for path in programs:
        done = subprocess.run(["checksec", "--format=json", f"--file={path}"], capture_output=True, text=True, check=True)
        [found] = json.loads(done.stdout).values()
        assert {name: found[name] for name in ("relro", "canary", "nx", "pie", "rpath", "runpath", "fortify_source")} == {
            "relro": "full", "canary": "yes", "nx": "yes", "pie": "yes", "rpath": "no", "runpath": "no",
            "fortify_source": "yes"}, path


class Notify:
    """The end of NOTIFY_SOCKET that systemd holds."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        os.chmod(path, 0o666)
        self.said = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        while True:
            self.said += self.socket.recv(4096).decode().splitlines()

    def wait(self, word, seconds=15):
        end = time.monotonic() + seconds
        while not any(line.startswith(word) for line in self.said):
            assert time.monotonic() < end, (word, self.said)
            time.sleep(0.01)


def start(machine):
    """What the unit says, as its user."""
    notify = Notify(machine.root / "tmp/notify")
    process = subprocess.Popen(
        ["chroot", "--userspec=cairn:cairn", machine.root, "/usr/bin/cairnd", "--config", "/etc/cairn/cairnd.yaml"],
        stderr=subprocess.DEVNULL, env={"PATH": "/usr/sbin:/usr/bin:/bin", "NOTIFY_SOCKET": "/tmp/notify", "WATCHDOG_USEC": "400000"})
    return process, notify


def end(process, machine):
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    (machine.root / "tmp/notify").unlink()


@pytest.mark.timeout(300)
def test_installed_started_upgraded_and_purged(package, machine, tmp_path_factory):
    machine.run("dpkg", "--install", machine.put(package))
    assert machine.run("stat", "-c", "%U %a", "/var/lib/cairn").strip() == "cairn 700"
    machine.run("cairnd", "--config", "/etc/cairn/cairnd.yaml", "--check-config")
    assert "cairnctl" in machine.run("sh", "-c", "zcat -f /usr/share/man/man1/cairnctl.1*")
    conf = machine.root / "etc/cairn/cairnd.yaml"
    with socket.socket() as a, socket.socket() as b:
        a.bind(("127.0.0.1", 0))
        b.bind(("127.0.0.1", 0))
        ports = a.getsockname()[1], b.getsockname()[1]
    conf.write_text(conf.read_text().replace("127.0.0.1:7411", f"127.0.0.1:{ports[0]}")
                    .replace("127.0.0.1:7412", f"127.0.0.1:{ports[1]}"))
    process, notify = start(machine)
    notify.wait("READY=1")
    notify.wait("WATCHDOG=1")

    def ctl(*arguments):
        return machine.run("cairnctl", "-e", f"127.0.0.1:{ports[0]}", *arguments, timeout=60)
    deadline = time.monotonic() + 20
    while machine.run("sh", "-c", f"cairnctl -e 127.0.0.1:{ports[0]} cluster status || true").find("owner     0") < 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    ctl("cluster", "members")
    end(process, machine)
    assert any(line == "STOPPING=1" for line in notify.said)

    newer = tmp_path_factory.mktemp("newer")
    subprocess.run(["dpkg-deb", "--raw-extract", package, newer / "p"], check=True)
    control = newer / "p/DEBIAN/control"
    control.write_text(control.read_text().replace("Version: 0.1.0", "Version: 0.2.0"))
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", newer / "p", newer / "new.deb"], check=True,
                   capture_output=True)
    machine.run("dpkg", "--install", machine.put(newer / "new.deb", "new.deb"))
    assert f"127.0.0.1:{ports[0]}" in conf.read_text()  # what was changed stays
    process, notify = start(machine)
    notify.wait("READY=1")
    end(process, machine)
    assert list((machine.root / "var/lib/cairn").iterdir())

    machine.run("dpkg", "--remove", "cairn")
    assert (machine.root / "var/lib/cairn/store").is_dir() and conf.exists()
    machine.run("dpkg", "--purge", "cairn")
    assert not (machine.root / "var/lib/cairn").exists() and not (machine.root / "etc/cairn").exists()
    machine.run("getent", "passwd", "cairn", code=2)
