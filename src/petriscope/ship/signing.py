"""Detached ed25519 signatures of packages: digests inside a folder show accidents, a signature shows who made it."""

from __future__ import annotations

from pathlib import Path

from petriscope.core.errors import RequestError
from petriscope.core.files import atomic
from petriscope.inference.package import MANIFEST, SIGNATURE


def sign(folder: Path, key: bytes) -> None:
    """Write the signature of the manifest, which has the digests of all other files.

    Args:
        key: as `read_key` returned it.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    signature = Ed25519PrivateKey.from_private_bytes(key).sign((folder / MANIFEST).read_bytes())
    with atomic(folder / SIGNATURE) as temporary:
        temporary.write_bytes(signature)


def read_key(path: Path) -> bytes:
    """The private key in a file, in PEM and without a password, as 32 bytes.

    Raises:
        RequestError: the file has no such key, or cryptography is not installed.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError:
        raise RequestError("signatures need cryptography: pip install 'petriscope[export]'") from None
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise RequestError(
            f"{path} has no private key in PEM without a password: {error}. openssl genpkey -algorithm ed25519 -out {path} "
            "makes one"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise RequestError(f"the key in {path} is not an ed25519 key; openssl genpkey -algorithm ed25519 makes one")
    return key.private_bytes_raw()
