"""Files that are written whole, and read only when they are files."""

import os
import stat

import pytest

from ssdlite_d2 import InputError
from ssdlite_d2.files import read_regular, write_atomically


def test_a_link_of_the_name_is_replaced_and_not_followed(tmp_path):
    precious, file = tmp_path / "precious", tmp_path / "out.pth"
    precious.write_text("mine")
    file.symlink_to(precious)
    (tmp_path / "out.pth.tmp").symlink_to(precious)  # a name that could be foreseen
    write_atomically(str(file), lambda out: out.write(b"new"))
    assert precious.read_text() == "mine" and not file.is_symlink()
    assert file.read_bytes() == b"new"
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(precious.stat().st_mode)
    assert len(list(tmp_path.iterdir())) == 3


def test_two_writers_at_once_write_two_files(tmp_path):
    file = str(tmp_path / "a")

    def write(out):
        out.write(b"outer")
        write_atomically(file, lambda inner: inner.write(b"inner"))

    write_atomically(file, write)
    assert read_regular(file) == b"outer"
    assert os.listdir(tmp_path) == ["a"]


def test_what_is_no_file_is_neither_read_nor_written(tmp_path):
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    for path in (pipe, "/dev/zero", str(tmp_path), str(tmp_path / "gone")):
        with pytest.raises(OSError):
            read_regular(path)
    with pytest.raises(InputError, match="not a regular file"):
        write_atomically(pipe, lambda out: out.write(b""))
    assert stat.S_ISFIFO(os.stat(pipe).st_mode)
