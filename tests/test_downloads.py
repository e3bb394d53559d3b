"Published files fetched from a server of this process: cut, continued, compared, and what is said of those that fail."
import hashlib
import http.server
import re

import pytest

from tests.served import served
from vgnb import downloads
from vgnb.core import BadInput, Mismatch, Missing
from vgnb.downloads import Remote, by_hand, differs, fetch, fetch_all

CONTENT = bytes(range(256)) * 3000
HASH = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    "A server that can be told to misbehave."
    content, tag, ranges, cuts, answers, asked = CONTENT, '"1"', True, [], [], []
    def log_message(self, *args): pass
    def do_GET(self):
        cls = type(self)
        said = self.headers.get("Range")
        cls.asked.append((self.path, said, self.headers.get("If-Range")))
        if cls.answers:
            self.send_response(cls.answers.pop(0))
            self.end_headers()
            return
        fresh = self.headers.get("If-Range") in (None, cls.tag)
        begin = int(re.match(r"bytes=(\d+)-", said)[1]) if said and cls.ranges and fresh else 0
        if begin >= len(cls.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(cls.content)}")
            self.end_headers()
            return
        self.send_response(206 if begin else 200)
        if begin: self.send_header("Content-Range", f"bytes {begin}-{len(cls.content) - 1}/{len(cls.content)}")
        self.send_header("Content-Length", str(len(cls.content) - begin))
        if cls.tag: self.send_header("ETag", cls.tag)
        self.end_headers()
        end = begin + cls.cuts.pop(0) if cls.cuts else None
        self.wfile.write(cls.content[begin:end])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads, "_PAUSE", 0.001)
    for name, value in dict(content=CONTENT, tag='"1"', ranges=True, cuts=[], answers=[], asked=[]).items():
        setattr(Handler, name, value)
    with served(Handler) as address: yield address


def remote(server, **kw): return Remote("in/rows.bin", **({"url": f"{server}/rows.bin", "hash": f"sha256:{HASH}"} | kw))


def left(folder): return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_cut_file_is_gone_on_with(server, tmp_path):
    Handler.cuts = [1000, 500_000]
    moved = []
    place = fetch(remote(server), tmp_path, moved.append)
    assert place.read_bytes() == CONTENT and left(tmp_path) == ["in/rows.bin"] and sum(moved) == len(CONTENT)
    assert [said for _, said, _ in Handler.asked] == [None, "bytes=1000-", "bytes=501000-"]
    assert fetch(remote(server), tmp_path) == place and len(Handler.asked) == 3, "there already"


@pytest.mark.parametrize("how", [dict(ranges=False), dict(tag=""), dict(tag='W/"1"')])
def test_a_server_that_cannot_go_on_begins_anew(server, tmp_path, how):
    for name, value in how.items(): setattr(Handler, name, value)
    Handler.cuts = [1000, 2000]
    moved = []
    assert fetch(remote(server, hash=""), tmp_path, moved.append).read_bytes() == CONTENT
    assert sum(moved) == len(CONTENT) and left(tmp_path) == ["in/rows.bin"]
    if not how.get("tag", "x").startswith('"'): assert how.get("ranges") is False or Handler.asked[-1][1] is None


def test_another_file_of_that_name_is_not_glued_to_the_first(server, tmp_path):
    Handler.cuts = [1000] * 9
    part = tmp_path / "in" / "rows.bin.part"
    part.parent.mkdir()
    part.write_bytes(b"x" * 700)
    part.with_name("rows.bin.part.tag").write_text('"0"')
    Handler.cuts = []
    assert fetch(remote(server, hash=""), tmp_path).read_bytes() == CONTENT
    assert Handler.asked == [("/rows.bin", "bytes=700-", '"0"')], "asked to go on if it is still the same; it isn't"


def test_a_stopped_one_goes_on_next_time(server, tmp_path):
    Handler.cuts = [300_000]
    def stop(n):
        if n > 1: raise InterruptedError("stopped")
    with pytest.raises(InterruptedError): fetch(remote(server), tmp_path, stop)
    assert left(tmp_path) == ["in/rows.bin.part", "in/rows.bin.part.tag"]
    kept = (tmp_path / "in/rows.bin.part").stat().st_size
    assert 0 < kept <= 300_000 and fetch(remote(server), tmp_path).read_bytes() == CONTENT
    assert Handler.asked[-1][1] == f"bytes={kept}-"


def test_all_bytes_were_there_when_it_was_killed(server, tmp_path):
    part = tmp_path / "in" / "rows.bin.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT)
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT and left(tmp_path) == ["in/rows.bin"]


@pytest.mark.parametrize("stated, words", [
    (dict(size=12), "has 768000 bytes at .* instead of 12"),
    (dict(hash="sha256:00ff"), "has the sha256 .* instead of 00ff: .* gives another file than is stated"),
    (dict(hash="md5:" + "0" * 32), "has the md5 .* instead of 0000000000000000")])
def test_another_file_than_is_stated_is_refused(server, tmp_path, stated, words):
    with pytest.raises(Mismatch, match=words): fetch(remote(server, **stated), tmp_path)
    assert not (tmp_path / "in/rows.bin").exists() and not (tmp_path / "in/rows.bin.part").exists()


def test_a_file_that_is_there_is_compared(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"abc")
    with pytest.raises(Mismatch, match="has 3 bytes instead of 4; remove it"): fetch(Remote("a.bin", size=4), tmp_path)
    assert differs(tmp_path / "a.bin", Remote("a.bin", size=3, hash="sha256:ba7816bf")) == ""


def test_busy_servers_are_asked_again_and_absent_files_are_not(server, tmp_path):
    Handler.answers = [503, 429, 500]
    assert fetch(remote(server), tmp_path / "a").read_bytes() == CONTENT
    Handler.answers = [404]
    with pytest.raises(Missing, match="the server answers 404"): fetch(remote(server), tmp_path / "b")
    Handler.answers = [503] * 9
    with pytest.raises(Missing, match=r"could not be fetched \(HTTP 503\)$"):
        fetch(remote(server), tmp_path / "c")
    assert len(Handler.answers) == 5, "four tries"


def test_several_at_once_and_one_that_fails(server, tmp_path, capsys):
    wanted = [Remote(f"{i}.bin", url=f"{server}/{i}", hash=f"sha256:{HASH}") for i in range(5)]
    absent, gone = Remote("by-hand.bin", page="https://example.org/x"), Remote("gone.bin", url="http://127.0.0.1:9/gone")
    failed = fetch_all([*wanted, absent, gone, wanted[0]], tmp_path, jobs=3)
    assert list(failed) == [absent, gone] and len(Handler.asked) == 5
    assert left(tmp_path) == [f"{i}.bin" for i in range(5)]
    assert "fetched by hand: by-hand.bin of https://example.org/x ->" in str(failed[absent])
    assert by_hand([gone], "w") == ["gone.bin of http://127.0.0.1:9/gone -> w/gone.bin"]
    with pytest.raises(BadInput, match="jobs=0"): fetch_all(wanted, tmp_path, jobs=0)


def test_room_is_looked_for_first(server, tmp_path):
    large = Remote("large.bin", url=f"{server}/large", size=10 ** 18)
    with pytest.raises(Mismatch, match="GB free, and 1000000000.0 GB are to come"): fetch_all([large], tmp_path)
    assert Handler.asked == []
