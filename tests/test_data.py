import hashlib
import http.server
import os
import re
import socket
import string
import tempfile
import threading
import urllib.request
from pathlib import Path

import pytest

from microgpt import data, files
from microgpt.data import DownloadError, checksum, describe, load_documents

BUNDLED_SHA256 = "c552ee4f4b29da93458a2f23adddafd582b5a17fa689346283f7ef07ea2db402"
MAKEMORE_SHA256 = data._MAKEMORE_SHA256  # before a fixture replaces it
DATASETS = Path(data.__file__).parent / "datasets"


def error_line(caught):
    """Return the message of a caught exception, which must be one line that reads well."""
    message = str(caught.value)
    assert message.isprintable()
    assert "[Errno" not in message
    return message


# The bundled names


def test_bundled_names():
    docs = load_documents()
    assert len(docs) == len(set(docs)) == 5163
    assert set("".join(docs)) == set(string.ascii_lowercase)
    assert docs[:3] == ["mary", "patricia", "linda"]
    assert {"emma", "james"} < set(docs)


def test_bundled_file_is_the_recorded_one():
    content = (DATASETS / "names_us1990.txt").read_bytes()
    assert hashlib.sha256(content).hexdigest() == BUNDLED_SHA256
    assert BUNDLED_SHA256 in (DATASETS / "README.md").read_text(encoding="utf-8")


def test_describe():
    assert describe() == describe(None) == "names_us1990 (bundled)"
    assert describe("makemore") == "makemore (downloaded)"
    assert describe("./makemore") == "./makemore"
    assert describe(Path("makemore")) == "makemore"
    assert describe("odd\nname") == r"'odd\nname'"


# Files


@pytest.fixture
def file(tmp_path):
    return tmp_path / "docs.txt"


@pytest.mark.parametrize("kind", [str, Path, os.fsencode])
def test_path_types(file, kind):
    file.write_text("emma\nava\n")
    assert load_documents(kind(file)) == ["emma", "ava"]


@pytest.mark.parametrize(
    ("content", "docs"),
    [
        (b"emma", ["emma"]),
        (b"  emma \t\n\n \t \nava\n\n", ["emma", "ava"]),
        (b"emma\nemma\n", ["emma", "emma"]),
        (b"a b\r\nc\rd\n\re", ["a b", "c", "d", "e"]),
        ("a\x0bb\x0cc\x1cd\x85e\u2028f\n\u2029g".encode(), ["a\x0bb\x0cc\x1cd\x85e\u2028f", "g"]),
        ("\xa0a\u3000\n\x85\n\u2028b".encode(), ["a", "b"]),
        (b"\xef\xbb\xbfemma\nava", ["emma", "ava"]),
        (b"\xef\xbb\xbf\r\nemma", ["emma"]),
        ("zoë\n日本\n😀".encode(), ["zoë", "日本", "😀"]),
        (b"a\0b\n\0\n", ["a\0b", "\0"]),
        (b"x" * 1_000_000, ["x" * 1_000_000]),
    ],
    ids="one blank twice ends no-ends spaces bom bom-blank unicode nul long".split(),
)
def test_lines(file, content, docs):
    file.write_bytes(content)
    assert load_documents(file) == docs


TEXT = "\ufeffTo be,\r\nor not \n\n \t\n\n  that is\rthe question\n"


@pytest.mark.parametrize(
    ("unit", "docs"),
    [
        ("line", ["To be,", "or not", "that is", "the question"]),
        ("paragraph", ["To be,\nor not", "that is\nthe question"]),
        ("stream", ["To be,\nor not \n\n \t\n\n  that is\nthe question\n"]),
    ],
)
def test_a_text_splits_into_lines_paragraphs_or_not_at_all(file, unit, docs):
    file.write_bytes(TEXT.encode())
    assert load_documents(file, unit) == docs


@pytest.mark.parametrize("unit", data.UNITS)
def test_a_blank_text_has_no_documents_in_any_unit(file, unit):
    file.write_text(" \n\n\t\n")
    with pytest.raises(ValueError, match="holds only blank lines"):
        load_documents(file, unit)


def test_an_unknown_unit_is_an_error():
    with pytest.raises(ValueError, match="line, paragraph or stream, not 'words'"):
        load_documents(unit="words")


def test_the_bundled_names_have_a_name_too():
    assert load_documents("names_us1990") == load_documents()
    assert describe("names_us1990") == describe()


def test_the_checksum_is_that_of_a_file_of_clean_lines(file):
    file.write_bytes(b"emma\nzo\xc3\xab\n")
    assert checksum(load_documents(file)) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert checksum(["ava", "emma"]) != checksum(["emma", "ava"])


def test_file_called_makemore(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("makemore").write_text("emma")
    assert load_documents("./makemore") == load_documents(Path("makemore")) == ["emma"]


def test_missing_file(file):
    with pytest.raises(FileNotFoundError) as caught:
        load_documents(file)
    assert error_line(caught) == f"{file}: No such file or directory"


@pytest.mark.parametrize("path", ["", "a\0b", "\ud800", "no\nsuch\u2028file"])
def test_odd_paths_are_missing_files(path):
    with pytest.raises(FileNotFoundError) as caught:
        load_documents(path)
    assert error_line(caught).startswith(f"{path!r}: ")


def test_folder(tmp_path):
    with pytest.raises(IsADirectoryError) as caught:
        load_documents(tmp_path)
    assert error_line(caught) == f"{tmp_path}: is a folder, not a file"


def test_file_in_place_of_a_folder(file):
    file.write_text("emma")
    with pytest.raises(OSError) as caught:
        load_documents(file / "below")
    assert error_line(caught).startswith(f"{file / 'below'}: ")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_file_without_permission(file):
    file.write_text("emma")
    file.chmod(0)
    with pytest.raises(PermissionError) as caught:
        load_documents(file)
    assert error_line(caught) == f"{file}: Permission denied"


def test_file_that_fails_to_open(file, monkeypatch):
    def refuse(path, mode):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(files, "open", refuse, raising=False)
    with pytest.raises(PermissionError) as caught:
        load_documents(file)
    assert error_line(caught) == f"{file}: Permission denied"


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"\xff", "byte 0xff at offset 0, line 1"),
        (b"a\nb\r\nc\rzo\xeb\n", "byte 0xeb at offset 9, line 4"),
        (b"\xef\xbb\xbfab\n\xe6\x97", "byte 0xe6 at offset 6, line 2"),
        (b"a\xed\xa0\x80", "byte 0xed at offset 1, line 1"),
        ("emma".encode("utf-16"), "offset 0, line 1"),
    ],
    ids=["first", "latin-1", "cut-off", "surrogate", "utf-16"],
)
def test_not_utf8(file, content, where):
    file.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        load_documents(file)
    assert type(caught.value) is ValueError
    assert error_line(caught).startswith(f"{file}: not UTF-8 text (")
    assert where in error_line(caught)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"\n", "holds only blank lines"),
        (b"\xef\xbb\xbf \r\n\t\r\n", "holds only blank lines"),
        ("\u2028\n\xa0".encode(), "holds only blank lines"),
    ],
)
def test_no_documents(file, content, what):
    file.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        load_documents(file)
    assert error_line(caught) == f"{file}: the file {what}"


@pytest.mark.parametrize("source", [0, 1.5, ["emma"], True])
def test_source_that_is_no_path(source):
    with pytest.raises(TypeError):
        load_documents(source)


# The download

NAMES = b"emma\nolivia\nava"


class Server(http.server.ThreadingHTTPServer):
    """Answer every request with status, body and headers, and count the requests."""

    status, body, headers, requests = 200, NAMES, {}, 0


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests += 1
        if self.path == "/elsewhere":
            self.send_response(200)
        else:
            self.send_response(self.server.status)
            for name, value in self.server.headers.items():
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *args):
        pass


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Use a folder that does not exist yet as the cache; return the path of the names in it."""
    monkeypatch.setenv("MICROGPT_CACHE", str(tmp_path / "new" / "cache"))
    return tmp_path / "new" / "cache" / "makemore.txt"


@pytest.fixture
def server(cache, monkeypatch):
    """Run a server in place of the real one; NAMES are what it should send."""
    with Server(("127.0.0.1", 0), Answer) as server:
        url = f"http://127.0.0.1:{server.server_port}/names.txt"
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(data, "_MAKEMORE_URL", url)
        monkeypatch.setattr(data, "_MAKEMORE_SHA256", hashlib.sha256(NAMES).hexdigest())
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def download_error():
    with pytest.raises(DownloadError) as caught:
        load_documents("makemore")
    assert isinstance(caught.value, OSError)
    message = error_line(caught)
    assert data._MAKEMORE_URL in message
    assert os.environ["MICROGPT_CACHE"] in message
    return message


def test_makemore_is_pinned():
    assert data._MAKEMORE_URL.startswith("https://")
    assert "/988aa59/" in data._MAKEMORE_URL
    assert re.fullmatch("[0-9a-f]{64}", data._MAKEMORE_SHA256)


def test_only_makemore_downloads(server, file):
    file.write_text("emma")
    load_documents()
    load_documents(file)
    assert server.requests == 0


def test_download_happens_once(server, cache):
    for _ in range(3):
        assert load_documents("makemore") == ["emma", "olivia", "ava"]
    assert server.requests == 1
    assert cache.read_bytes() == NAMES
    assert os.listdir(cache.parent) == ["makemore.txt"]


def test_cached_copy_needs_no_network(server, cache):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(NAMES)
    assert load_documents("makemore") == ["emma", "olivia", "ava"]
    assert server.requests == 0


@pytest.mark.parametrize("damage", [b"", NAMES + b"\n", NAMES[:-1], b"\xff"])
def test_damaged_copy_is_downloaded_again(server, cache, damage):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(damage)
    assert load_documents("makemore") == ["emma", "olivia", "ava"]
    assert server.requests == 1
    assert cache.read_bytes() == NAMES


@pytest.mark.parametrize(
    ("status", "body", "headers", "reason"),
    [
        (200, b"<html>log in</html>", {}, "sha256"),
        (200, NAMES + b"x" * 2_000_000, {}, "sha256"),
        (200, b"", {}, "sha256"),
        (200, NAMES[:5], {"Content-Length": str(len(NAMES))}, ""),
        (200, NAMES, {"Transfer-Encoding": "chunked"}, ""),
        (302, b"", {"Location": "/elsewhere"}, "redirected to http://127.0.0.1"),
        (302, b"", {"Location": "file:///etc/passwd"}, "302"),
        (302, b"", {"Location": "/loop"}, "302"),
        (403, b"no", {}, "403"),
        (404, b"", {}, "404"),
        (500, b"", {}, "500"),
    ],
    ids="page long empty short chunks redirect redirect-file redirect-loop 403 404 500".split(),
)
def test_wrong_answer_keeps_no_file(server, cache, status, body, headers, reason):
    server.status, server.body, server.headers = status, body, headers
    assert reason in download_error()
    assert not cache.parent.exists()


def test_wrong_answer_leaves_the_damaged_copy(server, cache):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"mine")
    server.body = b"wrong"
    assert "replace the damaged" in download_error()
    assert cache.read_bytes() == b"mine"
    assert os.listdir(cache.parent) == ["makemore.txt"]


def test_no_network(server, cache, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setattr(data, "_MAKEMORE_URL", f"http://127.0.0.1:{port}/names.txt")
    message = download_error()
    assert "refused" in message
    assert message.endswith(f"get {data._MAKEMORE_URL} elsewhere and save it as {cache}")
    assert not cache.exists()


def test_unknown_host(server, monkeypatch):
    def fail(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert "(Name or service not known)" in download_error()


def test_silent_server(server, monkeypatch):
    monkeypatch.setattr(data, "_DOWNLOAD_TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(data, "_MAKEMORE_URL", url)
        assert "timed out" in download_error()


def test_malformed_proxy(server, monkeypatch):
    monkeypatch.setattr(urllib.request, "_opener", None)  # it keeps the proxies of its first use
    monkeypatch.delenv("no_proxy")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", "http:/no-authority")
    assert "proxy" in download_error()


def test_cache_that_is_a_file(server, cache):
    cache.parent.parent.mkdir()
    cache.parent.write_text("in the way")
    with pytest.raises(OSError) as caught:
        load_documents("makemore")
    assert str(cache) in error_line(caught)


def test_cache_that_cannot_be_written(server, monkeypatch):
    def refuse(path, mode):
        if mode == "rb":
            return open(path, mode)
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(files, "open", refuse, raising=False)
    assert "(No space left on device)" in download_error()


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_interrupted_write_leaves_nothing(server, cache, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises((DownloadError, KeyboardInterrupt)):
        load_documents("makemore")
    assert os.listdir(cache.parent) == []


def test_the_original_names(server, cache, monkeypatch):
    if not (reference := os.environ.get("MICROGPT_REFERENCE")):
        pytest.skip("MICROGPT_REFERENCE is not set")
    monkeypatch.setattr(data, "_MAKEMORE_SHA256", MAKEMORE_SHA256)
    names = Path(reference, "data", "names.txt")
    server.body = names.read_bytes()
    docs = load_documents("makemore")
    assert len(docs) == 32033
    assert docs[:2] == ["emma", "olivia"]
    assert docs == load_documents(names)
    assert cache.read_bytes() == names.read_bytes()


# The cache folder


@pytest.fixture
def environment(monkeypatch):
    for name in "MICROGPT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA":
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path.replace("~", "/home/ann"))
    return monkeypatch


@pytest.mark.parametrize(
    ("platform", "variables", "folder"),
    [
        ("linux", {}, "/home/ann/.cache/microgpt"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/microgpt"),
        ("linux", {"XDG_CACHE_HOME": ""}, "/home/ann/.cache/microgpt"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "/home/ann/.cache/microgpt"),
        ("darwin", {"XDG_CACHE_HOME": "/x"}, "/home/ann/Library/Caches/microgpt"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/microgpt"),
        ("win32", {}, "/home/ann/AppData/Local/microgpt"),
        ("linux", {"MICROGPT_CACHE": "/mine", "XDG_CACHE_HOME": "/x"}, "/mine"),
        ("linux", {"MICROGPT_CACHE": ""}, "/home/ann/.cache/microgpt"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="the paths are written for POSIX")
def test_cache_folder(environment, platform, variables, folder):
    environment.setattr(data.sys, "platform", platform)
    for name, value in variables.items():
        environment.setenv(name, value)
    found = data.cache_folder()
    environment.undo()
    assert found == folder


def test_cache_folder_is_absolute(environment):
    environment.setenv("MICROGPT_CACHE", "here")
    assert data.cache_folder() == os.path.abspath("here")


def test_cache_folder_without_a_home(environment):
    environment.setattr(os.path, "expanduser", lambda path: path)  # as it is for an unknown user
    assert data.cache_folder().startswith(tempfile.gettempdir())
