"""The metrics endpoint under fire: 1000 scrapes, malformed requests and clients that send nothing, while a run waits; more
scrapes while it goes on.

    python tests/live/endpoint_test.py build/flashmorph-dist MPIRUN     from the repository's root

Only GET /metrics is answered with 200; the run ends with exactly the results of a run without an endpoint.
"""

import http.client
import socket
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from small_run import SmallRun

SCRAPES = 1000
REFUSED = [("POST", "/metrics"), ("PUT", "/metrics"), ("DELETE", "/metrics"), ("PATCH", "/metrics"), ("OPTIONS", "/metrics"),
           ("HEAD", "/metrics"), ("GET", "/"), ("GET", "/metrics/"), ("GET", "/metrics/x"), ("GET", "/../../etc/passwd"),
           ("GET", "/%2e%2e/etc/passwd"), ("GET", "/run.yaml")]
MALFORMED = [b"\r\n\r\n", b"GET\r\n\r\n", b"GET /metrics\r\n\r\n", b"GET /metrics HTTP/9.9\r\n\r\n", b"\x00\xff" * 4000 + b"\r\n\r\n",
             b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
             b"GET /metrics HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"POST /metrics HTTP/1.1\r\nContent-Length: 999999999\r\n\r\nx",
             b"GET /metrics HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"]


def fail(message):
    sys.exit(f"FAILED: {message}")


def request(target, method, path):
    connection = http.client.HTTPConnection(*target, timeout=60)
    connection.request(method, path)
    reply = connection.getresponse()
    body = reply.read()
    connection.close()
    return reply.status, reply.headers, body


def scrape(target, times):
    for _ in range(times):
        status, headers, body = request(target, "GET", "/metrics")
        if status != 200 or not headers["Content-Type"].startswith("text/plain") or b"flashmorph_run_info" not in body:
            fail(f"a scrape gave {status}, {headers['Content-Type']}")


def scrape_to_its_end(target, times, run):
    """How often it answered; one that ends no longer does."""
    for answered in range(times):
        try:
            scrape(target, 1)
        except (OSError, http.client.HTTPException):
            run.finish()
            return answered
    return times


def check_refusals(target):
    for method, path in REFUSED:
        status, _, body = request(target, method, path)
        if status < 400 or b"flashmorph_" in body or b"root:" in body:
            fail(f"{method} {path} gave {status}")


def send_malformed(target):
    for text in MALFORMED:
        with socket.create_connection(target, timeout=60) as connection:
            try:
                connection.sendall(text)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
            except OSError:
                pass  # it may hang up as it likes


def main():
    program, mpirun = sys.argv[1:3]
    with tempfile.TemporaryDirectory() as folder:
        quiet = SmallRun(program, mpirun, Path(folder), "quiet", "--set", "metrics.listen=off")
        quiet.finish()
        if quiet.target() is not None:
            fail("a run with metrics.listen=off names an endpoint")

        run = SmallRun.held(SmallRun.target, program, mpirun, Path(folder), "watched")
        target = run.target()
        slow = [socket.create_connection(target) for _ in range(2)]  # one never asks, one never finishes asking
        slow[0].sendall(b"GET /met")
        with ThreadPoolExecutor() as clients:
            under_way = [clients.submit(scrape, target, SCRAPES // 2) for _ in range(2)]
            check_refusals(target)
            send_malformed(target)
            for client in under_way:
                client.result()
        run.let_go()
        answered = scrape_to_its_end(target, SCRAPES, run)
        for connection in slow:
            connection.close()
        run.finish()
        if run.results() != quiet.results():
            fail("the results differ from those of a run without an endpoint")
    print(f"endpoint: {SCRAPES} and {answered} scrapes, {len(REFUSED)} refusals, {len(MALFORMED)} malformed requests; the same results")


if __name__ == "__main__":
    main()
