"""Certificates for tests: good ones by cairnctl cert, as an operator makes them, and wrong ones by hand."""

from __future__ import annotations

import datetime
import pathlib
import subprocess

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import cairn
from cluster import BIN


class Pki:
    """A CA in a folder, and what it certified."""

    def __init__(self, folder: pathlib.Path, cluster: str = "cairn"):
        self.folder = folder
        self.cluster = cluster
        self.make("ca")

    def make(self, kind: str, *arguments: str) -> None:
        done = subprocess.run([BIN / "cairnctl", "cert", kind, *arguments, "--dir", str(self.folder), "--cluster", self.cluster],
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    @property
    def ca(self) -> pathlib.Path:
        return self.folder / "ca.crt"

    def pair(self, kind: str, name: str) -> tuple[pathlib.Path, pathlib.Path]:
        """Certificate and key, made when they aren't there."""
        certificate, key = (self.folder / f"{kind}-{name}.{ending}" for ending in ("crt", "key"))
        if not certificate.exists():
            self.make(kind, name)
        return certificate, key

    def tls(self, kind: str, name: str) -> cairn.Tls:
        return cairn.Tls(self.ca, *self.pair(kind, name))

    def node_arguments(self, name: str) -> list[str]:
        certificate, key = self.pair("node", name)
        return ["--tls-certificate", str(certificate), "--tls-key", str(key), "--tls-ca", str(self.ca),
                "--cluster-name", self.cluster]

    def secure(self, cluster, *arguments: str):
        """The nodes of a cluster that isn't started yet get certificates."""
        for node in cluster.nodes:
            node.arguments = [*node.arguments, *self.node_arguments(node.name), *arguments]
        return cluster

    def revoke(self, certificate: pathlib.Path) -> pathlib.Path:
        """The folder with the list."""
        done = subprocess.run([BIN / "cairnctl", "cert", "revoke", str(certificate), "--dir", str(self.folder)],
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return self.folder / "revoked"

    def strange(self, name: str, identity: str, begins_days: float = -1, ends_days: float = 30,
                own_signature: bool = False) -> cairn.Tls:
        """A client certificate with what one wants in it."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.timezone.utc)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        signer = key if own_signature else serialization.load_pem_private_key(
            (self.folder / "ca.key").read_bytes(), None)
        issuer = subject if own_signature else x509.load_pem_x509_certificate(self.ca.read_bytes()).subject
        builder = (x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
                   .serial_number(x509.random_serial_number())
                   .not_valid_before(now + datetime.timedelta(days=begins_days))
                   .not_valid_after(now + datetime.timedelta(days=ends_days)))
        if identity:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), False)
        certificate = builder.sign(signer, hashes.SHA256())
        paths = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                               serialization.NoEncryption()))
        paths[1].chmod(0o600)
        return cairn.Tls(self.ca, *paths)
