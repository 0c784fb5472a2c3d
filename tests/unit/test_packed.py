from __future__ import annotations

import io
import lzma
import os
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest

from tomoray.errors import Fatal, Reason, Refused
from tomoray.ingest.inventory import read_heads
from tomoray.sources import list_source, packed, read_file, read_head, unpacked

KINDS = [".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2"]
FILES = {"a/1.dcm": os.urandom(200_000), "a/b/2": b"text" * 50_000, "empty": b""}


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("unpacked")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    packed._opened.cache_clear()


def pack(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    kind = path.name.rpartition(".")[2]
    with tarfile.open(path, {"tar": "w", "tgz": "w:gz"}.get(kind, f"w:{kind}")) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_members_are_files_of_their_archive(kind, tmp_path):
    path = pack(tmp_path / f"ct{kind}", FILES)
    found = list(list_source(str(path)))
    assert [(file.root, file.key, file.size_bytes) for file in found] == [
        (str(path), name, len(FILES[name])) for name in sorted(FILES)
    ]
    assert {file.key: read_file(file.root, file.key) for file in found} == FILES
    assert read_head(str(path), "a/1.dcm", 1000) == FILES["a/1.dcm"][:1000]
    assert read_head(str(path), "a/b/2", 10**6) == FILES["a/b/2"]


@pytest.mark.parametrize("kind", KINDS)
def test_archive_in_a_folder_stands_for_its_members(kind, tmp_path, make_series, load_source):
    series = make_series(4)
    series.instances()
    pack(tmp_path / "deep" / f"DOE{kind}", series.files)
    (tmp_path / "z.txt").write_text("no image")

    [loaded] = load_source(str(tmp_path))

    assert len(list(list_source(str(tmp_path)))) == 5
    assert (loaded.volume.image_zyx == series.load().volume.image_zyx).all()
    assert loaded.volume.info.source_uri == str(tmp_path)


def test_many_threads_read_one_archive(tmp_path):
    files = {str(n): os.urandom(30_000) for n in range(40)}
    for kind in (".zip", ".tar", ".tar.gz"):
        path = str(pack(tmp_path / f"many{kind}", files))
        wrong: list[str] = []

        def read_all(path=path, wrong=wrong):
            wrong += [key for key, data in files.items() if read_file(path, key) != data]

        threads = [threading.Thread(target=read_all) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_names_that_leave_the_folder_are_keys_and_no_paths(tmp_path):
    for kind in (".zip", ".tar.gz"):
        path = pack(tmp_path / "in" / f"a{kind}", {"../../evil": b"1", "/etc/evil": b"2"})
        assert {file.key: read_file(file.root, file.key) for file in list_source(str(path))} == {
            "../../evil": b"1",
            "/etc/evil": b"2",
        }
    assert [found.name for found in tmp_path.iterdir()] == ["in"]


def test_links_and_devices_in_a_tar_are_no_files_but_hard_links_are(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind, target in (
            ("real", tarfile.REGTYPE, ""),
            ("hard", tarfile.LNKTYPE, "real"),
            ("soft", tarfile.SYMTYPE, "/etc/passwd"),
            ("device", tarfile.CHRTYPE, ""),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.size = kind, target, 3 if name == "real" else 0
            archive.addfile(entry, io.BytesIO(b"abc"))
    found = list(list_source(str(tmp_path / "a.tar")))
    assert [(file.key, read_file(file.root, file.key)) for file in found] == [("hard", b"abc"), ("real", b"abc")]


def encrypted(path: Path) -> None:
    pack(path, {"a": b"1"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    pack(path, FILES)
    path.write_bytes(path.read_bytes()[:150_000])


@pytest.mark.parametrize(
    ("name", "spoil", "evidence"),
    [
        ("a.zip", encrypted, "encrypted"),
        *((f"a{kind}", cut, "damaged") for kind in KINDS if kind not in {".tgz"}),
        *((f"a{kind}", lambda path: path.write_bytes(b"nonsense"), "damaged") for kind in KINDS),
        *((f"a{kind}", lambda path: path.write_bytes(b""), "damaged") for kind in (".zip", ".tar.xz")),
    ],
)
def test_archive_that_cannot_be_opened_is_accounted_for_once(name, spoil, evidence, tmp_path):
    spoil(tmp_path / name)
    heads, [bad], _ = read_heads(list(list_source(str(tmp_path))))
    assert heads == []
    assert bad.file.key == name
    assert bad.refusal.reason == Reason.UNREADABLE
    assert evidence in bad.refusal.evidence
    with pytest.raises(Fatal, match=evidence) as caught:
        list_source(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_damaged_member_is_refused_and_the_others_are_read(tmp_path):
    path = pack(tmp_path / "a.zip", {"a": b"1" * 100, "b": b"2"})
    data = bytearray(path.read_bytes())
    data[30 + 1] ^= 0xFF  # the first byte of the compressed `a`
    path.write_bytes(data)
    with pytest.raises(Refused, match="damaged"):
        read_file(str(path), "a")
    assert read_file(str(path), "b") == b"2"


def test_bombs_are_turned_away_before_they_go_off(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "BOMB_BYTES", 10**5)
    monkeypatch.setattr(packed, "BOMB_RATIO", 20)
    for kind in (".zip", ".tar.gz", ".tar.xz"):
        path = pack(tmp_path / f"bomb{kind}", {"zeros": bytes(10**7)})
        with pytest.raises(Fatal, match="holds"):
            list_source(str(path))
    monkeypatch.setattr(packed, "MAX_MEMBERS", 5)
    for kind in (".zip", ".tar"):
        with pytest.raises(Fatal, match="more than 5 files"):
            list_source(str(pack(tmp_path / f"count{kind}", {str(n): b"" for n in range(6)})))


def test_lzma_member_of_a_zip_is_read(tmp_path):
    for method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_STORED):
        with zipfile.ZipFile(tmp_path / f"{method}.zip", "w", method) as archive:
            archive.writestr("a", FILES["a/b/2"])
        assert read_file(str(tmp_path / f"{method}.zip"), "a") == FILES["a/b/2"]
        assert read_head(str(tmp_path / f"{method}.zip"), "a", 10) == b"texttextte"


def test_unpacked_tar_is_private_shared_and_removed_with_its_last_reader(tmp_path, temporary_folder):
    path = pack(tmp_path / "a.tar.xz", FILES)
    assert read_file(str(path), "a/b/2") == FILES["a/b/2"]
    [plain] = temporary_folder.glob("*/*.tar")
    assert plain.stat().st_mode & 0o077 == plain.parent.stat().st_mode & 0o077 == 0
    made = plain.stat().st_ino

    other = "import sys; from tomoray.sources import read_file; print(len(read_file(sys.argv[1], 'a/b/2')))"
    environment = {**os.environ, "TMPDIR": str(temporary_folder)}
    done = subprocess.run([sys.executable, "-c", other, str(path)], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("200000\n", "")
    assert plain.stat().st_ino == made  # the other used it, and left it to us

    packed._close()
    assert list(plain.parent.glob("*.tar")) == []


def test_what_killed_processes_left_is_removed(tmp_path, temporary_folder):
    read_file(str(pack(tmp_path / "a.tar.gz", FILES)), "a/b/2")
    [plain] = temporary_folder.glob("*/*.tar")
    for name, age_s in (("old.part", 10**6), ("new.part", 0), ("old.lock", 10**6), ("left.tar", 0)):
        path = plain.parent / name
        path.write_bytes(b"")
        os.utime(path, (time.time() - age_s,) * 2)
    unpacked.sweep()
    assert {path.name for path in plain.parent.iterdir()} == {plain.name, f"{plain.stem}.lock", "new.part"}


def test_changed_archive_is_read_anew(tmp_path):
    path = pack(tmp_path / "a.tar.gz", {"a": b"1"})
    assert read_file(str(path), "a") == b"1"
    path.unlink()
    pack(path, {"a": b"22"})
    assert read_file(str(path), "a") == b"22"


def test_no_room_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacked, "MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(Fatal, match=r"no room for a compressed tar .* set TMPDIR"):
        list_source(str(pack(tmp_path / "a.tar.gz", FILES)))


def test_temporary_folder_of_somebody_else_is_not_used(tmp_path, temporary_folder):
    (temporary_folder / unpacked._NAME).mkdir(mode=0o755)
    with pytest.raises(Fatal, match="not a folder of this user alone"):
        list_source(str(pack(tmp_path / "a.tar.gz", FILES)))


def test_concatenated_and_padded_streams_are_read_to_their_end(tmp_path):
    path = pack(tmp_path / "a.tar", FILES)
    data = path.read_bytes()
    (tmp_path / "two.tar.xz").write_bytes(lzma.compress(data[:10_000]) + lzma.compress(data[10_000:]))
    assert len(list(list_source(str(tmp_path / "two.tar.xz")))) == 3
