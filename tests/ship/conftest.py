import pytest


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("served")


@pytest.fixture
def run_folder(tiny_recipe, kept):
    """A run of two classes, trained once for all tests of the server."""
    pytest.importorskip("fastapi")
    pytest.importorskip("prometheus_client")
    from serving import train_on_blobs

    return kept / "blobs" if (kept / "blobs").exists() else train_on_blobs(tiny_recipe, kept)
