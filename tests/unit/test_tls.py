from __future__ import annotations

import datetime
import gc
import runpy
import socket
import ssl
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cluster.endpoint import serving
from cluster.tls import decrypting
from tomoray.errors import Fatal, Usage
from tomoray.serving_config import ServeConfig, TlsConfig

free_port = runpy.run_path(str(Path(__file__).parents[1] / "services" / "s3_server.py"))["free_port"]


class Authority:
    """Signs certificates into a folder."""

    def __init__(self, folder, name):
        self._folder, self._key = folder, ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.path = folder / f"{name}.pem"
        self.path.write_bytes(self._sign(self._name, self._key, x509.BasicConstraints(ca=True, path_length=None)))

    def issue(self, name):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
        certificate, secret = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(self._sign(subject, key, names))
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        secret.write_bytes(key.private_bytes(*form))
        return str(certificate), str(secret)

    def _sign(self, subject, key, extension):
        today = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder(self._name, subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(today).not_valid_after(today + datetime.timedelta(days=1))
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(extension, critical=True).add_extension(authority, critical=False)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        builder = builder.add_extension(identifier, critical=False).add_extension(usage, critical=True)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture(scope="module")
def inner(answering):
    """What answers within, on loopback: the length of what was sent."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = str(len(self.rfile.read(int(self.headers["Content-Length"])))).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with answering(Handler) as port:
        yield port


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path, "authority")


def post(port, authority, body=b"hello", certificate=None):
    url = f"https://localhost:{port}/"
    return requests.post(url, data=body, verify=str(authority.path), cert=certificate, timeout=20).text


def test_what_goes_in_encrypted_comes_out_whole(inner, authority):
    certificate, key = authority.issue("server")
    port = free_port()
    with decrypting(TlsConfig(certificate=certificate, key=key), "127.0.0.1", port, inner):
        assert post(port, authority, bytes(20_000_000)) == "20000000"
        with socket.create_connection(("127.0.0.1", port)) as plain:
            plain.sendall(b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
            assert b"200" not in plain.recv(100)


def test_connection_whose_client_has_gone_is_kept_until_the_endpoint_closes_it(authority, caplog):
    certificate, key = authority.issue("server")
    port, trusted = free_port(), ssl.create_default_context(cafile=str(authority.path))
    with (
        socket.create_server(("127.0.0.1", 0)) as slow,
        decrypting(TlsConfig(certificate=certificate, key=key), "127.0.0.1", port, slow.getsockname()[1]),
        trusted.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost") as client,
    ):
        client.sendall(b"hello")
        kept, _ = slow.accept()
        with kept:
            assert kept.recv(100) == b"hello"
            client.unwrap().close()
            assert kept.recv(100) == b""
            for _ in range(20):
                time.sleep(0.02)
                gc.collect()
    assert "destroyed" not in caplog.text


@pytest.mark.parametrize("protected", [True, False], ids=["protected", "without"])
@pytest.mark.parametrize("stranger", [True, False], ids=["signed by another", "no certificate"])
def test_client_without_a_certificate_of_ours_gets_nothing(inner, authority, tmp_path, protected, stranger):
    certificate, key = authority.issue("server")
    ours = authority.issue("client")
    theirs = Authority(tmp_path, "stranger").issue("client of another") if stranger else None
    tls = TlsConfig(certificate=certificate, key=key, client_ca=str(authority.path) if protected else None)
    port = free_port()
    with decrypting(tls, "127.0.0.1", port, inner):
        assert post(port, authority, certificate=ours) == "5"
        if protected:
            with pytest.raises(requests.exceptions.ConnectionError):
                post(port, authority, certificate=theirs)
        else:
            assert post(port, authority, certificate=theirs) == "5"


def test_files_that_are_no_certificates_are_told_in_one_line(tmp_path, authority):
    (tmp_path / "no.pem").write_text("nothing")
    tls = TlsConfig(certificate=str(tmp_path / "no.pem"), key=authority.issue("server")[1])
    with pytest.raises(Fatal, match="wanted PEM files"), decrypting(tls, "127.0.0.1", 0, 1):
        pass


def test_open_address_without_auth_is_refused_before_anything_starts():
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(Usage, match="give --tokens FILE"), serving(ServeConfig(run="run", host=host)):
            pass
