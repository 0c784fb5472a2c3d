"""What keeps out those who do not belong. Each protection is also taken away, and what it keeps out then gets in."""

from __future__ import annotations

import gzip
import hmac
import io
import json
import runpy
import socket
import struct
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import jwt
import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from serving import bodies, door, references
from tomoray import dicomweb, nifti
from tomoray.errors import Usage
from tomoray.geometry import Geometry
from tomoray.ingest import uploads
from tomoray.tokens import add_token, read_tokens, revoke_token

_in_process = runpy.run_path(str(Path(__file__).parents[1] / "in_process.py"))
gateway_app, Caller, code = (_in_process[name] for name in ("gateway_app", "Caller", "code"))
JSON, NIFTI, ZIP = "application/json", "application/gzip", "application/zip"
without = pytest.mark.parametrize("protected", [True, False], ids=["protected", "without"])


@pytest.fixture
def tokens(tmp_path):
    path = tmp_path / "tokens.json"
    add_token(path, "first", ["infer"], days=1)
    return path, lambda name, *scopes, days=1: add_token(path, name, scopes or ["infer"], days)


# Who asks


@without
def test_other_machines_are_turned_away_where_no_auth_is_configured(tmp_path, monkeypatch, protected):
    if not protected:
        monkeypatch.setattr(door, "_require_loopback", lambda request: None)
    foreign = Caller(gateway_app(tmp_path), client=("203.0.113.5", 4711))
    assert code(foreign.get("/v1/models")) == ((403, "auth_not_configured") if protected else 200)
    assert code(foreign.get("/healthz")) == 200


@without
def test_page_of_another_site_cannot_ask_through_a_browser(tmp_path, monkeypatch, protected):
    if not protected:
        monkeypatch.setattr(door, "_require_loopback", lambda request: None)
    rebound = Caller(gateway_app(tmp_path), host="attacker.example")
    assert code(rebound.get("/v1/models")) == ((403, "auth_not_configured") if protected else 200)


@without
@pytest.mark.parametrize("presented", ["nothing", "unknown", "expired", "revoked", "basic"])
def test_without_a_good_token_nobody_gets_in(tmp_path, tokens, protected, presented):
    path, add = tokens
    good, expired, revoked = add("good"), add("old", days=0), add("gone")
    api = gateway_app(tmp_path, auth={"tokens": str(path)} if protected else {"proxied": True})
    assert Caller(api, token=good).get("/v1/models").status_code == 200
    revoke_token(path, "gone")
    token = {"nothing": None, "unknown": good[:-1] + "x", "expired": expired, "revoked": revoked, "basic": None}[
        presented
    ]
    headers = {"Authorization": f"Basic {good}"} if presented == "basic" else {}
    reply = Caller(api, token=token).get("/v1/models", headers=headers)
    assert code(reply) == ((401, "unauthorized") if protected else 200)
    assert not protected or reply.headers["WWW-Authenticate"] == "Bearer"


def test_file_of_tokens_holds_digests_for_its_owner_only(tokens):
    path, add = tokens
    text = add("pacs")
    assert text not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    assert read_tokens(path)[-1].expires == pytest.approx(time.time() + 86400, abs=60)
    with pytest.raises(Usage, match="already"):
        add("pacs")
    with pytest.raises(Usage, match="scopes infer"):
        add("other", "everything")


@without
def test_token_is_good_for_its_models_only(tmp_path, tokens, archive, protected):
    path, add = tokens
    token = add("narrow", "infer:one" if protected else "infer")
    caller = Caller(gateway_app(tmp_path, [archive], auth={"tokens": str(path)}), token=token)
    listed = [model["name"] for model in caller.get("/v1/models").json()["models"]]
    assert listed == (["one"] if protected else ["one", "two"])
    assert caller.segment(json={"scan_id": "scan-1"}, params={"model": "one"}).status_code == 200
    reply = caller.segment(json={"scan_id": "scan-1"}, params={"model": "two"})
    assert code(reply) == ((404, "unknown_model") if protected else 200)


@without
def test_token_for_metrics_cannot_infer_and_the_other_way_round(tmp_path, tokens, archive, protected):
    path, add = tokens
    numbers = add("prometheus", *(["metrics"] if protected else ["metrics", "infer"]))
    people = add("people", *(["infer"] if protected else ["metrics", "infer"]))
    api = gateway_app(tmp_path, [archive], auth={"tokens": str(path)})
    assert Caller(api, token=numbers).get("/metrics").status_code == 200
    refused = (403, "not_allowed") if protected else 200
    assert code(Caller(api, token=numbers).segment(json={"scan_id": "scan-1"})) == refused
    assert code(Caller(api, token=people).get("/metrics")) == refused


@without
def test_job_is_its_owners_alone(tmp_path, tokens, archive, protected):
    path, add = tokens
    api = gateway_app(tmp_path, [archive], auth={"tokens": str(path)})
    mine = add("me")
    ask = {"operation": "segment", "input": {"scan_id": "scan-1"}}
    job = Caller(api, token=mine).ask("POST", "/v1/jobs", json=ask, headers={"Idempotency-Key": "k"}).json()
    other = Caller(api, token=add("other") if protected else mine)
    assert code(other.get(f"/v1/jobs/{job['id']}")) == ((404, "unknown_job") if protected else 200)
    assert code(other.ask("DELETE", f"/v1/jobs/{job['id']}")) == ((404, "unknown_job") if protected else 200)
    theirs = other.ask("POST", "/v1/jobs", json=ask, headers={"Idempotency-Key": "k"}).json()
    assert (theirs["id"] != job["id"]) == protected


@without
def test_caller_who_asks_too_often_waits(tmp_path, protected):
    caller = Caller(gateway_app(tmp_path, limits={"requests_per_minute": 3 if protected else 0}))
    replies = [caller.get("/v1/models") for _ in range(5)]
    assert [reply.status_code for reply in replies] == ([200] * 3 + [429] * 2 if protected else [200] * 5)
    assert not protected or 1 <= int(replies[-1].headers["Retry-After"]) <= 20


# An identity provider


@pytest.fixture(scope="module")
def key():
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="module")
def provider(key):
    """Its address; it publishes the public half of `key`, as OpenID Connect Discovery says."""
    jwk = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key())) | {"kid": "k1", "use": "sig"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            known = {"/.well-known/openid-configuration": {"jwks_uri": f"{url}/keys"}, "/keys": {"keys": [jwk]}}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(known[self.path]).encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield url
        server.shutdown()
        thread.join()


def signed(provider, key, algorithm="RS256", kid="k1", **claims):
    said = {
        "iss": provider,
        "aud": "tomoray",
        "sub": "DOE^JANE",
        "exp": time.time() + 60,
        "scope": "tomoray:infer mail",
    }
    said = {name: value for name, value in {**said, **claims}.items() if value is not None}
    return jwt.encode(said, key, algorithm=algorithm, headers={"kid": kid})


def confused(provider, public):
    """Signed with the public key as if it were a shared secret; libraries refuse to make one."""
    head, claims, _ = signed(provider, "a secret of thirty-two bytes or more", algorithm="HS256").split(".")
    signature = hmac.digest(public, f"{head}.{claims}".encode(), "sha256")
    return f"{head}.{claims}.{jwt.utils.base64url_encode(signature).decode()}"


@pytest.fixture
def oidc(tmp_path, provider):
    return gateway_app(tmp_path, auth={"oidc": {"issuer": provider, "audience": "tomoray"}})


def test_signed_token_gets_in_with_the_scopes_of_this_server(oidc, provider, key, tmp_path):
    caller = Caller(oidc, token=signed(provider, key))
    assert caller.get("/v1/models").status_code == 200
    assert code(caller.get("/metrics")) == (403, "not_allowed")
    assert "DOE" not in (tmp_path / "audit.jsonl").read_text()


@without
@pytest.mark.parametrize("fault", ["audience", "issuer", "expired", "endless", "unsigned", "confused", "forged"])
def test_token_that_is_not_quite_right_does_not_get_in(oidc, provider, key, monkeypatch, protected, fault):
    if not protected:
        decode = jwt.decode
        monkeypatch.setattr(jwt, "decode", lambda text, *_, **__: decode(text, options={"verify_signature": False}))
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    token = {
        "audience": lambda: signed(provider, key, aud="another"),
        "issuer": lambda: signed(provider, key, iss="https://attacker.example"),
        "expired": lambda: signed(provider, key, exp=time.time() - 1),
        "endless": lambda: signed(provider, key, exp=None),
        "unsigned": lambda: signed(provider, None, algorithm="none"),
        "confused": lambda: confused(provider, public),
        "forged": lambda: signed(provider, rsa.generate_private_key(public_exponent=65537, key_size=2048)),
    }[fault]()
    reply = Caller(oidc, token=token).get("/v1/models")
    assert code(reply) == ((401, "unauthorized") if protected else 200)


def test_provider_that_is_away_is_no_way_in(tmp_path, key):
    api = gateway_app(tmp_path, auth={"oidc": {"issuer": "http://127.0.0.1:9", "audience": "tomoray"}})
    assert code(Caller(api, token=signed("http://127.0.0.1:9", key)).get("/v1/models")) == (503, "try_again")


# What is sent


def zipped(files):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return packed.getvalue()


def sent(caller, body, kind=ZIP):
    return caller.segment(content=body, headers={"Content-Type": kind})


@without
def test_body_is_stopped_at_the_limit(tmp_path, protected):
    caller = Caller(gateway_app(tmp_path, limits={"body_mb": 1 if protected else 5}))

    async def chunks():
        for _ in range(40):
            yield bytes(100_000)

    for body in (bytes(4_000_000), chunks()):
        assert code(sent(caller, body)) == ((413, "too_large") if protected else (400, "bad_zip"))


@without
@pytest.mark.parametrize("kind", [ZIP, NIFTI])
def test_bomb_is_not_unpacked(tmp_path, protected, kind):
    caller = Caller(gateway_app(tmp_path, limits={"body_mb": 1, "expansion": 4 if protected else 60}))
    zeros = bytes(50_000_000)
    body = zipped({"zeros.dcm": zeros}) if kind == ZIP else gzip.compress(zeros)
    assert len(body) < 100_000
    unharmed = (400, "bad_zip") if kind == ZIP else (422, "unreadable")
    assert code(sent(caller, body, kind)) == ((413, "too_large") if protected else unharmed)


@without
def test_slices_that_decode_to_more_than_allowed_are_not_decoded(tmp_path, make_series, monkeypatch, protected):
    series = make_series(5)
    decoded = []
    decode = uploads.load_dicom
    monkeypatch.setattr(uploads, "load_dicom", lambda *a, **k: decoded.append(1) or decode(*a, **k))
    if not protected:
        monkeypatch.setattr(uploads, "sum", lambda _: 0, raising=False)
    for dataset in series.datasets:
        dataset.Rows = dataset.Columns = 4000  # and no more bytes than before
    series.instances()
    reply = sent(Caller(gateway_app(tmp_path, limits={"body_mb": 1})), zipped(series.files))
    assert reply.status_code in (413, 422)
    assert bool(decoded) != protected


def test_nifti_with_forged_dimensions_is_refused(tmp_path):
    geometry = Geometry.from_matrix((4, 4, 4), np.eye(4))
    plain = bytearray(gzip.decompress(nifti.write(np.zeros((4, 4, 4), np.int16), geometry)))
    plain[42:48] = struct.pack("<3h", 32767, 32767, 32767)  # 70 TB
    caller = Caller(gateway_app(tmp_path, limits={"body_mb": 1}))
    assert code(sent(caller, gzip.compress(bytes(plain)), NIFTI)) == (422, "unreadable")


@without
def test_bodies_together_are_bounded_and_the_rest_come_back_later(tmp_path, monkeypatch, protected):
    caller = Caller(gateway_app(tmp_path, limits={"body_mb": 2, "bodies_mb": 2 if protected else 100}))
    monkeypatch.setattr(bodies.Bodies, "__init__", _begin_full(bodies.Bodies.__init__))
    caller = Caller(gateway_app(tmp_path, limits={"body_mb": 2, "bodies_mb": 2 if protected else 100}))
    reply = sent(caller, bytes(1_500_000))
    assert code(reply) == ((429, "busy") if protected else (400, "bad_zip"))
    assert not protected or int(reply.headers["Retry-After"]) >= 1


def _begin_full(begin):
    def full(self, limits):
        begin(self, limits)
        self._in_flight = 1_000_000  # another body is being read

    return full


@without
def test_full_queue_is_told_and_nothing_of_the_body_stays(tmp_path, protected):
    caller = Caller(gateway_app(tmp_path, queue={"url": str(tmp_path / "queue"), "depth": 1 if protected else 9}))
    ask = {"content": zipped({"a": b"b"}), "headers": {"Content-Type": ZIP}, "params": {"operation": "segment"}}
    replies = [caller.ask("POST", "/v1/jobs", **ask) for _ in range(3)]
    assert [reply.status_code for reply in replies] == ([202, 429, 429] if protected else [202] * 3)
    assert len(list((tmp_path / "files").glob("*/body"))) == (1 if protected else 3)
    assert (tmp_path / "files").stat().st_mode & 0o077 == 0


# What is named


@pytest.fixture
def inside():
    """A server within, which nobody may reach through this one; `hits` are who did."""
    hits = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def listen():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                hits.append(connection)
                connection.close()

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield listener.getsockname()[1], hits
        listener.shutdown(socket.SHUT_RDWR)


@without
@pytest.mark.parametrize(
    "named",
    [
        {"s3": "s3://secret/studies/1"},
        {"s3": "s3://allowed-not/studies/1"},
        {"s3": "s3://allowed/studies/../../secret/1"},
        {"s3": "s3://allowed/other/1"},
        {"dicomweb": "127.0.0.1", "study": "1.2.3"},
        {"dicomweb": "pacs/../other", "study": "1.2.3"},
        {"scan_id": "scan-1", "archive": "dicomweb+http://127.0.0.1/x"},
        {"scan_id": "scan-1", "archive": "s3://secret/archive"},
        {"scan_id": "scan-1", "archive": "/etc"},
    ],
)
def test_no_place_is_asked_that_the_config_does_not_list(tmp_path, archive, monkeypatch, inside, protected, named):
    port, hits = inside
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("TOMORAY_S3_PATIENCE", "1")
    if not protected:
        url = f"http://127.0.0.1:{port}"
        monkeypatch.setattr(dicomweb, "_RETRIED", 0)
        dicomweb._session.cache_clear()
        monkeypatch.setattr(references.Places, "prefix", lambda self, asked: asked.s3)
        monkeypatch.setattr(references.Places, "source", lambda self, asked: f"dicomweb+{url}?StudyInstanceUID=1")
        monkeypatch.setattr(references.Places, "_archive", lambda self, name: "s3://secret/archive")
        if "/.." in str(named):
            named = {"s3": "s3://secret/1"}
    places = {"s3": ["s3://allowed/studies/"], "dicomweb": {"pacs": "http://127.0.0.1:9"}}
    reply = Caller(gateway_app(tmp_path, [archive], references=places)).segment(json=named)
    if protected:
        assert reply.status_code in (400, 403), reply.text
    assert bool(hits) != protected


def test_study_uid_cannot_lead_elsewhere_on_its_server(tmp_path):
    api = gateway_app(tmp_path, references={"dicomweb": {"pacs": "http://127.0.0.1:9"}})
    for study in ("1.2/../../admin", "1.2?x=y", "1.2&StudyInstanceUID=3", "", "1." * 40):
        assert code(Caller(api).segment(json={"dicomweb": "pacs", "study": study}))[0] == 400


# What is written down


def test_audit_says_who_did_what_without_saying_of_whom(tmp_path, tokens, archive):
    path, add = tokens
    api = gateway_app(tmp_path, [archive], auth={"tokens": str(path)}, references={"s3": ["s3://in/"]})
    caller = Caller(api, token=add("pacs"))
    caller.segment(json={"scan_id": "scan-1"})
    caller.segment(json={"s3": "s3://elsewhere/DOE^JANE/1"})
    Caller(api, token="wrong").get("/v1/jobs/DOE-JANE")
    entries = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(each["caller"], each["status"]) for each in entries] == [("pacs", 200), ("pacs", 403), (None, 401)]
    assert (entries[0]["model"], entries[0]["operation"]) == ("one", "segment")
    assert "DOE" not in json.dumps(entries)
    assert (tmp_path / "audit.jsonl").stat().st_mode & 0o077 == 0


def test_metrics_count_requests_by_route_and_name_nobody(tmp_path, archive):
    caller = Caller(gateway_app(tmp_path, [archive]))
    caller.segment(json={"scan_id": "scan-1"})
    caller.get("/v1/jobs/DOE-JANE")
    text = caller.get("/metrics").text
    assert 'tomoray_serving_requests_total{replica="alone",route="POST /v1/segment",status="200"} 1.0' in text
    assert 'route="GET /v1/jobs/{job_id}",status="404"' in text
    assert 'tomoray_serving_jobs{state="queued"} 0.0' in text
    assert "DOE" not in text
