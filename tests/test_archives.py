"""Archives nobody vouches for: nothing may land outside, half, or wrong; whatever is killed goes on."""
import gzip
import io
import os
import signal
import stat
import subprocess
import sys
import tarfile
import textwrap
import zipfile

import pytest
from conftest import little_memory, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from rar import rar4, rar5

from be_nb.data import archives
from be_nb.data.archives import ArchiveError, extract, list_files, members, RECORDS, safe_name
from be_nb.data.prepare import read_kinetics, video_files

CONTENT = {"a/v [1].avi": bytes(range(256)) * 40, "a/ü.avi": b"x" * 5000, "b/empty.avi": b"", "c.txt": b"hello\n" * 100}


def tar_bytes(content, packed=True):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return gzip.compress(file.getvalue()) if packed else file.getvalue()


def zip_bytes(content, method=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return file.getvalue()


MAKERS = {"zip": zip_bytes, "tar.gz": tar_bytes, "tar": lambda c: tar_bytes(c, packed=False),
          "rar5": lambda c: rar5(c.items()), "rar4": lambda c: rar4(c.items())}
each_format = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def there(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*")
            if p.is_file() and RECORDS not in p.parts}


@each_format
def test_content_comes_out_and_a_second_run_only_looks(make, tmp_path):
    archive, out = tmp_path / "set [x].bin", tmp_path / "out"
    archive.write_bytes(make(CONTENT))
    first = extract(archive, out, progress=False)
    assert there(out) == CONTENT and (first.files, first.written) == (4, 4)
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert extract(archive, out, progress=False).written == 0
    assert times == {p: p.stat().st_mtime_ns for p in out.rglob("*")}


@each_format
def test_what_was_lost_comes_back(make, tmp_path):
    archive, out = tmp_path / "a", tmp_path / "out"
    archive.write_bytes(make(CONTENT))
    extract(archive, out, progress=False)
    (out / "a/ü.avi").unlink()
    (out / "c.txt").write_bytes(b"short")
    assert extract(archive, out, progress=False).written == 2 and there(out) == CONTENT


@each_format
def test_another_archive_of_the_same_name_replaces_all(make, tmp_path):
    archive, out = tmp_path / "a", tmp_path / "out"
    archive.write_bytes(make(CONTENT))
    extract(archive, out, progress=False)
    changed = {name: data[::-1] for name, data in CONTENT.items()}
    archive.write_bytes(make(changed))
    os.utime(archive, ns=(1, 1))
    extract(archive, out, progress=False)
    assert there(out) == changed


@each_format
def test_one_flipped_bit_in_the_data_is_noticed(make, tmp_path):
    whole = make({"v.avi": b"video" * 4000}) if make is not tar_bytes else tar_bytes({"v.avi": os.urandom(20_000)})
    middle = len(whole) // 2
    archive = tmp_path / "a"
    archive.write_bytes(whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1:])
    if make is MAKERS["tar"]:
        pytest.skip("a plain tar has no checksum of its data")
    with pytest.raises(ArchiveError, match="a: "):
        extract(archive, tmp_path / "out", progress=False)
    assert not list((tmp_path / "out" / RECORDS).glob("*.json")), "nothing of it may be believed later"


@each_format
@pytest.mark.parametrize("share", [0.0, 0.02, 0.4, 0.8])
def test_a_cut_off_archive_is_noticed(make, share, tmp_path):
    whole = make({f"{k}.avi": os.urandom(3000) for k in range(5)})
    (tmp_path / "a").write_bytes(whole[:int(len(whole) * share)])
    with pytest.raises(ArchiveError):
        extract(tmp_path / "a", tmp_path / "out", progress=False)


@pytest.mark.parametrize("make", [MAKERS["rar4"], MAKERS["rar5"]], ids=["rar4", "rar5"])
def test_a_rar_cut_off_anywhere_is_noticed(make, tmp_path):
    "Also between two files, where each reader by itself sees a shorter archive and nothing wrong."
    whole = make({f"{k}.avi": os.urandom(20) for k in range(3)})
    for length in range(len(whole)):
        (tmp_path / "a").write_bytes(whole[:length])
        with pytest.raises(ArchiveError):
            extract(tmp_path / "a", tmp_path / "out", progress=False)
    (tmp_path / "a").write_bytes(whole)
    assert extract(tmp_path / "a", tmp_path / "out", progress=False).files == 3


@each_format
@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "a\\..\\evil", "C:/evil", RECORDS + "/a.json"])
def test_names_that_lead_away_are_refused(make, name, tmp_path):
    archive = tmp_path / "deep/er/a"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(make({"fine.avi": b"1", name: b"evil"}))
    before = set(tmp_path.rglob("*")) | {tmp_path / "deep/er/out"}
    if make in (MAKERS["rar4"], MAKERS["rar5"]) and "\\" in name:
        pytest.skip("libarchive itself turns it into ../")
    with pytest.raises(ArchiveError, match="leads out"):
        extract(archive, archive.parent / "out", progress=False)
    new = set(tmp_path.rglob("*")) - before
    assert new <= {archive.parent / "out" / n for n in ("fine.avi", RECORDS)} and not os.path.exists("/evil")


@given(st.text(st.sampled_from("ab./\\:C\0"), max_size=12))
def test_safe_names_stay_inside(name):
    try:
        safe = safe_name(name)
    except ValueError:
        return
    assert os.path.normpath(os.path.join("/out", safe)).startswith("/out/") and safe == os.path.normpath(safe)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(kind, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("x")
        info.type, info.linkname = kind, "/etc"
        archive.addfile(info)
    with pytest.raises(ArchiveError, match="link or device"):
        extract(tmp_path / "a.tar", tmp_path / "out", progress=False)
    assert not os.path.lexists(tmp_path / "out" / "x")


def test_links_in_zip_and_rar_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("x")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc")
    (tmp_path / "a.rar").write_bytes(rar5([("x", b"/etc")], kind=0o120777))
    for name in ("a.zip", "a.rar"):
        with pytest.raises(ArchiveError, match="link or device"):
            extract(tmp_path / name, tmp_path / "out", progress=False)


def test_a_tar_damaged_or_cut_anywhere_is_never_taken_for_whole(tmp_path):
    "Not compressed: flipped bits and zeroed blocks of headers, each end. Python's own reader takes many for the end."
    content = {"first.avi": b"1" * 700, f"{'long/' * 30}name.avi": b"2", "last.avi": b"3" * 100}
    whole, archive = tar_bytes(content, packed=False), tmp_path / "a"
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        places = {m.name: (m.offset, m.offset_data) for m in tar}
    # bytes that have no checksum in a tar:
    spans = [range(at, at + len(content[name])) for name, (_, at) in places.items()]
    spans += [range(start + 512, at - 512) for start, at in places.values()]  # content, and long names
    end = spans[2].start + 512
    cases = [(at, at + 1, whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1:]) for at in range(0, end, 7)]
    cases += [(at, at + 512, whole[:at] + bytes(512) + whole[at + 512:]) for at in range(0, end, 256)]
    cases += [(at, len(whole), whole[:at]) for at in range(0, end + 1, 128)]
    for start, stop, bad in cases:
        archive.write_bytes(bad)
        try:
            found = {m.name: b"".join(iter(lambda m=m: m.read(1 << 20), b"")) for m in members(archive)}
        except ArchiveError as error:
            assert str(error).startswith(f"{archive}: ")
        else:
            touched = any(start < span.stop and span.start < stop for span in spans)
            assert stop - start <= 512 and (touched or found == content) and len(found) == 3, start


def header(kind, size, name="x"):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("packed", [True, False], ids=["gz", "plain"])
@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
                                  tarfile.GNUTYPE_SPARSE, tarfile.SOLARIS_XHDTYPE], ids=str)
def test_extended_headers_are_bounded(kind, packed, tmp_path):
    "A name of 100 MB in an archive of a tenth of one; ten thousand headers one after the other; sizes below zero."
    archive = tmp_path / "a"
    pax = b"30 comment=" + b"x" * 18 + b"\n"
    for data in ((header(kind, 100 << 20), b"a" * (100 << 20)), ((header(kind, 30) + pax.ljust(512, b"\0")) * 10_000,),
                 (header(kind, 2**62),), (header(tarfile.REGTYPE, -512),)):
        with (gzip.open(archive, "wb", 1) if packed else open(archive, "wb")) as file:
            for part in data:
                file.write(part)
        with little_memory(60 << 20), pytest.raises(ArchiveError):
            extract(archive, tmp_path / "out", progress=False)
        assert not there(tmp_path / "out")


def test_long_and_odd_names_come_through_in_all_forms_of_tar(tmp_path):
    content = {f"{'ä' * 60}/{'b' * 90}.avi": b"1", "c" * 150: b"2", "short": b"3"}
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=form, pax_headers={"comment": "global"}
                          if form == tarfile.PAX_FORMAT else None) as archive:
            for name, data in content.items():
                info = tarfile.TarInfo(name)
                info.size, info.mtime = len(data), 1.5  # a fraction makes a pax header of its own
                archive.addfile(info, io.BytesIO(data))
        (tmp_path / "a.tar").write_bytes(file.getvalue())
        assert list_files(tmp_path / "a.tar") == dict.fromkeys(content, 1)
        extract(tmp_path / "a.tar", tmp_path / str(form), progress=False)
        assert there(tmp_path / str(form)) == content


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_in_every_kind_of_zip(method, tmp_path):
    whole = zip_bytes({"v.avi": os.urandom(3000)}, method)
    for at in range(0, len(whole), 37):
        (tmp_path / "a").write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1:])
        try:
            extract(tmp_path / "a", tmp_path / f"out{at}", progress=False)
        except ArchiveError as error:
            assert "a: " in str(error)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(kind=st.sampled_from(list(MAKERS)), place=st.floats(0, 1, exclude_max=True),
       data=st.binary(min_size=1, max_size=30),
       insert=st.booleans(), near=st.sampled_from([None, 700]))
def test_bytes_of_anybody_are_one_named_error(tmp_path_factory, kind, place, data, insert, near):
    "The same content, or an `ArchiveError`; never another exception, and never much memory."
    folder = tmp_path_factory.mktemp("fuzz")
    whole = MAKERS[kind]({"a/v.avi": b"v" * 900, "a/w.avi": bytes(range(256)), "c.txt": b"c"})
    at = int(place * len(whole[:near]))
    (folder / "a").write_bytes(whole[:at] + data + whole[at + (0 if insert else len(data)):])
    for function in (list_files, lambda path: extract(path, folder / "out", progress=False)):
        try:
            with little_memory():
                function(folder / "a")
        except ArchiveError as error:
            assert str(error).startswith(str(folder))
        else:
            if kind not in ("tar", "rar4") and function is not list_files:  # their names or data have no checksum
                assert set(there(folder / "out").values()) == {b"v" * 900, bytes(range(256)), b"c"}
    assert set(folder.iterdir()) <= {folder / "a", folder / "out"}


def test_a_record_of_somebody_else_is_not_believed(tmp_path):
    (tmp_path / "a").write_bytes(zip_bytes(CONTENT))
    extract(tmp_path / "a", tmp_path / "out", progress=False)
    record = tmp_path / "out" / RECORDS / "a.json"
    good = record.read_text()
    for bad in ("", "[]", "{}", "[" * 100_000, '{"files": 3}', good.replace('"c.txt": 600', '"c.txt": null'), good[:-9],
                good.replace('"c.txt"', '"../c.txt"'), "\0"):
        record.write_text(bad)
        assert extract(tmp_path / "a", tmp_path / "out",
                       progress=False).files == 4 and there(tmp_path / "out") == CONTENT


def test_a_name_that_is_file_and_folder(tmp_path):
    for name, content in (("a", {"x": b"1", "x/y": b"2"}), ("b", {"x/y": b"2", "x": b"1"}), ("c", {"n" * 300: b"1"})):
        (tmp_path / name).write_bytes(tar_bytes(content))
        with pytest.raises(ArchiveError, match="not every name can be that of a file"):
            extract(tmp_path / name, tmp_path / f"out-{name}", progress=False)


def test_names_that_come_twice_are_refused(tmp_path):
    (tmp_path / "a.rar").write_bytes(rar5([("x", b"1"), ("./x", b"2")]))
    with pytest.raises(ArchiveError, match="twice"):
        extract(tmp_path / "a.rar", tmp_path / "out", progress=False)


@pytest.mark.parametrize("make", [zip_bytes, tar_bytes], ids=["zip", "tar.gz"])
def test_bombs_are_refused_before_they_go_off(make, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "FREE_BYTES", 1000)
    (tmp_path / "a").write_bytes(make({"zeros": bytes(3_000_000)}))
    with pytest.raises(ArchiveError, match="would unpack to more than"):
        extract(tmp_path / "a", tmp_path / "out", progress=False)
    assert not there(tmp_path / "out")


def test_many_small_files_are_a_bomb_too(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_FILES", 3)
    (tmp_path / "a").write_bytes(zip_bytes(CONTENT))
    with pytest.raises(ArchiveError, match="3 files"):
        extract(tmp_path / "a", tmp_path / "out", progress=False)


def test_a_zip_that_lies_about_its_size_is_refused(tmp_path):
    data = zip_bytes({"zeros": bytes(100_000)})
    (tmp_path / "a.zip").write_bytes(data.replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(ArchiveError):
        extract(tmp_path / "a.zip", tmp_path / "out", progress=False)
    assert not there(tmp_path / "out")


def test_names_that_are_not_utf8_keep_their_bytes(tmp_path):
    name = b"caf\xe9/v\xff.avi"
    raw = os.fsdecode(name)
    (tmp_path / "a.rar").write_bytes(rar4([(name, b"1")]))
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="utf8",
                      errors="surrogateescape") as archive:
        info = tarfile.TarInfo(raw)
        info.size = 1
        archive.addfile(info, io.BytesIO(b"1"))
    for archive in ("a.rar", "a.tar"):
        out = tmp_path / f"out-{archive}"
        extract(tmp_path / archive, out, progress=False)
        assert os.path.exists(os.fsencode(out) + b"/" + name)
        assert extract(tmp_path / archive, out, progress=False).written == 0
        assert next(m.name for m in members(tmp_path / archive)) == raw


def test_a_killed_extraction_goes_on(tmp_path):
    content = {f"v{k:03d}.avi": os.urandom(2000) for k in range(60)}
    (tmp_path / "a.tar.gz").write_bytes(tar_bytes(content))
    program = textwrap.dedent("""
        import os, signal, sys
        from be_nb.data import archives
        copy = archives._copy
        def dying(member, target):
            if member.name == "v030.avi":
                open(target, "wb").write(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
            copy(member, target)
        archives._copy = dying
        archives.extract(sys.argv[1], sys.argv[2], progress=False)""")
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "a.tar.gz", out], cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    whole = {n: d for n, d in there(out).items() if not n.endswith(".tmp")}
    assert whole == {n: content[n] for n in list(content)[:30]}
    assert extract(tmp_path / "a.tar.gz", out, progress=False).written == 30
    assert there(out) == content


def test_a_missing_libarchive_says_what_to_install(tmp_path):
    (tmp_path / "a.rar").write_bytes(rar5([("x", b"1")]))
    program = ("import ctypes.util; "
               "ctypes.util.find_library = lambda name: None; from be_nb.data import archives; archives._libarchive()")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "LIBARCHIVE": ""})
    assert "ArchiveError" in done.stderr and "apt install" in done.stderr


def write_table(path, rows):
    path.write_text("label,youtube_id,time_start,time_end,split\n"
                    + "".join(f"{','.join(map(str, row))}\n" for row in rows))
    return path


def test_kinetics_tables(tmp_path):
    table = write_table(tmp_path / "train.csv",
                        [("b boy", "--id_1", 3, 13, "train"), ("a", "x,y"[:1], 100, 110, "train")])
    split = read_kinetics(table, {"--id_1_000003_000013.mp4": "train/b boy/--id_1_000003_000013.mp4"})
    assert split.paths == ["train/b boy/--id_1_000003_000013.mp4", "x_000100_000110.mp4"]
    assert split.classes == ["a", "b boy"] and split.labels.tolist() == [1, 0]
    for row, line in ((("c", "../../x", 1, 2, "t"), 2), (("c", "x", "one", 2, "t"), 2)):
        with pytest.raises(ValueError, match=f"line {line}"):
            read_kinetics(write_table(tmp_path / "bad.csv", [row]), {})
    write_table(tmp_path / "none.csv", [])
    with pytest.raises(ValueError, match="no column"):
        read_kinetics(tmp_path / "none.csv", {})


def test_replacements_win(tmp_path):
    for name in ("x/v.mp4", "replacement_for_corrupted/v.mp4", "z/v.mp4", "w.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert video_files(tmp_path) == {"v.mp4": "replacement_for_corrupted/v.mp4", "w.mp4": "w.mp4"}
