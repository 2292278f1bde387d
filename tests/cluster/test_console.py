"""The console page in a real browser; CI keeps the picture in build/console.png."""

import json
import re
import shutil
import subprocess
import urllib.request

import cairn
import pytest
from cluster import ROOT, SLOW, Cluster, wait_until
from load import Load

CHROMIUM = shutil.which("chromium")
PICTURE = ROOT / "build" / "console.png"


def get(node, path):
    with urllib.request.urlopen(f"http://{node.host}:{node.http_port}{path}", timeout=5) as response:
        return response.headers, response.read()


def browse(node, *arguments, folder):
    return subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                           "--hide-scrollbars", "--window-size=1240,1150", f"--user-data-dir={folder}",
                           "--virtual-time-budget=6000", *arguments, f"http://{node.host}:{node.http_port}/"],
                          capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; tools/setup --tests installs it")
@pytest.mark.timeout(300)
def test_the_page_shows_members_partitions_and_rates(tmp_path):
    with Cluster(4, arguments=("--balance-after", "500ms", "--zone", "east")) as cluster, \
            Load(cluster.endpoints[:3]) as load:
        with cairn.Client(cluster.endpoints[:3], timeout=20) as client:
            client.update_settings(moves_at_once=1, grace_ms=3600000)
        wait_until(lambda: len(json.loads(get(cluster.nodes[0], "/console.json")[1])["samples"]) >= 3, 60, "samples", 0.5)
        cluster.nodes[3].kill()
        wait_until(lambda: any(m["status"] == "dead" for m in
                               json.loads(get(cluster.nodes[0], "/console.json")[1])["members"]), 60, "n4 is dead", 0.5)
        load.wait_for(20)
        page = browse(cluster.nodes[0], "--dump-dom", folder=tmp_path / "a").stdout
        assert 'data-loaded="yes"' in page, page[:2000]
        for name in ("n1 (this node)", "n2", "n3", "n4"):
            assert f"<td>{name}</td>" in page
        assert '<td class="bad">dead</td>' in page and ">east<" in page
        assert len(re.findall(r"owns partition", page)) == 64
        assert len(re.findall(r"<polyline", page)) == 3
        assert '<span id="state" class="good">ready</span>' in page
        browse(cluster.nodes[0], f"--screenshot={PICTURE}", folder=tmp_path / "b")
        assert PICTURE.stat().st_size > 20000


def test_the_page_needs_nothing_from_elsewhere(one):
    headers, page = get(one.nodes[0], "/")
    assert headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert not re.search(rb"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    view = json.loads(get(one.nodes[0], "/console.json")[1])
    assert view["ready"] is True and len(view["partitions"]) == 64 and view["members"][0]["self"] is True
